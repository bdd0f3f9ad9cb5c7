"""The rules by the book: given rows, seeds and addresses there is one right decision at every place of a cycle, and each known fault
would have made another one. So a failure can be named: by the fault whose decisions are those that were made.

`coupled`: Daliri, Musco, Suresh 2024 (arXiv:2408.07978). `rejection`: Leviathan et al. 2023 (arXiv:2211.17192, Alg. 1).
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from paceline.arguments import AcceptanceRule
from paceline.audit import faults, noise
from paceline.audit.processors import Rows, law, scaled, widened
from paceline.sampling_params import SamplingParams

# What the engine computes in fp32 from raw logits is followed here from rounded log-probabilities: a decision that hangs on less than
# this, of a probability or of a score, is right either way.
TOLERANCE = 3e-5


@dataclasses.dataclass(frozen=True, slots=True)
class Decisions:
    """Emitted tokens and all that they hang on, an entry each; rows before any processor."""

    rule: AcceptanceRule
    params: SamplingParams
    seed: NDArray[np.uint64]
    position: NDArray[np.int64]
    cycle_start: NDArray[np.int64]
    drafted: NDArray[np.bool_]
    """Whether the place had a draft: else the token is the target's own."""
    target: NDArray[np.floating]
    draft: NDArray[np.floating]
    previous: NDArray[np.floating]
    """The target's row one place earlier in the cycle; its own at the first."""
    counts: NDArray[np.int64] | None
    """Of every id in the output before the place; None where no penalty is set."""
    committed_counts: NDArray[np.int64] | None
    """The same before the cycle."""
    proposed: NDArray[np.int64] | None
    """The drafts, where they are known; else they are drawn here."""
    tokens: NDArray[np.int64]
    accepted: NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    decided: int
    wrong: NDArray[np.int64]
    """Indices of decisions that are not by the book."""
    wrong_drafts: int
    """Drafts that are not what the draft's law and noise give, where they are known."""
    faults: tuple[str, ...]


def judged(d: Decisions) -> Verdict:
    num_ids = d.target.shape[1]
    token_noise = noise.gumbels(d.seed, d.position, d.cycle_start, noise.TOKEN, num_ids)
    draft_noise = token_noise if d.rule == "coupled" else noise.gumbels(d.seed, d.position, d.cycle_start, noise.DRAFT, num_ids)
    draft = scaled(widened(d.draft, num_ids), d.params, d.counts)
    drawn, sure = _drawn(draft, draft_noise)
    wrong_drafts = 0
    if d.proposed is not None:
        wrong_drafts = int((d.drafted & sure & (drawn != d.proposed)).sum())
        drawn, sure = d.proposed, np.ones(len(drawn), bool)

    def wrong(target: Rows, owed_noise: Rows, judged_draft: Rows = draft) -> NDArray[np.int64]:
        right = _right(d, target, judged_draft, drawn, token_noise, owed_noise)
        return np.nonzero(~right & (sure | ~d.drafted))[0]

    target = scaled(d.target, d.params, d.counts)
    sound = wrong(target, token_noise)
    named = [faults.OTHER_DISTRIBUTION] if wrong_drafts else []
    if len(sound):
        hot = dataclasses.replace(d.params, temperature=1.0)
        uncut = dataclasses.replace(d.params, top_k=0, min_p=0.0)
        bonus = (~d.drafted & (d.position > d.cycle_start))[:, None]
        others = {
            faults.TEMPERATURE: wrong(scaled(d.target, hot, d.counts), token_noise),
            faults.CUTS: wrong(scaled(d.target, uncut, d.counts), token_noise),
            faults.COMMITTED_HISTORY: wrong(scaled(d.target, d.params, d.committed_counts), token_noise),
            faults.BONUS_ROW: wrong(np.where(bonus, scaled(d.previous, d.params, d.counts), target), token_noise)}
        if d.rule == "rejection":
            raw = dataclasses.replace(hot, top_k=0, min_p=0.0, frequency_penalty=0.0, presence_penalty=0.0)
            others[faults.DRAFT_NOISE] = wrong(target, draft_noise)
            others[faults.OTHER_DISTRIBUTION] = wrong(target, token_noise, scaled(widened(d.draft, num_ids), raw))
        named += [name for name, left in others.items() if len(left) <= 0.05 * len(sound) and name not in named]
    return Verdict(len(d.tokens), sound, wrong_drafts, tuple(named))


def _drawn(s: Rows, gumbel: Rows) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The token of each row, and whether no rounding could make it another."""
    scores = s + gumbel
    best = scores.argmax(axis=1)
    first = scores.max(axis=1)
    scores[np.arange(len(best)), best] = -np.inf
    return best, first - scores.max(axis=1) > TOLERANCE


def _right(d: Decisions, target: Rows, draft: Rows, drawn: NDArray[np.int64], token_noise: Rows, owed_noise: Rows) -> NDArray[np.bool_]:
    each = np.arange(len(d.tokens))
    chosen = target + token_noise
    own = chosen[each, d.tokens] >= chosen.max(axis=1) - TOLERANCE
    if d.rule == "coupled":
        return np.asarray(own & (d.accepted == (d.drafted & (drawn == d.tokens))))
    p_target, p_draft = law(target), law(draft)
    u = noise.accept_uniforms(d.seed, d.position, d.cycle_start)
    ours, theirs = p_target[each, drawn], p_draft[each, drawn]
    slack = TOLERANCE * (ours + theirs)
    may_accept, may_reject = u * theirs < ours + slack * (ours > 0), u * theirs >= ours - slack
    owed, error = p_target - p_draft, TOLERANCE * (p_target + p_draft)
    with np.errstate(divide="ignore"):
        most, least = np.log(np.maximum(owed + error, 0)) + owed_noise, np.log(np.maximum(owed - error, 0)) + owed_noise
    residual = most[each, d.tokens] >= least.max(axis=1)
    return np.asarray(np.where(d.drafted, np.where(d.accepted, may_accept & (d.tokens == drawn), may_reject & residual), own & ~d.accepted))
