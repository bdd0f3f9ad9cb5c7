"""What a cycle costs, learned from the cycles that ran: T_target(rows), T_draft(tau), choosing and judging, and the host's share."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from paceline.diagnosis.curve import Curve
from paceline.trace import Trace

WIDE = 1.5  # contexts must differ by that factor before a share of the time is put down to them


@dataclasses.dataclass(frozen=True, slots=True)
class Passes:
    """A trace by launches: what its requests share, once. All arrays are [launches]; times are seconds."""

    tau: NDArray[np.int64]
    """Draft steps: the largest tau of its requests whose drafts are the draft model's."""
    drafts: NDArray[np.int64]
    """That were verified, of all its requests that the trace has."""
    rows: NDArray[np.int64]
    sequences: NDArray[np.int64]
    context: NDArray[np.float64]
    """Mean position of its requests."""
    draft: NDArray[np.float64]
    verify: NDArray[np.float64]
    sample: NDArray[np.float64]
    host: NDArray[np.float64]
    """Until the next launch, less the other three: what is not the models' work. NaN where no next launch of the same requests is known and
    the record has none."""

    @classmethod
    def of(cls, trace: Trace) -> "Passes":
        numbers, first, which = np.unique(trace.cycle, return_index=True, return_inverse=True)
        tau = np.zeros(len(numbers), np.int64)
        np.maximum.at(tau, which, np.where(trace.source == Trace.SOURCES.index("model"), trace.tau, 0))
        drafts = np.bincount(which, weights=trace.tau).astype(np.int64)
        context = np.bincount(which, weights=trace.position) / np.maximum(1, np.bincount(which))
        busy = (trace.draft_time + trace.verify_time + trace.sample_time)[first]
        return cls(tau, drafts, trace.rows[first].astype(np.int64), trace.sequences[first].astype(np.int64), context, trace.draft_time[first],
                   trace.verify_time[first], trace.sample_time[first], _host(trace, numbers, first, which, busy))

    def where(self, launches: NDArray[np.bool_]) -> "Passes":
        return Passes(*(getattr(self, field.name)[launches] for field in dataclasses.fields(self)))


def _host(trace: Trace, numbers: NDArray[np.int64], first: NDArray[np.intp], which: NDArray[np.intp],
          busy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Launch to launch, less the models' work: that is what a cycle takes, also where the next one is launched before this one's results
    are read. Where a request does not go on in the next launch, the time between them is somebody else's."""
    goes_on = np.zeros(len(numbers), bool)
    order = np.lexsort((trace.cycle, trace.request))
    same = (np.diff(trace.request[order]) == 0) & (np.diff(trace.cycle[order]) == 1)
    goes_on[which[order[:-1][same]]] = True
    host = trace.host_time[first].astype(np.float64)
    start = trace.start[first]
    between = np.maximum(0.0, np.diff(start, append=np.nan) - busy)
    return np.where(goes_on & np.isfinite(between), between, host)


@dataclasses.dataclass(frozen=True, slots=True)
class CycleCosts:
    """Seconds of a cycle's parts, at the number of sequences that most launches had."""

    target: Curve
    """Of rows."""
    draft: Curve
    """Of tau, all steps of a cycle together."""
    sample: Curve
    """Of rows."""
    host: Curve
    """Of tau."""
    target_context: Curve
    """Of rows: the part of `target` that grows with the context. 0 where the contexts were too alike to tell."""
    draft_context: Curve
    """Of tau."""
    sequences: int
    context: float
    """Median position."""

    @classmethod
    def of(cls, trace: Trace) -> "CycleCosts":
        """Raises ValueError without plain cycles, which everything is compared with."""
        passes = Passes.of(trace)
        kinds, counts = np.unique(passes.sequences, return_counts=True)
        if len(kinds) == 0:
            raise ValueError("[diagnose] trace must hold cycles, got none")
        sequences = int(kinds[counts.argmax()])
        typical = passes.sequences == sequences
        if not (passes.rows[typical] == sequences).any():
            raise ValueError("[diagnose] trace must hold plain cycles (num_speculative_tokens=0) to compare with, got none")
        tau, rows = passes.tau[typical], passes.rows[typical]
        context = passes.context[typical]
        return cls(
            target=Curve.of(passes.rows, passes.verify), draft=Curve.of(tau, passes.draft[typical], origin=True),
            sample=Curve.of(rows, passes.sample[typical]), host=Curve.of(tau, passes.host[typical]),
            target_context=_context_part(rows, context, passes.verify[typical]),
            draft_context=_context_part(tau, context, passes.draft[typical], origin=True),
            sequences=sequences, context=float(np.median(context)))

    def rows(self, tau: NDArray[np.int64] | int) -> NDArray[np.int64]:
        return self.sequences * (np.asarray(tau, np.int64) + 1)

    def cycle(self, tau: NDArray[np.int64] | int) -> NDArray[np.float64]:
        """Seconds of a whole cycle."""
        return self.draft(np.asarray(tau)) + self.target(self.rows(tau)) + self.sample(self.rows(tau)) + self.host(np.asarray(tau))

    @property
    def plain_pass(self) -> float:
        """The target's pass of one row per sequence."""
        return float(self.target(self.sequences))

    @property
    def draft_step(self) -> float:
        """Of one more draft token: over the taus that were seen."""
        return float(self.draft(self.draft.at[-1]) / self.draft.at[-1]) if self.draft.at[-1] else 0.0

    def without_context(self) -> "CycleCosts":
        """As if nothing had to be read of a past."""
        return dataclasses.replace(
            self, target=self.target.mapped(lambda at, seconds: np.maximum(seconds - self.target_context(at), 0.0)),
            draft=self.draft.mapped(lambda at, seconds: np.maximum(seconds - self.draft_context(at), 0.0)))


def _context_part(at: NDArray[np.int64], context: NDArray[np.float64], seconds: NDArray[np.float64], *, origin: bool = False) -> Curve:
    """At each `at`: slope between the short and the long contexts, times the median context; at most all of it."""
    places, parts = [], []
    for place in np.unique(at):
        here, of_here = context[at == place], seconds[at == place]
        middle = (here.min() + here.max()) / 2
        short, long = here <= middle, here > middle
        if place == 0 and origin or short.sum() < 4 or long.sum() < 4:
            continue
        near, far = np.median(here[short]), np.median(here[long])
        if far < WIDE * max(near, 1.0):
            continue
        slope = (np.median(of_here[long]) - np.median(of_here[short])) / (far - near)
        places.append(place)
        parts.append(float(np.clip(slope * np.median(context), 0.0, np.median(of_here))))
    return Curve.of(np.array(places, np.int64), np.array(parts, np.float64), origin=origin)
