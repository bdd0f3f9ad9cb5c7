"""Paceline: exact speculative decoding. A draft model proposes, the target verifies, the output never changes."""

from importlib.metadata import version

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
