"""The KV check: the raw log-probabilities that a text was emitted with, after all its rollbacks, against one cold prefill of it."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from paceline.audit import faults
from paceline.audit.parity import next_float32
from paceline.audit.report import Check
from paceline.audit.texts import Text

TOP = 8  # log-probabilities per token, besides its own


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Of one text. Indices of tokens."""

    tokens: int
    rollbacks: int
    differing: NDArray[np.int64]
    from_the_row_before: int
    """Of those, bonus tokens whose log-probability is that of the row before."""
    after_rollbacks: int
    """Of those, in a cycle behind one that rolled back."""
    largest: float


def compared(text: Text, cold: NDArray[np.float32]) -> Comparison:
    """Bit by bit: a row depends only on its sequence."""
    each = np.arange(len(text.tokens))
    reported = np.array([[logprob.logprob, *(value for _, value in logprob.top)] for logprob in text.logprobs], np.float32)
    ids = np.array([[logprob.token_id, *(token for token, _ in logprob.top)] for logprob in text.logprobs], np.int64)
    expected = cold[each[:, None], ids]
    differing = np.nonzero((reported != expected).any(axis=1))[0]
    bonus = (text.place == text.tau) & (text.place > 0)
    before = cold[np.maximum(each - 1, 0)[:, None], ids]
    rejected = (text.place < text.tau) & ~text.accepted
    first = text.position[rejected].min() if rejected.any() else np.inf
    return Comparison(
        len(text.tokens), text.num_rollbacks, differing, int((bonus & (reported == before).all(axis=1))[differing].sum()),
        int((text.cycle_start > first)[differing].sum()), float(np.abs(reported - expected).max()) if len(each) else 0.0)


def judged(rule: str, evidence: list[Comparison]) -> Check:
    tokens, rollbacks, differing = (sum(values) for values in zip(*((e.tokens, e.rollbacks, len(e.differing)) for e in evidence), strict=True))
    found = f"{tokens:,} tokens of {len(evidence)} texts with {rollbacks:,} rollbacks, {TOP + 1} log-probabilities each, bit by bit: "
    found += f"{differing:,} tokens differ, by {max(e.largest for e in evidence):.3g} at most" if differing else "all equal"
    named: tuple[str, ...] = ()
    if differing and sum(e.from_the_row_before for e in evidence) == differing:
        named = (faults.BONUS_ROW,)
    elif differing and sum(e.after_rollbacks for e in evidence) == differing:
        named = (faults.KV_NOT_ROLLED_BACK,)
    return Check(part="kv", name=rule, passed=not differing, found=found, faults=named,
                 figures={"texts": len(evidence), "tokens": tokens, "rollbacks": rollbacks, "differing": differing})


def tampered(text: Text, seed: int) -> Text:
    """The control: the last bit of one log-probability."""
    logprobs = list(text.logprobs)
    at = seed % len(logprobs)
    logprobs[at] = dataclasses.replace(logprobs[at], logprob=next_float32(logprobs[at].logprob))
    return dataclasses.replace(text, logprobs=tuple(logprobs))
