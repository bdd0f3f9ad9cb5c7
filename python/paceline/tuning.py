"""Who shall draft, in which precision, with which tau: every candidate runs on one half of the prompts, is given the tau that is best there, and is
measured on the other half."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from paceline import checks
from paceline.arguments import NGRAM, Drafter, Dtype, PathLike
from paceline.diagnosis.costs import Passes
from paceline.diagnosis.diagnose import Diagnosis
from paceline.diagnosis.measure import SPREAD, diagnose_engine, measure
from paceline.diagnosis.prediction import best_of
from paceline.engine import Engine
from paceline.trace import Trace

DRAFTERS = ("model", "ngram", "chain")
"""What `tune` tries: drafts alone, the text itself, and both in a chain."""
MEASURED_TAUS = (1, 2, 4, 7)  # of n-gram and chain; 7 is the n-gram's default
WORTH = 1.02  # measured gain over the next simpler choice from which speculation is recommended: less is a mood of the machine


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Who drafts, and what that brings here. Speedups are over plain decoding in the same run."""

    draft: str | None
    """A checkpoint, or "ngram"; None: plain decoding."""
    drafter: Drafter
    """As in Engine: "chain" is the checkpoint and the n-gram."""
    draft_dtype: str
    tau: int
    predicted: float
    """Speedup on the first half of the prompts: of a draft alone as its diagnosis predicts it, of n-gram and chain as measured there."""
    measured: float
    """Speedup on the other half."""
    tokens_per_second: float
    """Measured on the other half, per sequence."""
    latency: float
    """Seconds between two chunks: p99 of the cycles of the other half."""

    def keeps(self, latency: float | None) -> bool:
        """Whether it stays below that limit, in seconds; None: there is none."""
        return latency is None or self.latency <= latency


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    candidates: tuple[Candidate, ...]
    """All that ran, plain decoding among them: the recommended one first or, where nothing keeps the limit, the closest to it."""
    latency_limit: float | None
    """Seconds."""

    @property
    def best(self) -> Candidate:
        return self.candidates[0]

    @property
    def keeps_latency(self) -> bool:
        """False: no candidate keeps the limit, not even plain decoding."""
        return self.best.keeps(self.latency_limit)


def tune(target: PathLike, drafts: Sequence[PathLike], prompts: Sequence[Any], *, drafters: Sequence[str] = DRAFTERS,
         draft_dtypes: Sequence[Dtype | Literal["auto"]] = ("auto",), latency: float | None = None, max_tokens: int = 64, repetitions: int = 3,
         sampling: Mapping[str, Any] | None = None, progress: Callable[[str], None] = lambda line: None, **options: Any) -> Tuning:
    """Try every draft in every precision, each draft in a chain with the n-gram, and the n-gram alone.

    drafts: directories of checkpoints; may be empty where the n-gram is tried. drafters: of DRAFTERS. draft_dtypes: a chain has the one that did
        best for its draft alone on the first half of the prompts, or each of them where drafts alone are not tried.
    latency: seconds between two chunks that p99 must keep. Taus whose cycles take longer are not chosen. Where that leaves none, or none that is
        faster than plain decoding, tau 1 is measured all the same, so that the result shows by how much it fails.
    max_tokens: of each text, at least 2. repetitions: of everything, at least 1. sampling: fields of SamplingParams. options: of Engine.
    Raises ValueError (arguments), and what Engine and `generate_batch` raise.
    """
    if not drafters:
        checks.refuse("tune", "drafters", "at least one of " + ", ".join(DRAFTERS), drafters)
    for each in drafters:
        checks.one_of("tune", "drafters", each, DRAFTERS)
    if NGRAM in drafts or not drafts and NGRAM not in drafters:
        checks.refuse("tune", "drafts", "directories of checkpoints, at least one unless drafters has ngram", drafts)
    effort = {"max_tokens": max_tokens, "repetitions": repetitions, **(sampling or {})}
    found, plain = list[Candidate](), list[Candidate]()

    def attempt(draft: str, drafter: Drafter = "auto", dtype: Any = "auto") -> Candidate:
        progress(f"{draft}, {dtype}" + (", chain" if drafter == "chain" else ""))
        with Engine(target, draft, drafter=drafter, draft_dtype=dtype, num_speculative_tokens=max(SPREAD), **options) as engine:
            candidate, alone = _judged(engine, draft, drafter, prompts, latency, effort)
        found.append(candidate)
        plain.append(alone)
        return candidate

    for path in drafts:
        draft = path if isinstance(path, str) else str(checks.path("tune", "drafts", path).absolute())  # Path("ngram") is a directory
        models = [attempt(draft, "auto", dtype) for dtype in draft_dtypes] if "model" in drafters else []
        if "chain" in drafters:
            for dtype in [max(models, key=lambda each: each.predicted).draft_dtype] if models else draft_dtypes:
                attempt(draft, "chain", dtype)
    if NGRAM in drafters:
        attempt(NGRAM)
    return Tuning(candidates=ranked(found, plain, latency), latency_limit=latency)


def choose_tau(diagnosis: Diagnosis, latency: float | None, most: int) -> int:
    """The fastest predicted tau up to `most` whose cycle keeps the latency; 0 where none is faster than plain decoding."""
    return best_of(tuple(each for each in diagnosis.predictions
                         if each.tau == 0 or each.tau <= most and (latency is None or each.cycle_time <= latency))).tau


def choose_measured(tried: Sequence[Candidate], latency: float | None) -> Candidate | None:
    """The fastest that keeps the latency; None where none is faster than plain decoding."""
    return max((each for each in tried if each.measured > 1 and each.keeps(latency)), key=lambda each: each.measured, default=None)


def ranked(found: Sequence[Candidate], plain: Sequence[Candidate], latency: float | None) -> tuple[Candidate, ...]:
    """The fastest that keeps the latency first; plain decoding before whoever gains less than WORTH. Those that break the limit come last, the
    closest to it first."""
    alone = sorted(plain, key=lambda each: each.tokens_per_second)[len(plain) // 2]  # of several runs of the same thing the middle one

    def order(each: Candidate) -> tuple[float, bool, float]:
        return (0.0 if each.keeps(latency) else each.latency, each.draft is not None and each.measured < WORTH, -each.measured)

    return tuple(sorted([*found, alone], key=order))


def _judged(engine: Engine, draft: str, drafter: Drafter, prompts: Sequence[Any], latency: float | None,
            effort: Mapping[str, Any]) -> tuple[Candidate, Candidate]:
    """(the engine's drafter with the tau that is best on the first half of the prompts, plain decoding), both measured on the other half.

    Who drafts by the text has offers of its own in some cycles only and of any length, and its agreement is known just there: parsed, the bundled
    target's n-gram would bring 0.89 at tau 4 where 1.59 was measured. So a few taus are run instead.
    """
    first, other = prompts[::2], prompts[1::2] or prompts
    name = {"draft": draft, "drafter": drafter, "dtype": str(engine.info["draft_dtype"] or "auto")}
    if engine.info["drafter"] == "model":
        diagnosis = diagnose_engine(engine, first, tau=max(SPREAD) // 2, **effort)
        tau = choose_tau(diagnosis, latency, max(SPREAD)) or 1
        predicted = diagnosis.predictions[tau].speedup
    else:
        trace, speeds = measure(engine, first, [0, *MEASURED_TAUS], **effort)
        tried = [_candidate(trace, speeds, tau, speeds[tau] / speeds[0], **name) for tau in MEASURED_TAUS]
        chosen = choose_measured(tried, latency) or tried[0]
        tau, predicted = chosen.tau, chosen.measured
    trace, speeds = measure(engine, other, [0, tau], **effort)
    return _candidate(trace, speeds, tau, predicted, **name), _candidate(trace, speeds, 0, 1.0)


def _candidate(trace: Trace, speeds: Mapping[int, float], tau: int, predicted: float, *, draft: str | None = None, drafter: Any = "auto",
               dtype: str = "auto") -> Candidate:
    """speeds: tokens per second by tau, 0 among them, of the trace's cycles."""
    passes = Passes.of(trace.where(trace.wanted_tau == tau))
    whole = passes.draft + passes.verify + passes.sample + passes.host
    return Candidate(draft=draft, drafter=drafter, draft_dtype=dtype, tau=tau, predicted=predicted, measured=speeds[tau] / speeds[0],
                     tokens_per_second=speeds[tau], latency=float(np.quantile(whole, 0.99)))
