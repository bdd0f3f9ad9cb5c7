"""paceline_testing is built with the C++ tests and installed nowhere. A test that needs it fails where it is missing."""

import pathlib
import sys

# At the end: whoever builds elsewhere sets PYTHONPATH.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "build/test"))
