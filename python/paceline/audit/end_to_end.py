"""Texts of the pair, walked once: each is emitted, both models' rows are computed cold, and everything that is judged from end to end
is taken from them before they go."""

import concurrent.futures
import dataclasses
import itertools
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
CANDIDATE_TEXTS = 72  # whose rows they are chosen from
MOST_CYCLES = 8192
TAMPERED_TEXTS = 100  # 6,000 tokens: X2 is then hundreds above its degrees
THREADS = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Walk:
    """What was taken from the texts."""

    transforms: transform.Transforms
    tampered: transform.Transforms
    """Of the first texts, as if the target's rows had been of another temperature: the control's."""
    comparisons: list[kv.Comparison]
    kv_text: tuple[Text, np.ndarray]
    verdicts: list[Verdict]
    candidates: list[tuple[float, replay.Rows]]


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """Of one text."""

    place: np.ndarray
    values: np.ndarray
    shifted: np.ndarray | None
    comparison: kv.Comparison | None
    kv_text: tuple[Text, np.ndarray] | None
    verdict: Verdict | None
    candidates: list[tuple[float, replay.Rows]]


def walk(subject: Subject, rule: AcceptanceRule, prompts: Sequence[Sequence[int]], tokens: int, seed: int) -> Walk:
    """Texts until there are so many tokens. They are judged beside the engine that emits the next ones: half of the time is NumPy's."""
    length = min(TEXT_TOKENS, subject.longest - max(map(len, prompts)))
    count = math.ceil(tokens / length)
    noise = np.random.default_rng([seed, len(rule)])
    params = [dataclasses.replace(SETTINGS[i % 3], seed=int(noise.integers(2**63)), max_tokens=length, ignore_eos=True,
                                  logprobs=kv.TOP if i < KV_TEXTS else None) for i in range(count)]
    last_kv_text = min(KV_TEXTS, count) - 1
    engine, _ = subject.engine(rule), subject.draft_vocabulary  # made here, not by two threads at once

    def taken(i: int, text: Text) -> Taken:
        target, draft = cold_rows(engine, text, subject.num_ids), cold_rows(subject.drafts, text, subject.draft_vocabulary)
        rows = scaled_rows(target, draft, text, subject.num_ids)
        p_target, p_draft = rows.laws
        v = np.random.default_rng([i + 1, seed, len(rule)]).random(len(text.tokens))
        return Taken(
            text.place, transform.transformed(p_target, p_draft, text.tokens, v),
            transform.transformed(law(rows.target / transform.TAMPERED_TEMPERATURE), p_draft, text.tokens, v) if i < TAMPERED_TEXTS else None,
            kv.compared(text, target) if i < KV_TEXTS else None, (text, target) if i == last_kv_text else None,
            judged(decisions_of(rule, text, target[:, :subject.num_ids], draft)) if i < BOOK_TEXTS else None,
            _candidates(text, target[:, :subject.num_ids], draft, rows) if i < CANDIDATE_TEXTS else [])

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        all_taken = list(pool.map(taken, itertools.count(), texts(engine, [prompts[i % len(prompts)] for i in range(count)], params)))
    place = np.concatenate([each.place for each in all_taken])
    (kv_text,) = (each.kv_text for each in all_taken if each.kv_text)
    return Walk(
        transform.Transforms(np.concatenate([each.values for each in all_taken]), place),
        transform.Transforms(np.concatenate([each.shifted for each in all_taken if each.shifted is not None]),
                             np.concatenate([each.place for each in all_taken if each.shifted is not None])),
        [each.comparison for each in all_taken if each.comparison], kv_text, [each.verdict for each in all_taken if each.verdict],
        [candidate for each in all_taken for candidate in each.candidates])


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
