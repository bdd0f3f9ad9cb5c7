"""The runs that a diagnosis is made of: the same prompts with every tau in turn, so that whatever else the machine does meets all of them."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from paceline.diagnosis.diagnose import Diagnosis, diagnose_traces
from paceline.trace import Trace

if TYPE_CHECKING:
    from paceline.engine import Engine

SPREAD = (1, 2, 4, 8)  # taus that make T(M) known, besides the one in use
LONG = 512  # tokens of a prompt beyond which a short one runs too: what the context costs shows in the difference
SHORT = 32


def diagnose_engine(engine: "Engine", prompts: Sequence[Any], *, tau: int, max_tokens: int, repetitions: int, unquantised: Trace | None = None,
                    progress: Callable[[str], None] = lambda line: None, **sampling: Any) -> Diagnosis:
    """prompts: as Engine takes them. sampling: fields of SamplingParams, the seed among them where sampled."""
    most = int(engine.info["num_speculative_tokens"])
    taus = sorted({0, tau, *(each for each in SPREAD if each <= most)})
    trace, measured = measure(engine, prompts, taus, max_tokens=max_tokens, repetitions=repetitions, progress=progress, **sampling)
    return diagnose_traces(trace, tau=tau, measured=measured, draft_dtype=engine.info["draft_dtype"], unquantised=unquantised,
                           furthest_tau=max(tau, 2 * most))


def measure(engine: "Engine", prompts: Sequence[Any], taus: Sequence[int], *, max_tokens: int, repetitions: int,
            progress: Callable[[str], None] = lambda line: None, **sampling: Any) -> tuple[Trace, dict[int, float]]:
    """(trace of all cycles, {tau: tokens per second and sequence}): as many prompts at a time as the engine decodes at once.

    Of each prompt and tau the median of its repetitions counts.
    """
    together = int(engine.info["max_num_seqs"])
    groups = [prompts[first:first + together] for first in range(0, len(prompts), together)]
    sampling = {"ignore_eos": True, "seed": 0} | sampling
    engine.generate_batch(groups[0], max_tokens=min(8, max_tokens), num_speculative_tokens=max(taus), **sampling)  # whatever is cold, now
    collector = _Collector(engine)
    seconds: dict[tuple[int, int], list[float]] = {}
    tokens = {}
    for repetition in range(repetitions):
        for tau in taus:
            progress(f"tau {tau}, repetition {repetition + 1} of {repetitions}")
            for i, group in enumerate(groups):
                results = engine.generate_batch(group, max_tokens=max_tokens, num_speculative_tokens=tau, **sampling)
                collector.take()
                seconds.setdefault((tau, i), []).append(sum(each.stats.decode_time for each in results))
                tokens[tau, i] = sum(each.stats.num_tokens - 1 for each in results)
                _run_short(engine, results[0].prompt_token_ids, tau, max_tokens, sampling, collector)
    speeds = {}
    for tau in taus:
        times = sum(statistics.median(seconds[tau, i]) for i in range(len(groups)))
        speeds[tau] = sum(tokens[tau, i] for i in range(len(groups))) / times if times else float("nan")
    return collector.trace(), speeds


def _run_short(engine: "Engine", prompt: Sequence[int], tau: int, max_tokens: int, sampling: dict[str, Any], collector: "_Collector") -> None:
    if len(prompt) > LONG:
        engine.generate(list(prompt[:SHORT]), max_tokens=min(max_tokens, SHORT), num_speculative_tokens=tau, **sampling)
        collector.take()


def cycles_of(prompts_at_once: int, max_tokens: int) -> int:
    """trace_cycles that hold a batch of plain decoding: the most that a generation can leave."""
    return max(4096, prompts_at_once * max_tokens)


class _Collector:
    """The engine's ring, emptied between generations. Raises ValueError where one left more than it holds."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        trace = engine.trace()
        self._seen = int(trace.cycle.max()) if len(trace) else 0
        self._parts: list[Trace] = []

    def take(self) -> None:
        trace = self._engine.trace()
        new = trace.where(trace.cycle > self._seen)
        if len(new):
            if int(new.cycle.min()) > self._seen + 1:
                raise ValueError(f"[diagnose] trace_cycles must hold all cycles of a batch, got {self._engine.info['trace_cycles']}")
            self._seen = int(new.cycle.max())
            self._parts.append(new)

    def trace(self) -> Trace:
        if not self._parts:
            raise ValueError("[diagnose] trace must hold cycles, got none: trace_cycles=0 keeps none")
        return Trace(**{field.name: np.concatenate([getattr(part, field.name) for part in self._parts]) for field in dataclasses.fields(Trace)})
