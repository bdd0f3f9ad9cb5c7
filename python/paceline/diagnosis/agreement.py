"""Agreement by position: m = 1 where the draft, given the true text, proposes the token that was emitted, else 0.

Under `rejection` m = min(1, draft(y) / target(y)), the probability that the emitted y came through as an accepted draft. Either way m is a
property of the text and the pair, not of tau: every cycle of every tau is a parse of it, so what one run shows predicts all others.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from paceline.trace import Trace


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """Known agreement of consecutive positions of one request."""

    request: int
    first_position: int
    agreement: NDArray[np.float64]
    """[length] in [0, 1]."""


def agreement_runs(trace: Trace) -> list[Run]:
    """The trace's agreement, cut into runs where a position is unknown: a plain cycle, or a bonus token that nobody caught up with."""
    runs = []
    for request in np.unique(trace.request):
        rows = trace.where(trace.request == request)
        known = _known_positions(rows)
        if not known:
            continue
        positions = np.array(sorted(known))
        values = np.array([known[each] for each in positions.tolist()])
        for part in np.split(np.arange(len(positions)), np.flatnonzero(np.diff(positions) > 1) + 1):
            runs.append(Run(int(request), int(positions[part[0]]), values[part]))
    return runs


def _known_positions(rows: Trace) -> dict[int, float]:
    """Position -> agreement, of one request. A later cycle that catches up never contradicts an earlier one: a row is a function of its text."""
    width = rows.agreement.shape[1]
    places = np.arange(width)
    reached = (places < np.minimum(rows.tau, rows.emitted)[:, None]) & ~np.isnan(rows.agreement)
    positions = rows.position[:, None].astype(np.int64) + places
    known = dict(zip(positions[reached].tolist(), rows.agreement[reached].astype(np.float64).tolist(), strict=True))
    caught_up = ~np.isnan(rows.catch_up_agreement)
    known |= dict(zip((rows.position[caught_up] - 1).tolist(), rows.catch_up_agreement[caught_up].astype(np.float64).tolist(), strict=True))
    return known


def mean_agreement(runs: list[Run]) -> float:
    """Over all positions; NaN without any. It does not say what tau brings: agreement comes in clusters."""
    total = sum(len(run.agreement) for run in runs)
    return sum(float(run.agreement.sum()) for run in runs) / total if total else float("nan")


def acceptance_by_place(trace: Trace) -> NDArray[np.float64]:
    """[tau_max] share of accepted among the drafts judged at each place of a cycle, for people to look at; NaN where none was judged.

    Not for predictions: which contexts reach a place depends on tau, and no product of these rates is the emitted tokens of another tau.
    """
    places = np.arange(trace.drafted.shape[1])
    judged = (places < trace.tau[:, None]) & (places <= trace.accepted[:, None]) & (places < trace.emitted[:, None])
    accepted = judged & (places < trace.accepted[:, None])
    with np.errstate(invalid="ignore"):
        rates: NDArray[np.float64] = accepted.sum(axis=0) / judged.sum(axis=0)
    return rates
