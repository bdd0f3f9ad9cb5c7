"""The law from end to end: the randomised probability-integral transform of emitted tokens.

Order the ids of a row by target/draft and let F be the target's distribution function in that order. Then F(below y) + v target(y), v
uniform, is uniform on [0, 1) if y follows the target, whatever came before it: over all tokens of all texts these are independent
(Rosenblatt 1952). Ordered so, what a faulty rule gives too often lies at one end, even where each row is seen once.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from paceline.audit.chi_square import ALPHA, ChiSquare, p_value
from paceline.audit.processors import Rows
from paceline.audit.report import Check

BINS = 16
TAMPERED_TEMPERATURE = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class Transforms:
    """Of many tokens."""

    values: NDArray[np.float64]
    """In [0, 1); NaN where the token cannot have come from the law at all."""
    places: NDArray[np.int64]
    """Index in the cycle."""


def transformed(target: Rows, draft: Rows, tokens: NDArray[np.int64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n] from the laws [n, ids] of both models."""
    each = np.arange(len(tokens))
    own = target[each, tokens]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(draft > 0, target / draft, np.inf)
    ours = ratio[each, tokens][:, None]
    below = (ratio < ours) | ((ratio == ours) & (np.arange(target.shape[1])[None, :] < tokens[:, None]))
    values = (target * below).sum(axis=1) + v * own
    return np.where(own > 0, np.minimum(values, np.nextafter(1.0, 0.0)), np.nan)


def x2(of: Transforms) -> ChiSquare:
    """Of `BINS` bins by index in the cycle. Given how many tokens had an index, its bins are one multinomial; small ones are pooled."""
    if np.isnan(of.values).any():
        return ChiSquare(float("inf"), 1, 0.0)
    places = of.places.copy()
    for place in range(int(places.max()), 0, -1):
        if (places == place).sum() < 20 * BINS:
            places[places == place] = place - 1
    statistic, degrees = 0.0, 0
    for place in np.unique(places):
        counts = np.bincount((of.values[places == place] * BINS).astype(np.int64), minlength=BINS)
        expected = counts.sum() / BINS
        statistic += float(((counts - expected) ** 2 / expected).sum())
        degrees += BINS - 1
    return ChiSquare(statistic, degrees, p_value(statistic, degrees))


def judged(rule: str, attempts: list[Transforms]) -> Check:
    """The last attempt decides: there is a second one, of four times the tokens, only where the first failed."""
    results = [x2(each) for each in attempts]
    last, tokens = results[-1], len(attempts[-1].values)
    impossible = int(np.isnan(attempts[-1].values).sum())
    found = (f"{tokens:,} tokens in {BINS} bins by {int(attempts[-1].places.max()) + 1} indices in the cycle, X2 = {last.statistic:.1f} at "
             f"{last.degrees} degrees, p = {last.p_value:.2g}" + (" (again)" if len(attempts) > 1 else "")
             + (f"; {impossible:,} tokens have no probability at all" if impossible else ""))
    return Check(part="law", name=f"{rule}, end to end", passed=last.p_value >= ALPHA, found=found, statistical=True,
                 figures={"tokens": tokens, "bins": BINS, "statistic": last.statistic, "degrees": last.degrees, "p_value": last.p_value,
                          "alpha": ALPHA, "first_p_value": results[0].p_value, "impossible": impossible})
