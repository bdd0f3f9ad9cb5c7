"""The law of the rules themselves: rows of logits replayed through the engine's own cycle, hundreds of thousands of times.

A planted pair of eight tokens, where the draft likes best what the target likes least, plain and with processors; and rows that were
recorded from the user's pair, those with which faults show most surely. Judged by X2 against the exact law, place by place; each
threshold of acceptance by bisection; each decision of a sample by the book.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline import _core
from paceline.arguments import AcceptanceRule
from paceline.audit import faults
from paceline.audit.book import Decisions, judged
from paceline.audit.chi_square import ALPHA, chi_square, p_value, pooled, power
from paceline.audit.processors import law, scaled, widened
from paceline.audit.report import Check
from paceline.sampling_params import SamplingParams

PLANTED = np.array([.30, .20, .15, .10, .10, .05, .05, .05])
PLANTED_CYCLES = 262_144
BOOK_DECISIONS = 4096  # of eight ids; fewer of larger vocabularies
BISECTIONS = 64
THRESHOLD_ERROR = 1e-12  # probabilities are ratios of integers of 45 bits and more

Replayer = Callable[..., _core.Replay]  # Subject.replay


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """What is replayed. tau = 1: the target has a row for the draft's place and one for the bonus token."""

    name: str
    params: SamplingParams
    target: NDArray[np.float32]
    draft: NDArray[np.float32]
    cycles: int
    power: float | None = None
    """How surely these rows show the fault of `faulty_laws` that they show least surely."""

    def laws(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of the target [2, ids] and of the draft [1, ids]."""
        return law(scaled(self.target, self.params)), law(scaled(widened(self.draft, self.target.shape[1]), self.params))


def planted() -> list[Rows]:
    target = np.log(np.stack([PLANTED, np.roll(PLANTED, 3)])).astype(np.float32)
    draft = np.log(PLANTED[None, ::-1]).astype(np.float32)
    cut = SamplingParams(temperature=0.7, top_k=6, seed=0)
    return [Rows("planted rows", SamplingParams(temperature=1.0, seed=0), target, draft, PLANTED_CYCLES),
            Rows("planted rows at temperature 0.7 and top-k 6", cut, target, draft, PLANTED_CYCLES // 4)]


def faulty_laws(target: NDArray[np.float64], draft: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """What faults whose law is known would emit at a drafted place: a draw from the target after a rejection; acceptance too easy by a
    tenth; the draft's own token again after one rejection in ten."""
    accepted = np.minimum(target, draft)
    missing = 1 - accepted.sum()
    lenient = np.minimum(target / 0.9, draft)
    residual = np.maximum(target - draft, 0)
    residual = residual / residual.sum() if residual.sum() else target
    return [accepted + missing * target, lenient + (1 - lenient.sum()) * residual, accepted + missing * (0.9 * residual + 0.1 * draft)]


def weakest_signal(target: NDArray[np.float64], draft: NDArray[np.float64], draws: int) -> float:
    """Of these faults, the least visible one's noncentrality over the X2's own spread: in which order rows are tried."""
    def signal(other: NDArray[np.float64]) -> float:
        shifted, mean = pooled(other * draws, target * draws)
        return float(((shifted - mean) ** 2 / mean).sum()) / math.sqrt(max(1, 2 * (len(mean) - 1)))
    return min(map(signal, faulty_laws(target, draft)))


def weakest_power(target: NDArray[np.float64], draft: NDArray[np.float64], draws: int) -> float:
    """How surely the least visible of them shows."""
    return min(power(target, other, draws) for other in faulty_laws(target, draft))


def laws_of(rule: AcceptanceRule, rows: Rows, replay: Replayer, seed: int, tamper: bool = False) -> Check:
    """X2 of the emitted tokens, over both places; again at 4N before it fails. tamper: the control's change, counts moved to a neighbour."""
    tests = []
    for attempt, cycles in enumerate((rows.cycles, 4 * rows.cycles)):
        evidence = replay(rule, rows.target, rows.draft, dataclasses.replace(rows.params, seed=_seed(seed, attempt)), cycles)
        tests.append(_law_test(rows, evidence, tamper))
        if tests[-1]["p_value"] >= ALPHA:
            break
    last = tests[-1]
    passed = last["p_value"] >= ALPHA
    found = (f"{last['cycles']:,} cycles, {last['tokens']:,} tokens, X2 = {last['statistic']:.1f} at {last['degrees']} degrees, p = {last['p_value']:.2g}"
             + (" (again)" if len(tests) > 1 else "") + (f"; the least visible known fault would show with probability {rows.power:.6g}" if rows.power else ""))
    return Check(part="law", name=f"{rule}, {rows.name}", passed=passed, found=found, statistical=True,
                 figures=last | {"alpha": ALPHA, "first_p_value": tests[0]["p_value"], "power": rows.power})


def _law_test(rows: Rows, evidence: _core.Replay, tamper: bool) -> dict[str, Any]:
    target, _ = rows.laws()
    statistic, degrees, tokens, impossible = 0.0, 0, 0, False
    for place in range(2):
        seen = evidence.tokens[:, place]
        counts = np.bincount(seen[seen >= 0], minlength=target.shape[1])
        if tamper:
            best, second = np.argsort(target[place])[-2:]
            counts[best], counts[second] = counts[best] + counts[second] // 50, counts[second] - counts[second] // 50
        of = chi_square(counts, target[place] * counts.sum())
        impossible |= of.p_value == 0 and np.isinf(of.statistic)
        statistic, degrees, tokens = statistic + of.statistic, degrees + of.degrees, tokens + int(counts.sum())
    return {"cycles": len(evidence.seed), "tokens": tokens, "statistic": statistic if not impossible else float("inf"), "degrees": degrees,
            "p_value": 0.0 if impossible else p_value(statistic, degrees), "accepted": float(evidence.accepted.mean())}


def by_the_book(rule: AcceptanceRule, rows: Rows, replay: Replayer, seed: int) -> Check:
    """A sample of decisions, recomputed from seed and address."""
    num_ids = rows.target.shape[1]
    cycles = max(64, min(BOOK_DECISIONS, BOOK_DECISIONS * 256 // num_ids))
    evidence = replay(rule, rows.target, rows.draft, dataclasses.replace(rows.params, seed=_seed(seed, 2)), cycles)
    verdict = judged(decisions_of(rule, rows, evidence))
    passed = not len(verdict.wrong) and not verdict.wrong_drafts
    found = f"{verdict.decided:,} decisions recomputed from their seeds, {len(verdict.wrong)} differ; {verdict.wrong_drafts} of {cycles:,} drafts differ"
    return Check(part="law", name=f"{rule}, {rows.name}, by the book", passed=passed, found=found, faults=verdict.faults,
                 figures={"decisions": verdict.decided, "wrong": len(verdict.wrong), "drafts": cycles, "wrong_drafts": verdict.wrong_drafts})


def decisions_of(rule: AcceptanceRule, rows: Rows, evidence: _core.Replay) -> Decisions:
    cycle, place = np.nonzero(evidence.tokens >= 0)
    start = evidence.position.astype(np.int64)[cycle]
    draft = np.repeat(rows.draft, len(cycle), axis=0)
    return Decisions(
        rule=rule, params=rows.params, seed=evidence.seed[cycle], position=start + place, cycle_start=start, drafted=place == 0,
        target=rows.target[place], draft=draft, previous=rows.target[np.maximum(place - 1, 0)], counts=None, committed_counts=None,
        proposed=evidence.drafts[cycle, 0].astype(np.int64), tokens=evidence.tokens[cycle, place].astype(np.int64),
        accepted=place < evidence.accepted[cycle])


def thresholds(rows: Rows, replay: Replayer, seed: int) -> Check:
    """The u from which on a draft is rejected, found by bisection through the engine's own op, against target/draft."""
    target, draft = rows.laws()
    params = dataclasses.replace(rows.params, seed=_seed(seed, 3))
    cycles = 2048
    drafts = replay("rejection", rows.target, rows.draft, params, cycles).drafts[:, 0]  # the same ones again, whatever u is
    tokens, first = np.unique(drafts, return_index=True)
    low, high = np.zeros(len(tokens)), np.ones(len(tokens))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        u = np.full((cycles, 1), 0.5)
        u[first, 0] = middle
        accepted = replay("rejection", rows.target, rows.draft, params, cycles, u).accepted[first] > 0
        low, high = np.where(accepted, middle, low), np.where(accepted, high, middle)
    exact = np.minimum(1.0, target[0, tokens] / draft[0, tokens])
    error = float(np.abs(high - exact).max())
    named = _named_thresholds(rows, tokens, high) if error > THRESHOLD_ERROR else ()
    return Check(part="law", name=f"rejection, {rows.name}, thresholds of acceptance", passed=error <= THRESHOLD_ERROR, faults=named,
                 found=f"of {len(tokens)} drafted tokens the u where acceptance ends is target/draft, the largest difference being {error:.1e}",
                 figures={"tokens": len(tokens), "largest_difference": error, "measured": dict(zip(tokens.tolist(), high.tolist(), strict=True)),
                          "target_over_draft": dict(zip(tokens.tolist(), exact.tolist(), strict=True))})


def _named_thresholds(rows: Rows, tokens: NDArray[np.int32], measured: NDArray[np.float64]) -> tuple[str, ...]:
    hot, uncut = dataclasses.replace(rows.params, temperature=1.0), dataclasses.replace(rows.params, top_k=0)
    target, draft = rows.laws()
    raw = law(scaled(rows.draft, dataclasses.replace(hot, top_k=0)))
    others = {faults.TEMPERATURE: (law(scaled(rows.target, hot)), draft), faults.CUTS: (law(scaled(rows.target, uncut)), draft),
              faults.OTHER_DISTRIBUTION: (target, raw)}
    return tuple(name for name, (t, d) in others.items() if np.abs(np.minimum(1.0, t[0, tokens] / d[0, tokens]) - measured).max() < 1e-6)


def ends(replay: Replayer, seed: int) -> Check:
    """The ends of [0, 1): at u = 0 a draft that the target gives nothing is rejected, and one it gives next to nothing accepted; just
    below u = 1 a draft that the target likes as much is accepted."""
    cycles = 512
    impossible = np.full((1, 8), -1e4, np.float32)
    apart = np.concatenate([impossible, impossible]), impossible.copy()
    apart[0][:, :4], apart[1][:, 4:] = 0, 0
    scarce = np.full((2, 8), -20, np.float32)
    scarce[:, 0] = 0
    equal = np.log(PLANTED)[None].astype(np.float32)
    params = SamplingParams(temperature=1.0, seed=_seed(seed, 4))
    cases = {"without_probability": (*apart, 0.0, 0), "next_to_nothing": (scarce, equal, 0.0, cycles),
             "as_likely": (np.concatenate([equal, equal]), equal, 1 - 2.0**-53, cycles)}
    accepted = {}
    for name, (target, draft, u, _) in cases.items():
        accepted[name] = int(replay("rejection", target, draft, params, cycles, np.full((cycles, 1), u)).accepted.sum())
    wrong = [name for name, case in cases.items() if accepted[name] != case[3]]
    named = (faults.ZERO_ACCEPTED,) if "without_probability" in wrong else ()
    return Check(part="law", name="rejection, the ends of u", passed=not wrong, faults=named, figures=accepted | {"cycles": cycles},
                 found=f"at u = 0, {accepted['without_probability']} of {cycles} drafts of probability 0 accepted and {accepted['next_to_nothing']} of "
                       f"{cycles} of the smallest ones; just below 1, {accepted['as_likely']} of {cycles} equally likely ones")


def checks(replay: Replayer, recorded: Sequence[Rows], rules: Sequence[AcceptanceRule], seed: int) -> list[Check]:
    """The whole replay part."""
    found = []
    for i, rows in enumerate([*planted(), *recorded]):
        for rule in rules:
            found += [laws_of(rule, rows, replay, seed + i), by_the_book(rule, rows, replay, seed + i)]
    return [*found, *(thresholds(rows, replay, seed) for rows in planted()), ends(replay, seed)]


def _seed(seed: int, stream: int) -> int:
    """Far apart: a replay uses up to a few thousand consecutive seeds."""
    return (seed * 0x9E3779B97F4A7C15 + (stream << 40)) % 2**64
