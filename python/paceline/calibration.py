"""What cycles cost here, measured in a dozen passes, and kept for the next engine of the same models on the same machine.

A controller learns costs from the cycles that run, so an engine needs none of this. With it the first request is already decoded with the best
tau; without, it begins with a few cycles of a middling one.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paceline._core import ModelFileError
from paceline.diagnosis.costs import Passes
from paceline.loading.strict_json import read_json
from paceline.trace import Trace

if TYPE_CHECKING:
    from paceline.engine import Engine

MAX_PASSES = 12
PLAIN_CYCLES = 3
MOST_DRAFTS = 5  # of a cycle: with the plain ones and what is left of the passes three different T(M) are seen
CERTAIN = 100.0  # logit bias of the one token that both models are to choose, so that a cycle is one cycle

FORMAT = 1
MAX_FILE = 256 << 10
MOST_KINDS = 64  # of cycles that a file keeps, by how often they ran
FEW = 3  # cycles of a kind below which its median says little

CycleCost = tuple[int, int, int, float, float, float]
"""sequences, rows of the target's pass, draft steps; seconds of drafting, verifying and all the rest."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Seconds, of one sequence at the start of its context."""

    passes: int
    """Of both models, that it took."""
    target_pass: Mapping[int, float]
    """Rows -> a pass of the target."""
    draft_step: float | None
    """A draft token; None without a draft's checkpoint."""
    rest: float
    """Of a cycle: choosing, judging, the host."""


def calibrate(engine: "Engine") -> Calibration:
    """Runs MAX_PASSES passes at most; the engine's controller sees them like any others."""
    if engine.info["trace_cycles"] < MAX_PASSES:
        raise ValueError(f"[calibrate] trace_cycles must be at least {MAX_PASSES} in the engine, got {engine.info['trace_cycles']}")
    before = engine.trace().cycle
    seen = int(before.max()) if len(before) else 0
    most = int(engine.info["num_speculative_tokens"]) if engine.info["drafter"] in ("model", "chain") else 0
    room = min(engine.info["max_model_len"], engine.info["kv_cache_tokens"]) - 1
    _run(engine, 0, min(PLAIN_CYCLES, room))
    left = MAX_PASSES - PLAIN_CYCLES
    while (tau := min(most, MOST_DRAFTS, left - 1, room - 1)) > 0:
        _run(engine, tau, tau + 1)
        left -= tau + 1
    trace = engine.trace()
    passes = Passes.of(trace.where(trace.cycle > seen))
    drafted = passes.tau > 0
    rest = passes.sample + np.nan_to_num(passes.host)
    return Calibration(
        passes=int(len(passes.tau) + passes.tau.sum()),
        target_pass={int(rows): float(np.median(passes.verify[passes.rows == rows])) for rows in np.unique(passes.rows)},
        draft_step=float(np.median(passes.draft[drafted] / passes.tau[drafted])) if drafted.any() else None, rest=float(np.median(rest)))


def _run(engine: "Engine", tau: int, tokens: int) -> None:
    """One cycle of tau drafts, or `tokens` plain ones: both models are made certain of one token."""
    engine.generate([0], max_tokens=tokens, num_speculative_tokens=tau, logit_bias={0: CERTAIN}, ignore_eos=True)


# ---------------------------------------------------------------------------------------------------- the file
def cost_file(directory: Path, about: Mapping[str, Any]) -> Path:
    """about: whatever costs depend on."""
    return directory / f"costs-{hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]}.json"


def kinds_of_cycles(trace: Trace, few: int = FEW) -> list[CycleCost]:
    """The median of every kind of cycle that ran at least `few` times, plain ones last: after them a controller does not ask for one at once.
    Not of cycles that had rows of a request which is not in the trace."""
    passes = Passes.of(trace)
    passes = passes.where(passes.rows == passes.sequences + passes.drafts)
    kinds, which, counts = np.unique(np.stack([passes.sequences, passes.rows, passes.tau], axis=1), axis=0, return_inverse=True, return_counts=True)
    rest = passes.sample + np.nan_to_num(passes.host)
    often = [int(kind) for kind in np.argsort(-counts, kind="stable")[:MOST_KINDS] if counts[kind] >= few]
    medians = {kind: [float(np.median(part[which.reshape(-1) == kind])) for part in (passes.draft, passes.verify, rest)] for kind in often}
    found: list[CycleCost] = [(int(kinds[kind][0]), int(kinds[kind][1]), int(kinds[kind][2]), *medians[kind]) for kind in often]  # type: ignore[misc]
    return sorted(found, key=lambda each: -each[2])


def write_costs(path: Path, about: Mapping[str, Any], cycles: list[CycleCost]) -> None:
    """Whole or not at all, and what the file had of other kinds stays. Raises OSError."""
    new = {each[:3] for each in cycles}
    old = [each for each in read_costs(path)[0] if each[:3] not in new]
    cycles = sorted((cycles + old)[:MOST_KINDS], key=lambda each: -each[2])
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=path.stem, suffix=".part", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump({"paceline_costs": FORMAT, "about": dict(about), "cycles": cycles}, file)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def read_costs(path: Path) -> tuple[list[CycleCost], str | None]:
    """(what it holds, what is wrong with a file that is there)."""
    if not path.exists():
        return [], None
    try:
        told = read_json(path, MAX_FILE)
    except ModelFileError as error:
        return [], str(error)
    cycles = told.get("cycles")
    if told.get("paceline_costs") != FORMAT or not isinstance(cycles, list):
        return [], f"{path}: expected \"paceline_costs\": {FORMAT}, found another file or format"
    if len(cycles) > MOST_KINDS or not all(_is_cost(each) for each in cycles):
        return [], f"{path}: expected up to {MOST_KINDS} cycles as [sequences, rows, steps, seconds, seconds, seconds], found others"
    return [tuple(each) for each in cycles], None


def _is_cost(each: Any) -> bool:
    return isinstance(each, list) and len(each) == 6 and all(type(value) is int and 0 <= value < 2**31 for value in each[:3]) and all(
        type(value) in (int, float) and 0 <= value < float("inf") for value in each[3:])
