"""Paceline: exact speculative decoding. A draft model proposes, the target verifies, the output never changes."""

import sys
from importlib import import_module
from importlib.metadata import version


def _refuse_sub_interpreters() -> None:
    """The core's threads take the main interpreter's GIL: in another one they would wait for it for ever."""
    for name in ("_interpreters", "_xxsubinterpreters"):  # since CPython 3.13, and before
        try:
            interpreters = import_module(name)
        except ImportError:
            continue
        if interpreters.get_current() != interpreters.get_main():
            raise ImportError("[paceline] must be imported in the main interpreter, got a sub-interpreter: use threads or processes")
        return


_refuse_sub_interpreters()

import paceline._core

# Asked after the core is imported, which turns the GIL back on unless the interpreter was told to keep it off (PYTHON_GIL=0, -X gil=0).
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError("[paceline] the GIL must be enabled, got a free-threaded interpreter with it off: requests and engines rely on it; "
                      "start Python without PYTHON_GIL=0 and -X gil=0")

from paceline._core import CapacityError, DeviceError, EngineDead, ModelFileError, NumericError
from paceline.bundled import demo_pair
from paceline.engine import Engine
from paceline.memory_plan import MemoryPlan
from paceline.request import Request
from paceline.results import Chunk, GenerationResult, Stats, TokenLogprob, Verification
from paceline.sampling_params import SamplingParams
from paceline.trace import Trace

__version__ = version("paceline")

__all__ = [
    "CapacityError", "Chunk", "DeviceError", "Engine", "EngineDead", "GenerationResult", "MemoryPlan", "ModelFileError", "NumericError", "Request",
    "SamplingParams", "Stats", "TokenLogprob", "Trace", "Verification", "demo_pair"]
