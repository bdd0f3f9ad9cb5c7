"""What a tau brings: emitted tokens of the parse over the cycle's cost, against plain decoding at the same costs."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from paceline.diagnosis.costs import CycleCosts
from paceline.diagnosis.parse import Emitted


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """Of one tau. speedup: tokens per second over those of plain decoding; low and high: 95 % of the block bootstrap over the text (the
    costs are taken as known)."""

    tau: int
    tokens_per_cycle: float
    cycle_time: float
    """Seconds."""
    speedup: float
    low: float
    high: float
    extrapolated: bool
    """No pass of so many rows was seen."""


def predict(costs: CycleCosts, emitted: Emitted, taus: NDArray[np.int64]) -> tuple[Prediction, ...]:
    """emitted: of the same taus."""
    cycle, plain = costs.cycle(taus), float(costs.cycle(0))
    return tuple(
        Prediction(int(tau), float(emitted.tokens_per_cycle[i]), float(cycle[i]), float(emitted.tokens_per_cycle[i] * plain / cycle[i]),
                   float(emitted.low[i] * plain / cycle[i]), float(emitted.high[i] * plain / cycle[i]),
                   bool(costs.rows(int(tau)) > costs.target.at[-1]))
        for i, tau in enumerate(taus))


def best_of(predictions: tuple[Prediction, ...]) -> Prediction:
    """The fastest; among equals the one that drafts least. tau 0 is plain decoding."""
    return max(predictions, key=lambda each: (each.speedup, -each.tau))
