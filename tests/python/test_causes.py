"""Planted slow-downs: `diagnose` names each of them first. In a simulator; test_diagnose.py plants some in the engine."""

import dataclasses
import json

import numpy as np
import pytest
from cycle_simulator import Machine, Simulator, clustered, iid, simulate
from paceline.diagnosis.causes import NAMES
from paceline.diagnosis.diagnose import diagnose_traces
from paceline.diagnosis.page import page

SOUND = Machine()
SOUND_ALPHA = 0.8


def texts(alpha=SOUND_ALPHA, count=8, length=160, seed=0, make=iid):
    stream = np.random.default_rng(seed)
    return [make(alpha, length, stream) for _ in range(count)]


def diagnosed(machine=SOUND, *, alpha=SOUND_ALPHA, tau=4, taus=(1, 2, 4, 8), make=iid, prompts=(20,), unquantised_alpha=None, seed=0, **options):
    simulator, measured = Simulator(machine, seed=seed, **options), {}
    many = texts(alpha, seed=seed, make=make, count=8 * simulator.sequences)
    for each in sorted({0, tau, *taus}):
        tokens, seconds = np.sum([simulator.run(many[i:i + simulator.sequences], each, prompt=prompts[i % len(prompts)])
                                  for i in range(0, len(many), simulator.sequences)], axis=0)
        measured[each] = tokens / seconds
    whole = simulate(machine, texts(unquantised_alpha, seed=seed), [tau])[0] if unquantised_alpha else None
    return diagnose_traces(simulator.trace(), tau=tau, measured=measured, unquantised=whole)


PLANTED = {  # what is planted: (named first, how)
    "draft slowed 5x": ("draft_too_slow", dict(machine=dataclasses.replace(SOUND, draft_step=5 * SOUND.draft_step))),
    "acceptance forced to 0.2": ("acceptance_too_low", dict(alpha=0.2)),
    "acceptance forced to 0.2, clustered": ("acceptance_too_low", dict(alpha=0.35, make=clustered)),
    "tau 16": ("tau_too_long", dict(tau=16)),
    "tau 1": ("tau_too_short", dict(tau=1, alpha=0.9)),
    "host sleeps 10 ms per cycle": ("host_overhead", dict(machine=dataclasses.replace(SOUND, host=0.010))),
    "every row costs half a pass": ("verification_not_flat", dict(machine=dataclasses.replace(SOUND, row=0.5 * SOUND.plain_pass))),
    "the tokens mean something else": ("mismatch", dict(alpha=0.02, wrong_logprob=-15.0)),
    "a batch of 8 on few cores": ("batch_compute_bound", dict(machine=dataclasses.replace(SOUND, row=0.1 * SOUND.plain_pass), sequences=8)),
    "40,000 positions": ("context_dominates", dict(machine=dataclasses.replace(SOUND, row_position=2e-6, draft_position=2e-8), prompts=(40_000, 40_000, 500))),
    "int4 spoils the draft": ("quantised_draft", dict(alpha=0.45, unquantised_alpha=0.8)),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_cause_is_named_first(planted, seed):
    name, how = PLANTED[planted]
    found = diagnosed(seed=seed, **how)
    assert found.causes and found.causes[0].name == name, [(cause.name, cause.gain) for cause in found.causes]
    assert NAMES[name] in page(found) and f"Because {NAMES[name]}" in " ".join(page(found).split())


def test_every_cause_is_planted():
    assert {name for name, _ in PLANTED.values()} == set(NAMES)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [iid, clustered])
def test_a_sound_pair_has_no_cause(make, seed):
    found = diagnosed(seed=seed, make=make, tau=7, taus=(1, 2, 9), alpha=0.85)
    assert found.causes == (), found.causes
    assert "Nothing stands out" in page(found)


def test_a_weak_draft_is_not_called_foreign():
    """Never right, but unsure: the target thinks of its tokens no worse than a weak draft deserves."""
    found = diagnosed(alpha=0.02, wrong_logprob=-3.0)
    assert found.causes[0].name == "acceptance_too_low"


def test_remedies_are_what_the_simulator_gives():
    slow = dataclasses.replace(SOUND, draft_step=5 * SOUND.draft_step)
    found = {remedy.what: remedy for remedy in diagnosed(slow).remedies}
    remedy = found["draft twice as fast"]
    _, rates = simulate(dataclasses.replace(slow, draft_step=2.5 * SOUND.draft_step), texts(), [remedy.tau])
    assert remedy.speedup == pytest.approx(rates[remedy.tau] / rates[0], rel=0.05)
    remedy = found[f"tau {diagnosed(slow).best_tau}"]
    _, rates = simulate(slow, texts(), [remedy.tau])
    assert remedy.speedup == pytest.approx(rates[remedy.tau] / rates[0], rel=0.05)


def test_measured_speedup_and_prediction_stand_side_by_side():
    found = diagnosed()
    assert found.speedup == pytest.approx(found.predicted(4).speedup, rel=0.05)
    assert f"{found.speedup:.2f} times plain decoding" in page(found)
    assert sum(found.cycle.values()) == pytest.approx(SOUND.cycle(4), rel=0.02)
    assert found.agreement == pytest.approx(SOUND_ALPHA, abs=0.03)
    assert found.draft_to_target == pytest.approx(SOUND.draft_step / SOUND.plain_pass, rel=0.03)


def test_it_is_json():
    told = json.loads(json.dumps(diagnosed().to_dict(), allow_nan=False))
    assert told["causes"] == [] and told["measured"]["0"] > 0 and len(told["predictions"]) == 17


@pytest.mark.parametrize("tau, missing", [(0, "cycles that drafted"), (4, "plain cycles")])
def test_what_cannot_be_told_is_said(tau, missing):
    simulator = Simulator()
    simulator.run([np.ones(40)], tau)
    trace = simulator.trace()
    with pytest.raises(ValueError, match=missing):
        diagnose_traces(trace.where(trace.wanted_tau == trace.tau), tau=4)
