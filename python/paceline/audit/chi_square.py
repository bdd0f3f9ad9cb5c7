"""Pearson's X2: how likely counts are by chance, and how surely a test sees a given other law (Press et al., Numerical Recipes, 6.2)."""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

ALPHA = 1e-7
"""Of one test. It fails only if it fails again with four times the draws: a sound engine does once in 10^14 tests."""
LEAST_EXPECTED = 20.0
"""Cells below it are pooled: a test at 1e-7 keeps its size only so."""


@dataclasses.dataclass(frozen=True, slots=True)
class ChiSquare:
    statistic: float
    degrees: int
    p_value: float


def upper_gamma(a: float, x: float) -> float:
    """Q(a, x) = Gamma(a, x) / Gamma(a): by its series below a + 1, by its continued fraction (Lentz) above."""
    if x <= 0:
        return 1.0
    if math.isinf(x):
        return 0.0
    scale = math.exp(-x + a * math.log(x) - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        n = 1
        while term > total * 1e-16:
            term *= x / (a + n)
            total += term
            n += 1
        return max(0.0, 1 - total * scale)
    b, c = x + 1 - a, 1e300
    h = d = 1 / b
    for n in range(1, 10000):
        an = -n * (n - a)
        b += 2
        d, c = 1 / (an * d + b), b + an / c
        h *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return scale * h


def p_value(statistic: float, degrees: int) -> float:
    return upper_gamma(degrees / 2, statistic / 2) if degrees > 0 else 1.0


def chi_square(counts: NDArray[np.int64], expected: NDArray[np.float64]) -> ChiSquare:
    """Of one multinomial. A count where nothing can fall is impossible: p = 0."""
    if np.any(counts[expected == 0] > 0):
        return ChiSquare(math.inf, 1, 0.0)
    seen, mean = pooled(counts.astype(np.float64), expected)
    statistic = float(((seen - mean) ** 2 / mean).sum())
    return ChiSquare(statistic, len(mean) - 1, p_value(statistic, len(mean) - 1))


def pooled(counts: NDArray[np.float64], expected: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts and expectations with the small cells as one, or as part of the smallest of the others."""
    large = expected >= LEAST_EXPECTED
    seen, mean = counts[large], expected[large]
    rest_seen, rest = float(counts[~large].sum()), float(expected[~large].sum())
    if rest >= LEAST_EXPECTED or not len(mean):
        return np.append(seen, rest_seen), np.append(mean, rest)
    smallest = int(mean.argmin())
    seen[smallest] += rest_seen
    mean[smallest] += rest
    return seen, mean


def critical(degrees: int, alpha: float = ALPHA) -> float:
    """The statistic whose p is alpha."""
    low, high = 0.0, 2.0 * degrees + 200
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle, degrees) > alpha else (low, middle)
    return high


def power(law: NDArray[np.float64], other: NDArray[np.float64], draws: int) -> float:
    """How surely `draws` from `other` are told from `law`: the upper tail of the noncentral X2, a Poisson mixture of central ones."""
    if np.any(other[law == 0] * draws > 10):
        return 1.0
    shifted, mean = pooled(other * draws, law * draws)
    degrees = len(mean) - 1
    if degrees == 0:
        return 0.0
    half = float(((shifted - mean) ** 2 / mean).sum()) / 2
    if half > 500:
        return 1.0
    limit = critical(degrees)
    weight, total = math.exp(-half), 0.0
    for k in range(int(half + 20 * math.sqrt(half + 1)) + 20):
        total += weight * p_value(limit, degrees + 2 * k)
        weight *= half / (k + 1)
    return min(1.0, total)
