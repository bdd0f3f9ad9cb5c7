"""A trace, and what it says: how fast, why not faster, what would help."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from paceline.diagnosis.agreement import Run, acceptance_by_place, agreement_runs, mean_agreement
from paceline.diagnosis.causes import SOUND_AGREEMENT, Cause, Evidence, better_draft, causes_of, faster_draft
from paceline.diagnosis.costs import CycleCosts
from paceline.diagnosis.parse import emitted_per_cycle
from paceline.diagnosis.prediction import Prediction, best_of, predict
from paceline.trace import Trace

FURTHEST_TAU = 16
WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.53, "int4_g32": 0.56}
"""Of a weight, its share of a scale included: what a memory-bound pass is proportional to."""


@dataclasses.dataclass(frozen=True, slots=True)
class Remedy:
    """speedup: predicted, over plain decoding as it is now, at its best tau."""

    what: str
    tau: int
    speedup: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What `Engine.diagnose` found. Times are seconds."""

    tau: int
    """In use."""
    measured: Mapping[int, float]
    """Tau -> tokens per second as measured, 0 being plain decoding; of one and the same run, in turn."""
    predictions: tuple[Prediction, ...]
    """Of tau 0, 1, ..."""
    best_tau: int
    cycle: Mapping[str, float]
    """A cycle of `tau`: draft, verify, sample, host."""
    plain_cycle: float
    draft_to_target: float
    """A draft token's cost over a plain pass of the target."""
    agreement: float
    """Share of positions at which the draft, given the true text, agrees with the target."""
    acceptance_by_place: tuple[float, ...]
    """Of the drafts judged at each place of a cycle of `tau`; for the eye, no prediction uses it. NaN where none was judged."""
    pass_rows: tuple[int, ...]
    pass_times: tuple[float, ...]
    """T(M): the target's pass of so many rows, as smoothed from what was seen."""
    sequences: int
    context: float
    num_positions: int
    """Whose agreement is known."""
    num_cycles: int
    causes: tuple[Cause, ...]
    """The one that costs most first; empty where nothing is worth naming."""
    remedies: tuple[Remedy, ...]
    """The best first."""
    notes: tuple[str, ...]

    @property
    def speedup(self) -> float | None:
        """Measured, of `tau` over plain decoding; None where one of them did not run."""
        return self.measured[self.tau] / self.measured[0] if self.measured.get(0) and self.tau in self.measured else None

    def predicted(self, tau: int) -> Prediction:
        return self.predictions[tau]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN becomes None."""
        plain = dataclasses.asdict(self) | {"speedup": self.speedup, "measured": {str(tau): speed for tau, speed in self.measured.items()}}
        plain["acceptance_by_place"] = [None if np.isnan(rate) else rate for rate in self.acceptance_by_place]
        return plain


def diagnose_traces(trace: Trace, *, tau: int, measured: Mapping[int, float] | None = None, draft_dtype: str | None = None,
                    unquantised: Trace | None = None, notes: tuple[str, ...] = (), furthest_tau: int = FURTHEST_TAU) -> Diagnosis:
    """Of cycles of `tau` and plain ones, of other taus too where there are any: they make T(M) known.

    measured: tokens per second by tau, 0 among them. None: from the trace's own cycles.
    draft_dtype: of the draft's weights, for what fewer bits would bring. unquantised: the same texts with the draft as its checkpoint has it.
    Raises ValueError where the trace has no plain cycles or none that drafted.
    """
    trace = trace.where((trace.source == Trace.SOURCES.index("model")) | (trace.tau == 0))  # what the text proposed says nothing of the draft
    costs, runs = CycleCosts.of(trace), agreement_runs(trace)
    taus = np.arange(max(tau, furthest_tau) + 1)
    emitted = emitted_per_cycle(runs, taus)
    predictions = predict(costs, emitted, taus)
    whole = agreement_runs(unquantised) if unquantised is not None else None
    evidence = Evidence(trace, runs, costs, tau, taus, emitted, predictions, whole)
    of_tau = trace.where(trace.wanted_tau == tau)
    return Diagnosis(
        tau=tau, measured=dict(measured) if measured is not None else speeds(trace), predictions=predictions, best_tau=best_of(predictions).tau,
        cycle={"draft": float(costs.draft(tau)), "verify": float(costs.target(costs.rows(tau))), "sample": float(costs.sample(costs.rows(tau))),
               "host": float(costs.host(tau))},
        plain_cycle=float(costs.cycle(0)), draft_to_target=costs.draft_step / costs.plain_pass, agreement=mean_agreement(runs),
        acceptance_by_place=tuple(acceptance_by_place(of_tau).tolist()[:tau]), pass_rows=tuple(int(rows) for rows in costs.target.at),
        pass_times=tuple(costs.target.seconds.tolist()), sequences=costs.sequences, context=costs.context,
        num_positions=sum(len(run.agreement) for run in runs), num_cycles=len(np.unique(trace.cycle)), causes=causes_of(evidence),
        remedies=remedies_of(evidence, draft_dtype), notes=notes + _doubts(costs, runs, predictions))


def speeds(trace: Trace) -> dict[int, float]:
    """Tokens per second and sequence by wanted tau: emitted over the time of the passes that the request took part in."""
    seconds = trace.draft_time + trace.verify_time + trace.sample_time + trace.host_time
    return {int(tau): float(trace.emitted[trace.wanted_tau == tau].sum() / seconds[trace.wanted_tau == tau].sum())
            for tau in np.unique(trace.wanted_tau) if seconds[trace.wanted_tau == tau].sum() > 0}


def remedies_of(evidence: Evidence, draft_dtype: str | None) -> tuple[Remedy, ...]:
    """What could be done, alone, and what plain decoding as it is now would be multiplied by."""
    costs, runs = evidence.costs, evidence.runs
    best, plain_now = evidence.best(), float(costs.cycle(0))
    found = [Remedy("no speculation" if best.tau == 0 else f"tau {best.tau}", best.tau, best.speedup)]

    def add(what: str, **changed: Any) -> None:
        then = evidence.best(**changed)
        found.append(Remedy(what, then.tau, then.tokens_per_cycle / then.cycle_time * plain_now))

    add("draft twice as fast", costs=faster_draft(costs, 0.5))
    if draft_dtype in WEIGHT_BYTES and WEIGHT_BYTES[draft_dtype] > WEIGHT_BYTES["int4"]:
        add("int4 draft, if it agrees as often and is bound by memory", costs=faster_draft(costs, WEIGHT_BYTES["int4"] / WEIGHT_BYTES[draft_dtype]))
    if evidence.unquantised is not None:
        add("draft not quantised, at the same cost", runs=evidence.unquantised)
    if mean_agreement(runs) < SOUND_AGREEMENT:
        add(f"draft that agrees at {100 * SOUND_AGREEMENT:.0f} % of the positions", runs=better_draft(runs, SOUND_AGREEMENT))
    add("no time between passes", costs=dataclasses.replace(costs, host=costs.host.mapped(lambda at, seconds: 0.0 * seconds)))
    return tuple(sorted(found, key=lambda each: -each.speedup))


def _doubts(costs: CycleCosts, runs: list[Run], predictions: tuple[Prediction, ...]) -> tuple[str, ...]:
    """What the figures rest on, where that is little."""
    doubts = []
    known = sum(len(run.agreement) for run in runs)
    if known < 256:
        doubts.append(f"the agreement of only {known} positions is known: intervals are wide")
    guessed = [each.tau for each in predictions if each.extrapolated]
    if guessed:
        doubts.append(f"no pass of more than {int(costs.target.at[-1])} rows was seen: from tau {guessed[0]} on, T(M) goes on as it ended")
    return tuple(doubts)
