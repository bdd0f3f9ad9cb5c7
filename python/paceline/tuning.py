"""Which draft, in which precision, with which tau: every candidate runs on one half of the prompts, is given the tau that its diagnosis predicts to
be best, and is judged on the other half."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from paceline.arguments import Dtype, PathLike
from paceline.diagnosis.costs import Passes
from paceline.diagnosis.diagnose import Diagnosis
from paceline.diagnosis.measure import SPREAD, diagnose_engine, measure
from paceline.diagnosis.prediction import best_of
from paceline.engine import Engine
from paceline.trace import Trace

WORTH = 1.02  # measured gain over the next simpler choice from which speculation is recommended: less is a mood of the machine


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A draft, and what it brings here. Speedups are over plain decoding in the same run."""

    draft: str | None
    """None: plain decoding."""
    draft_dtype: str
    tau: int
    predicted: float
    """From the first half of the prompts."""
    measured: float
    """On the other half."""
    tokens_per_second: float
    """Measured, per sequence."""
    latency: float
    """Seconds between two chunks: p99 of the cycles of the other half."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    candidates: tuple[Candidate, ...]
    """All that ran, plain decoding among them, the recommended one first."""
    latency_limit: float | None

    @property
    def best(self) -> Candidate:
        return self.candidates[0]


def tune(target: PathLike, drafts: Sequence[PathLike], prompts: Sequence[Any], *, draft_dtypes: Sequence[Dtype | Literal["auto"]] = ("auto",), latency: float | None = None,
         max_tokens: int = 64, repetitions: int = 3, sampling: Mapping[str, Any] | None = None,
         progress: Callable[[str], None] = lambda line: None, **options: Any) -> Tuning:
    """latency: seconds between two chunks that p99 must keep; a candidate whose cycles take longer drafts less, or is out. options: of Engine."""
    judged_on = prompts[1::2] or prompts
    found, plain = [], list[Candidate]()
    for draft in drafts:
        for dtype in draft_dtypes:
            progress(f"{draft}, {dtype}")
            with Engine(target, draft, draft_dtype=dtype, num_speculative_tokens=max(SPREAD), **options) as engine:
                diagnosis = diagnose_engine(engine, prompts[::2], tau=max(SPREAD) // 2, max_tokens=max_tokens, repetitions=repetitions, **(sampling or {}))
                tau = choose_tau(diagnosis, latency, max(SPREAD))
                trace, speeds = measure(engine, judged_on, sorted({0, tau}), max_tokens=max_tokens, repetitions=repetitions, **(sampling or {}))
                resolved = str(engine.info["draft_dtype"])
            if tau:
                found.append(_candidate(trace, speeds, str(draft), resolved, tau, diagnosis.predictions[tau].speedup))
            plain.append(_candidate(trace, speeds, None, "auto", 0, 1.0))
    return Tuning(candidates=ranked(found, plain, latency), latency_limit=latency)


def choose_tau(diagnosis: Diagnosis, latency: float | None, most: int) -> int:
    """The fastest predicted tau up to `most` whose cycle keeps the latency; 0 where none is faster than plain decoding."""
    return best_of(tuple(each for each in diagnosis.predictions
                         if each.tau == 0 or each.tau <= most and (latency is None or each.cycle_time <= latency))).tau


def ranked(found: Sequence[Candidate], plain: Sequence[Candidate], latency: float | None) -> tuple[Candidate, ...]:
    """The fastest that keeps the latency first; plain decoding before whoever gains less than WORTH, those that break the limit last."""
    alone = sorted(plain, key=lambda each: each.tokens_per_second)[len(plain) // 2]  # of several runs of the same thing the middle one

    def order(each: Candidate) -> tuple[bool, bool, float]:
        return (latency is not None and each.latency > latency, each.draft is not None and each.measured < WORTH, -each.measured)

    return tuple(sorted([*found, alone], key=order))


def _candidate(trace: Trace, speeds: Mapping[int, float], draft: str | None, dtype: str, tau: int, predicted: float) -> Candidate:
    passes = Passes.of(trace.where(trace.wanted_tau == tau))
    whole = passes.draft + passes.verify + passes.sample + passes.host
    return Candidate(draft=draft, draft_dtype=dtype, tau=tau, predicted=predicted, measured=speeds[tau] / speeds[0], tokens_per_second=speeds[tau],
                     latency=float(np.quantile(whole, 0.99)))
