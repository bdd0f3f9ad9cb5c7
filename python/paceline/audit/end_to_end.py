"""Texts of the pair, walked once: each is emitted, both models' rows are computed cold, and everything that is judged from end to end
is taken from them before they go."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from paceline.arguments import AcceptanceRule
from paceline.audit import kv, replay, transform
from paceline.audit.book import Decisions, Verdict, judged
from paceline.audit.processors import history_counts, law, widened
from paceline.audit.report import Check
from paceline.audit.subject import Subject
from paceline.audit.texts import TEXT_TOKENS, ScaledRows, Text, cold_rows, scaled_rows, texts
from paceline.sampling_params import SamplingParams

# No top_p: where its sum is cut hangs on the last bit. The penalties invite a token to come again, and not too often: what a row has seen
# of its own cycle then matters to one token in fifty.
SETTINGS = (
    SamplingParams(temperature=1.0, seed=0), SamplingParams(temperature=0.8, top_k=20, presence_penalty=-6.0, frequency_penalty=2.0, seed=0),
    SamplingParams(temperature=0.7, min_p=0.02, seed=0))
KV_TEXTS = 45
BOOK_TEXTS = 36
RECORDED = 2      # row pairs that are replayed
CANDIDATES = 400  # that they are chosen from
MOST_CYCLES = 8192


@dataclasses.dataclass(slots=True)
class Walk:
    """What was taken from the texts."""

    transforms: transform.Transforms
    tampered: transform.Transforms
    """The same as if the target's rows had been of another temperature: the control's."""
    comparisons: list[kv.Comparison]
    kv_text: tuple[Text, np.ndarray]
    verdicts: list[Verdict]
    candidates: list[tuple[float, replay.Rows]]


def walk(subject: Subject, rule: AcceptanceRule, prompts: Sequence[Sequence[int]], tokens: int, seed: int) -> Walk:
    """Texts until there are so many tokens."""
    length = min(TEXT_TOKENS, subject.longest - max(map(len, prompts)))
    count = math.ceil(tokens / length)
    noise = np.random.default_rng([seed, len(rule)])
    params = [dataclasses.replace(SETTINGS[i % 3], seed=int(noise.integers(2**63)), max_tokens=length, ignore_eos=True,
                                  logprobs=kv.TOP if i < KV_TEXTS else None) for i in range(count)]
    values, shifted, places = [], [], []
    found = Walk(transform.Transforms(np.empty(0), np.empty(0, np.int64)), transform.Transforms(np.empty(0), np.empty(0, np.int64)), [],
                 (None, None), [], [])  # type: ignore[arg-type]
    for i, text in enumerate(texts(subject.engine(rule), [prompts[i % len(prompts)] for i in range(count)], params)):
        target, draft = cold_rows(subject.engine(rule), text), cold_rows(subject.drafts, text)
        rows = scaled_rows(target, draft, text, subject.num_ids)
        p_target, p_draft = rows.laws
        v = noise.random(len(text.tokens))
        values.append(transform.transformed(p_target, p_draft, text.tokens, v))
        shifted.append(transform.transformed(law(rows.target / transform.TAMPERED_TEMPERATURE), p_draft, text.tokens, v))
        places.append(text.place)
        if i < KV_TEXTS:
            found.comparisons.append(kv.compared(text, target))
            found.kv_text = (text, target)
        if i < BOOK_TEXTS:
            found.verdicts.append(judged(decisions_of(rule, text, target[:, :subject.num_ids], draft)))
        if len(found.candidates) < CANDIDATES:
            found.candidates += _candidates(text, target[:, :subject.num_ids], draft, rows)
    found.transforms = transform.Transforms(np.concatenate(values), np.concatenate(places))
    found.tampered = transform.Transforms(np.concatenate(shifted), np.concatenate(places))
    return found


def decisions_of(rule: AcceptanceRule, text: Text, target: np.ndarray, draft: np.ndarray) -> Decisions:
    counts = committed = None
    if text.params.presence_penalty or text.params.frequency_penalty:
        sequence = np.concatenate([np.array(text.prompt, np.int64), text.tokens])
        counts = history_counts(sequence, text.position, len(text.prompt), target.shape[1])
        committed = history_counts(sequence, text.cycle_start, len(text.prompt), target.shape[1])
    assert text.params.seed is not None
    before = np.arange(len(text.tokens)) - (text.place > 0)
    return Decisions(
        rule=rule, params=text.params, seed=np.full(len(text.tokens), text.params.seed, np.uint64), position=text.position,
        cycle_start=text.cycle_start, drafted=text.place < text.tau, target=target, draft=draft, previous=target[before], counts=counts,
        committed_counts=committed, proposed=None, tokens=text.tokens, accepted=text.accepted)


def by_the_book(rule: str, verdicts: Sequence[Verdict]) -> Check:
    decided, wrong = sum(each.decided for each in verdicts), sum(len(each.wrong) for each in verdicts)
    failed = [each for each in verdicts if len(each.wrong)]
    named = [fault for fault in dict.fromkeys(fault for each in failed for fault in each.faults)
             if sum(len(each.wrong) for each in failed if fault in each.faults) >= 0.9 * wrong]
    return Check(part="law", name=f"{rule}, end to end, by the book", passed=not wrong, faults=tuple(named),
                 found=f"{decided:,} decisions of {len(verdicts)} texts recomputed from their seeds and cold rows, {wrong:,} differ",
                 figures={"decisions": decided, "texts": len(verdicts), "wrong": wrong})


def _candidates(text: Text, target: np.ndarray, draft: np.ndarray, rows: ScaledRows) -> list[tuple[float, replay.Rows]]:
    """Rows of this text with how well they show the least visible fault. Rows are replayed without penalties."""
    if text.params.presence_penalty or text.params.frequency_penalty:
        return []
    p_target, p_draft = rows.laws
    found = []
    for at in range(0, len(text.tokens) - 1, 7):
        signal = replay.weakest_signal(p_target[at], p_draft[at], MOST_CYCLES)
        name = f"rows at position {text.position[at]} of a text at temperature {text.params.temperature:g}"
        processors = dataclasses.replace(text.params, logprobs=None, max_tokens=None, ignore_eos=False)
        found.append((signal, replay.Rows(name, processors, target[at:at + 2].copy(), widened(draft, target.shape[1])[at:at + 1].copy(), MOST_CYCLES)))
    return found


def recorded(walks: Sequence[Walk]) -> list[replay.Rows]:
    """The row pairs with which faults show most surely, of different temperatures where there are."""
    best: dict[float, tuple[float, replay.Rows]] = {}
    for signal, rows in (each for one in walks for each in one.candidates):
        kept = best.get(rows.params.temperature)
        if kept is None or signal > kept[0]:
            best[rows.params.temperature] = (signal, rows)
    return [_sized(rows) for _, rows in sorted(best.values(), key=lambda each: -each[0])][:RECORDED]


def _sized(rows: replay.Rows) -> replay.Rows:
    """As few cycles as show every one of the faults."""
    (target, _), (draft,) = rows.laws()
    for cycles in (MOST_CYCLES // 4, MOST_CYCLES // 2, MOST_CYCLES):
        surely = replay.weakest_power(target, draft, cycles)
        if surely > 1 - 1e-9:
            break
    return dataclasses.replace(rows, cycles=cycles, power=surely)
