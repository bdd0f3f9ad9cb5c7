"""A cost as a function of rows or drafts: measured where it was seen, never falling, straight in between and beyond."""

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FEW = 3  # observations below which a point is dropped, where others have more


@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    at: NDArray[np.float64]
    """[points], rising."""
    seconds: NDArray[np.float64]
    """[points], never falling."""

    @classmethod
    def of(cls, at: NDArray[np.integer], seconds: NDArray[np.float64], *, origin: bool = False) -> "Curve":
        """From observations [n]: the median at each `at`, then the nearest curve that never falls, weighted by how often each was seen.
        origin: nothing costs nothing, and is not measured. Without observations it is 0 everywhere."""
        seen = np.isfinite(seconds) & ((at > 0) | (not origin))
        at, seconds = at[seen], seconds[seen]
        places, counts = np.unique(at, return_counts=True)
        if len(places) == 0:
            return cls(np.zeros(1), np.zeros(1))
        often = counts >= FEW if (counts >= FEW).any() else counts > 0
        places, counts = places[often], counts[often]
        medians = np.array([np.median(seconds[at == place]) for place in places])
        rising = _never_falling(medians, counts.astype(np.float64))
        if origin:
            places, rising = np.concatenate(([0], places)), np.concatenate(([0.0], rising))
        return cls(places.astype(np.float64), rising)

    def __call__(self, at: NDArray[np.integer] | NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Beyond the last point the slope of its neighbours goes on."""
        where = np.asarray(at, np.float64)
        inside: NDArray[np.float64] = np.interp(where, self.at, self.seconds)
        if len(self.at) == 1:
            return inside
        slope = (self.seconds[-1] - self.seconds[-2]) / (self.at[-1] - self.at[-2])
        beyond: NDArray[np.float64] = inside + slope * np.maximum(where - self.at[-1], 0.0)
        return beyond

    def mapped(self, change: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]) -> "Curve":
        """Of (at, seconds), with other seconds."""
        return Curve(self.at, change(self.at, self.seconds))


def _never_falling(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weighted least-squares fit that never falls: neighbours that do are pooled into their mean (pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many points
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, wa, na), (b, wb, nb) = pools[-2:]
            pools[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    return np.concatenate([np.full(count, mean) for mean, _, count in pools])
