"""Emitted tokens per cycle for any tau, by parsing the agreement of known text again, and how sure that is.

A cycle of tau that starts at position i emits i, i + 1, ... up to and including the first whose m fails, tau + 1 at most. Where m is a
probability (`rejection`) the parse is a Markov chain, and its expectation is carried instead of a choice; with m of 0 and 1 it is the parse
itself. No rate per place is multiplied with another: on clustered text that is wrong by tens of percent.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from paceline.diagnosis.agreement import Run

BLOCK = 128  # positions of a bootstrap block: agreement comes in stretches of dozens, which must lie in one block mostly
RESAMPLES = 400


@dataclasses.dataclass(frozen=True, slots=True)
class Emitted:
    """Tokens per cycle by tau. All arrays are [num_taus]."""

    tokens_per_cycle: NDArray[np.float64]
    low: NDArray[np.float64]
    """2.5 % of the block bootstrap."""
    high: NDArray[np.float64]
    """97.5 %."""


def cycle_starts(agreement: NDArray[np.float64], taus: NDArray[np.int64]) -> NDArray[np.float64]:
    """[texts, num_taus, length] the probability that a cycle starts at each position, when one starts at the first.

    agreement: [texts, length]; what stands behind the end of a shorter text has no influence on what is before it.
    """
    texts, length = agreement.shape
    place = np.arange(int(taus.max()) + 1)
    last = place == taus[:, None]  # after tau accepted drafts the next token is the bonus, whatever the draft thinks of it
    drafted = place[:-1] < taus[:, None]
    at = np.zeros((texts, len(taus), len(place)))  # at[..., t, k]: the position is the one after k accepted drafts of its cycle
    at[:, :, 0] = 1.0
    starts = np.empty((texts, len(taus), length))
    for i in range(length):
        starts[:, :, i] = at[:, :, 0]
        m = agreement[:, i, None]
        judged = at[:, :, :-1] * drafted
        bonus = (at * last).sum(axis=2)
        at[:, :, 1:] = judged * m[:, :, None]
        at[:, :, 0] = judged.sum(axis=2) * (1.0 - m) + bonus
    return starts


def emitted_per_cycle(runs: list[Run], taus: NDArray[np.int64], seed: int = 0) -> Emitted:
    """Over all runs: positions divided by cycle starts, with intervals by resampling blocks of BLOCK positions.

    Raises ValueError without a known position.
    """
    if not runs:
        raise ValueError("[diagnose] trace must hold cycles that drafted, got none")
    padded = np.zeros((len(runs), max(len(run.agreement) for run in runs)))
    for text, run in zip(padded, runs, strict=True):
        text[:len(run.agreement)] = run.agreement
    positions, starts = [], []  # of a block: [blocks], [blocks, num_taus]
    for run, of_run in zip(runs, cycle_starts(padded, taus), strict=True):
        for first in range(0, len(run.agreement), BLOCK):
            block = of_run[:, first:min(first + BLOCK, len(run.agreement))]
            positions.append(block.shape[1])
            starts.append(block.sum(axis=1))
    lengths, counts = np.array(positions, np.float64), np.array(starts)
    draws = np.random.default_rng(seed).integers(len(lengths), size=(RESAMPLES, len(lengths)))
    resampled = lengths[draws].sum(axis=1)[:, None] / counts[draws].sum(axis=1)
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    return Emitted(lengths.sum() / counts.sum(axis=0), low, high)
