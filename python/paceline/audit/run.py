"""An audit from beginning to end."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from paceline import checks as arguments
from paceline.audit import control, end_to_end, kv, parity, replay, transform
from paceline.audit.chi_square import ALPHA
from paceline.audit.report import AuditReport, Check, report_of
from paceline.audit.subject import RULES, Subject
from paceline.engine import Engine

TOKENS = 60_000
LEAST_TOKENS = 6_000  # fewer would not show the negative control
REPEAT = 4  # times the tokens, once more, before a failure counts


def audit(engine: Engine, prompts: Sequence[Any] | None = None, *, tokens: int = TOKENS, seed: int | None = None) -> AuditReport:
    """What `Engine.audit` does."""
    start = time.monotonic()
    tokens = arguments.integer("audit", "tokens", tokens, LEAST_TOKENS)
    seed = secrets.randbits(53) if seed is None else arguments.integer("audit", "seed", seed, 0, 2**64 - 1)
    with Subject(engine) as subject:
        ids = subject.prompts(prompts)
        found: list[Check] = []
        evidence = []
        for rule in RULES:
            pairings = parity.pairings(subject, rule, ids[:8], seed)
            found.append(parity.judged(rule, pairings))
            evidence += pairings
        share = {"coupled": tokens // 6, "rejection": tokens}  # under `coupled` parity shows the same, bit by bit
        walks = {}
        end_checks = []
        for rule in RULES:
            walks[rule] = first = end_to_end.walk(subject, rule, ids, share[rule], seed)
            attempts = [first.transforms]
            if transform.x2(first.transforms).p_value < ALPHA:
                attempts.append(end_to_end.walk(subject, rule, ids, REPEAT * share[rule], seed + 1).transforms)
            end_checks += [transform.judged(rule, attempts), end_to_end.by_the_book(rule, first.verdicts)]
        found += replay.checks(subject.replay, end_to_end.recorded(list(walks.values())), RULES, seed)
        found += end_checks
        found += [kv.judged(rule, walks[rule].comparisons) for rule in RULES]
        found += control.checks(evidence, walks["rejection"], subject.replay, seed)
        setup = subject.setup() | {"tokens": tokens, "prompts": len(ids)}
    return report_of(found, seed, time.monotonic() - start, setup)
