"""The request's processors as the documentation defines them, slowly and in double (the order: SamplingParams). Shares no code with the
engine. Rows may be raw logits or log-probabilities: nothing here depends on a constant added to a row."""

import numpy as np
from numpy.typing import NDArray

from paceline.sampling_params import SamplingParams

Rows = NDArray[np.float64]  # [n, ids]


def history_counts(tokens: NDArray[np.int64], ends: NDArray[np.int64], prompt_length: int, num_ids: int) -> NDArray[np.int64]:
    """[len(ends), num_ids] how often each id is among tokens[prompt_length:end]."""
    counts = np.zeros((len(ends), num_ids), np.int64)
    for row, end in zip(counts, ends, strict=True):
        output = tokens[prompt_length:end]
        np.add.at(row, output[output < num_ids], 1)
    return counts


def scaled(rows: NDArray[np.floating], params: SamplingParams, counts: NDArray[np.int64] | None = None) -> Rows:
    """(l - l_max) / T of what may be chosen, -inf elsewhere. temperature must be above 0; top_p, repetition_penalty, min_tokens and
    logit_bias are not for this place: an edge of top_p would hang on the rounding of a sum, the others on raw logits.

    counts: of every id in the row's output so far; None where no penalty is set.
    """
    assert params.temperature > 0 and params.top_p == 1 and params.repetition_penalty == 1 and not params.logit_bias and not params.min_tokens
    l = rows.astype(np.float64)
    if counts is not None and (params.frequency_penalty or params.presence_penalty):
        l -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    s: Rows = (l - l.max(axis=1, keepdims=True)) / params.temperature
    if 0 < params.top_k < s.shape[1]:
        kth = np.partition(s, -params.top_k, axis=1)[:, -params.top_k, None]
        s[s < kth] = -np.inf
    if params.min_p > 0:
        s[s < np.log(params.min_p)] = -np.inf
    return s


def law(s: Rows) -> Rows:
    """Probabilities of scaled rows."""
    weights: Rows = np.exp(s)
    probabilities: Rows = weights / weights.sum(axis=1, keepdims=True)
    return probabilities


def widened(rows: NDArray[np.floating], num_ids: int) -> NDArray[np.floating]:
    """Rows of another vocabulary: ids beyond num_ids are dropped, missing ones cannot be chosen."""
    if rows.shape[1] >= num_ids:
        return rows[:, :num_ids]
    return np.concatenate([rows, np.full((len(rows), num_ids - rows.shape[1]), -np.inf, rows.dtype)], axis=1)
