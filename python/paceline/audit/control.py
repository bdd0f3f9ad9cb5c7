"""The negative control, each time: evidence is changed on purpose, as little as should be seen, and handed to the same judges. The engine
is never touched. What they do not refuse now, they would not refuse when it matters."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from paceline.audit import end_to_end, kv, parity, replay, transform
from paceline.audit.book import judged
from paceline.audit.chi_square import ALPHA
from paceline.audit.report import Check


def checks(pairings: Sequence[parity.Pairing], walked: end_to_end.Walk, replayer: replay.Replayer, seed: int) -> list[Check]:
    return [_parity(pairings, seed), _counts(replayer, seed), _decision(replayer, seed), _rows(walked), _logprobs(walked, seed)]


def _check(name: str, found: bool, how: str, **figures: object) -> Check:
    return Check(part="control", name=name, passed=found, found=f"{how}: {'found' if found else 'NOT found'}", figures=dict(figures))


def _parity(pairings: Sequence[parity.Pairing], seed: int) -> Check:
    refused = not parity.judged("coupled", parity.tampered(pairings, seed)).passed
    return _check("parity", refused, "one bit of one log-probability of one text")


def _counts(replayer: replay.Replayer, seed: int) -> Check:
    of = replay.laws_of("rejection", replay.planted()[0], replayer, seed ^ 0x5EED, tamper=True)
    return _check("law, emitted counts", not of.passed, f"a fiftieth of one token's count given to another, p = {of.figures['p_value']:.2g}",
                  p_value=of.figures["p_value"])


def _decision(replayer: replay.Replayer, seed: int) -> Check:
    rows = replay.planted()[0]
    evidence = replay.decisions_of("rejection", rows, replayer("rejection", rows.target, rows.draft, dataclasses.replace(rows.params, seed=seed), 512))
    tokens = evidence.tokens.copy()
    own = np.nonzero(~evidence.accepted)[0]
    at = own[seed % len(own)]
    tokens[at] = (tokens[at] + 1) % rows.target.shape[1]
    return _check("law, one decision", len(judged(dataclasses.replace(evidence, tokens=tokens)).wrong) > 0, f"one of {len(tokens)} tokens replaced")


def _rows(walked: end_to_end.Walk) -> Check:
    of = transform.x2(walked.tampered)
    return _check("law, rows from end to end", of.p_value < ALPHA, "the target's rows taken to be of "
                  f"{transform.TAMPERED_TEMPERATURE:g} times the temperature, X2 = {of.statistic:.0f} at {of.degrees} degrees", p_value=of.p_value)


def _logprobs(walked: end_to_end.Walk, seed: int) -> Check:
    text, cold = walked.kv_text
    return _check("kv", len(kv.compared(kv.tampered(text, seed), cold).differing) == 1, "one bit of one log-probability of one text")
