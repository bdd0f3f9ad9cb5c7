"""Which device an engine runs on, and which of its arguments are the CPU's alone."""

import os
import platform
import sys
from pathlib import Path
from typing import Literal

from paceline import _core
from paceline.cuda import find_cuda

Device = Literal["auto", "cpu", "cuda"]


def make_backend(device: str, num_threads: int, notes: list[str]) -> tuple[Literal["cpu", "cuda"], _core.Backend]:
    if device != "cpu":
        cuda = find_cuda()
        reason = cuda.reason
        if reason is None:
            try:
                return "cuda", _core.Backend.load(str(cuda.plugin), 0)
            except (RuntimeError, ValueError) as error:
                reason = str(error)
        if device == "cuda":
            raise _core.DeviceError(f'[Engine] device="cuda" cannot run: {reason}')
        notes.append(f"device: cpu, since {reason}")
    return "cpu", _core.Backend(num_threads, "")


def refuse_on_cuda(num_threads: int | None, weights_cache: Path | None) -> None:
    """device="cuda", said outright."""
    for name, given in (("num_threads", num_threads), ("weights_cache", str(weights_cache) if weights_cache else None)):
        if given is not None:
            raise ValueError(f"[Engine] {name} must be None on device cuda, got {given!r}")


def ignored_on_cuda(num_threads: int | None, weights_cache: Path | None) -> list[str]:
    """Notes where device="auto" became CUDA: what was written for the CPU makes an engine here too."""
    ignored = {"num_threads: no effect on device cuda": num_threads,
               "weights_cache: not used on device cuda, weights are packed at every start": weights_cache}
    return [note for note, given in ignored.items() if given is not None]


def profile_cycles() -> tuple[int, int]:
    """$PACELINE_PROFILE_CYCLES, "A-B"."""
    given = os.environ.get("PACELINE_PROFILE_CYCLES")
    if not given:
        return 0, 0
    first, _, last = given.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"[Engine] PACELINE_PROFILE_CYCLES must be A-B with 1 <= A <= B, got {given!r}")
    return int(first), int(last)


def processor() -> str:
    """Of this machine, by name."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines() if sys.platform == "linux" else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
