"""Bitwise parity with plain decoding: the same prompts with and without drafts, by several taus, alone and together."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from paceline.arguments import AcceptanceRule
from paceline.audit.report import Check
from paceline.audit.subject import Subject
from paceline.results import GenerationResult
from paceline.sampling_params import SamplingParams

TOKENS = 40
_GREEDY = SamplingParams(max_tokens=TOKENS, ignore_eos=True, logprobs=2, seed=0)


@dataclasses.dataclass(frozen=True, slots=True)
class Pairing:
    """A text decoded plainly, and one that should be the same."""

    how: str
    plain: GenerationResult
    speculative: GenerationResult


@dataclasses.dataclass(frozen=True, slots=True)
class Divergence:
    """Where bits differ first."""

    how: str
    index: int
    """Of the token, in the output."""
    plain_token: int | None
    speculative_token: int | None
    margin: float | None
    """Of the two largest raw log-probabilities there, plain: next to nothing where two tokens were as good as tied."""


def pairings(subject: Subject, rule: AcceptanceRule, prompts: Sequence[Sequence[int]], seed: int) -> list[Pairing]:
    """Greedy, and under `coupled` with a temperature and a seed too: `rejection` promises its law, not its bits."""
    engine = subject.engine(rule)
    greedy = dataclasses.replace(_GREEDY, max_tokens=min(TOKENS, subject.longest - max(map(len, prompts))))
    settings = [("greedy", greedy)]
    if rule == "coupled":
        settings.append(("sampled", dataclasses.replace(greedy, temperature=0.8, top_p=0.95, presence_penalty=0.3, seed=seed % 2**64)))
    found = []
    for name, params in settings:
        plain = [engine.generate(list(prompt), params, num_speculative_tokens=0) for prompt in prompts]
        for tau in sorted({1, (subject.tau + 1) // 2, subject.tau}):
            alone = [engine.generate(list(prompt), params, num_speculative_tokens=tau) for prompt in prompts[:3]]
            together = engine.generate_batch([list(prompt) for prompt in prompts], params, num_speculative_tokens=tau)
            for batch, results in (("alone", alone), ("together", together)):
                found += [Pairing(f"{rule}, {name}, tau {tau}, {batch}, prompt {i}", a, b)
                          for i, (a, b) in enumerate(zip(plain, results, strict=False))]
    return found


def divergence(pair: Pairing) -> Divergence | None:
    a, b = pair.plain, pair.speculative
    assert a.logprobs is not None and b.logprobs is not None
    for i in range(max(len(a.token_ids), len(b.token_ids))):
        ours, theirs = (each.logprobs[i] if each.logprobs and i < len(each.logprobs) else None for each in (a, b))
        if ours == theirs:
            continue
        margin = ours.top[0][1] - ours.top[1][1] if ours and len(ours.top) > 1 else None
        return Divergence(pair.how, i, ours.token_id if ours else None, theirs.token_id if theirs else None, margin)
    return None


def judged(rule: AcceptanceRule, evidence: Sequence[Pairing]) -> Check:
    tokens = sum(len(pair.plain.token_ids) for pair in evidence)
    differing = [each for each in map(divergence, evidence) if each]
    found = f"{len(evidence)} texts, {tokens:,} tokens and their log-probabilities, bit by bit"
    if differing:
        first = differing[0]
        margin = "" if first.margin is None else f"; the two best tokens are {first.margin:.3g} apart there"
        found += (f"; {len(differing)} texts differ, the first ({first.how}) at token {first.index}: {first.plain_token} plain, "
                  f"{first.speculative_token} with drafts{margin}")
    return Check(part="parity", name=rule, passed=not differing, found=found,
                 figures={"texts": len(evidence), "tokens": tokens, "divergences": [dataclasses.asdict(each) for each in differing[:20]]})


def tampered(evidence: Sequence[Pairing], seed: int) -> list[Pairing]:
    """The control: the last bit of one log-probability of one text."""
    changed = list(evidence)
    at = seed % len(changed)
    result = changed[at].speculative
    assert result.logprobs is not None
    middle = len(result.logprobs) // 2
    logprobs = list(result.logprobs)
    logprobs[middle] = dataclasses.replace(logprobs[middle], logprob=next_float32(logprobs[middle].logprob))
    changed[at] = dataclasses.replace(changed[at], speculative=dataclasses.replace(result, logprobs=tuple(logprobs)))
    return changed


def next_float32(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(-np.inf)))
