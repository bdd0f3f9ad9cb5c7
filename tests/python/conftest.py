"""paceline_testing is built with the C++ tests and installed nowhere. A test that needs it fails where it is missing.

No test meets the driver of the machine it runs on: device "auto" is the CPU everywhere, unless a test brings the stub of a driver.
"""

import os
import pathlib
import sys

import paceline.cuda
import pytest

# At the end: whoever builds elsewhere sets PYTHONPATH.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "build/test"))


@pytest.fixture(scope="session", autouse=True)
def no_driver(tmp_path_factory):
    """For this process, which has read its search path already, another name; for those it starts, a file that is no library."""
    folder = tmp_path_factory.mktemp("no_driver")
    (folder / paceline.cuda._DRIVER).write_text("no library\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paceline.cuda, "_DRIVER", "libcuda.so.none")
        patch.setenv("LD_LIBRARY_PATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")])))
        yield
