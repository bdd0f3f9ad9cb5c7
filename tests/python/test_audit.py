"""The audit: its reference arithmetic against known values, its judges against evidence with planted faults, and the whole of it on the
bundled pair. That it names faults of the engine itself is for tests/audit/planted_faults.py, which builds engines that have them."""

import dataclasses
import json
import math
import types

import numpy as np
import paceline
import pytest
from paceline import _core
from paceline.audit import book, control, end_to_end, faults, kv, noise, parity, replay, transform
from paceline.audit.chi_square import ALPHA, chi_square, critical, p_value, power
from paceline.audit.processors import law, scaled
from paceline.audit.report import Check, report_of
from paceline.audit.run import LEAST_TOKENS
from paceline.audit.texts import Text
from paceline.cli import main
from paceline.sampling_params import SamplingParams

BACKEND = _core.Backend(1, "")


def replayer(rule, target, draft, params, cycles, uniforms=None):
    return _core.replay(BACKEND, rule, target, draft, params._for_core([]), cycles, uniforms)


# ------------------------------------------------------------------------------------------------ arithmetic


def test_philox_gives_its_known_answers():
    zero, ones, key = np.zeros(1, np.uint64), np.full(1, 2**32 - 1, np.uint64), np.full(1, 2**64 - 1, np.uint64)
    assert [int(word[0]) for word in noise.philox(zero, zero, zero, zero, zero)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert [int(word[0]) for word in noise.philox(key, ones, ones, ones, ones)] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_chi_square_is_right():
    for x, degrees, p in ((3.84, 1, 0.05004352124870519), (10, 4, 0.04042768199451279), (700, 624, 0.01838095302260839),
                          (900, 624, 2.464030624357417e-12), (0.5, 7, 0.9994464813904249)):  # scipy.stats.chi2.sf
        assert p_value(x, degrees) == pytest.approx(p, rel=1e-9)
    assert p_value(critical(7), 7) == pytest.approx(ALPHA, rel=1e-6)
    assert chi_square(np.array([5, 1]), np.array([6.0, 0.0])).p_value == 0
    even = np.full(8, 1 / 8)
    skewed = even + np.array([.01, -.01, 0, 0, 0, 0, 0, 0])
    assert power(even, even, 10**6) == pytest.approx(ALPHA, rel=1e-5)
    assert power(even, skewed, 10**4) < 0.02 < 0.999 < power(even, skewed, 10**6)


def test_power_is_what_simulation_gives():
    even, skewed = np.full(8, 1 / 8), np.full(8, 1 / 8) + np.array([.02, -.02, 0, 0, 0, 0, 0, 0])
    draws = 8000
    seen = np.random.default_rng(1).multinomial(draws, skewed, 4000)
    found = np.mean([chi_square(counts, even * draws).p_value < ALPHA for counts in seen])
    assert found == pytest.approx(power(even, skewed, draws), abs=0.04)


def test_processors_keep_what_they_should():
    rows = np.log(np.array([[.4, .3, .2, .1]])).astype(np.float32)
    probabilities = law(scaled(rows, SamplingParams(temperature=0.5, top_k=2)))[0]
    assert probabilities == pytest.approx([16 / 25, 9 / 25, 0, 0], abs=1e-6)
    assert law(scaled(rows, SamplingParams(temperature=1, min_p=0.6)))[0] == pytest.approx([4 / 7, 3 / 7, 0, 0], abs=1e-6)
    counts = np.array([[2, 0, 0, 0]])
    penalised = law(scaled(rows, SamplingParams(temperature=1, frequency_penalty=1, presence_penalty=.5), counts))[0]
    weights = np.array([.4 * math.exp(-2.5), .3, .2, .1])
    assert penalised == pytest.approx(weights / weights.sum(), abs=1e-6)


# ------------------------------------------------------------------------------------------------ the replay part


def test_the_sound_engine_raises_no_alarm():
    for check in replay.checks(replayer, [], ("coupled", "rejection"), 1):
        assert check.passed and not check.faults, check


def faulty(rule, target, draft, params, cycles, uniforms=None, *, change):
    """The engine's own replay, with decisions changed where `change` says."""
    real = replayer(rule, target, draft, params, cycles, uniforms)
    arrays = {name: getattr(real, name).copy() for name in ("seed", "position", "drafts", "accepted", "tokens")}
    change(rule, target, draft, params, arrays)
    return types.SimpleNamespace(**arrays)


def draft_noise_again(rule, target, draft, params, of):
    """After a rejection the residual is drawn with the draft's noise."""
    p, q = law(scaled(target[:1], params)), law(scaled(draft, params))
    start = of["position"].astype(np.int64)
    rejected = of["accepted"] == 0
    if rule == "rejection":
        gumbel = noise.gumbels(of["seed"], start, start, noise.DRAFT, target.shape[1])
        with np.errstate(divide="ignore"):
            of["tokens"][rejected, 0] = (np.log(np.maximum(p - q, 0)) + gumbel).argmax(axis=1)[rejected]


def bonus_of_the_row_before(rule, target, draft, params, of):
    start = of["position"].astype(np.int64)
    gumbel = noise.gumbels(of["seed"], start + 1, start, noise.TOKEN, target.shape[1])
    full = of["accepted"] == 1
    of["tokens"][full, 1] = (scaled(target[:1], params) + gumbel).argmax(axis=1)[full]


def other_drafts(rule, target, draft, params, of):
    of["drafts"][::7, 0] = (of["drafts"][::7, 0] + 1) % target.shape[1]


@pytest.mark.parametrize("change, fault", [
    (draft_noise_again, faults.DRAFT_NOISE), (bonus_of_the_row_before, faults.BONUS_ROW), (other_drafts, faults.OTHER_DISTRIBUTION)])
def test_a_planted_fault_is_found_and_named(change, fault):
    rows = replay.planted()[0]

    def broken(*given):
        return faulty(*given, change=change)

    by_book = replay.by_the_book("rejection", rows, broken, 1)
    assert not by_book.passed and by_book.faults == (fault,)
    if change is not other_drafts:
        assert not replay.laws_of("rejection", dataclasses.replace(rows, cycles=100_000), broken, 1).passed


def test_thresholds_name_a_temperature_that_is_ignored():
    rows = replay.planted()[1]
    hot = dataclasses.replace(rows, params=dataclasses.replace(rows.params, temperature=1.0))

    def judges_hot(rule, target, draft, params, cycles, uniforms=None):
        real = replayer(rule, target, draft, params, cycles, uniforms)
        if uniforms is None:
            return real
        (p, _), (q,) = hot.laws()[0], rows.laws()[1]
        drafts = real.drafts[:, 0]
        return types.SimpleNamespace(drafts=real.drafts, accepted=(uniforms[:, 0] * q[drafts] < p[drafts]).astype(np.int32))

    check = replay.thresholds(rows, judges_hot, 1)
    assert not check.passed and check.faults == (faults.TEMPERATURE,)


def test_a_draft_of_no_probability_accepted_at_0_is_named():
    def lenient(rule, target, draft, params, cycles, uniforms=None):
        real = replayer(rule, target, draft, params, cycles, uniforms)
        return types.SimpleNamespace(accepted=np.where(uniforms[:, 0] == 0, 1, real.accepted))

    check = replay.ends(lenient, 1)
    assert not check.passed and check.faults == (faults.ZERO_ACCEPTED,)


def test_a_failure_by_chance_is_tried_again():
    """At 4N, with other seeds: what failed once passes."""
    asked = []

    def unlucky(rule, target, draft, params, cycles, uniforms=None):
        real = replayer(rule, target, draft, params, min(cycles, 50_000), uniforms)
        tokens = real.tokens.copy()
        if not asked:
            tokens[:, 0] = 0
        asked.append((cycles, params.seed))
        return types.SimpleNamespace(tokens=tokens, seed=real.seed, accepted=real.accepted)

    check = replay.laws_of("rejection", replay.planted()[0], unlucky, 1)
    assert check.passed and [cycles for cycles, _ in asked] == [replay.PLANTED_CYCLES, 4 * replay.PLANTED_CYCLES] and asked[0][1] != asked[1][1]
    assert check.figures["first_p_value"] < ALPHA <= check.figures["p_value"]


# ------------------------------------------------------------------------------------------------ from end to end, without a model


def simulated(tokens, law_of_tokens=None, places=5):
    rng = np.random.default_rng(3)
    target, draft = rng.dirichlet(np.full(30, .3), tokens), rng.dirichlet(np.full(30, .3), tokens)
    chosen = np.array([rng.choice(30, p=row) for row in (target if law_of_tokens is None else law_of_tokens(target, draft))])
    values = transform.transformed(target, draft, chosen, rng.random(tokens))
    return transform.Transforms(values, rng.integers(0, places, tokens))


def test_the_transform_is_uniform_only_under_the_law():
    assert transform.judged("rejection", [simulated(20_000)]).passed
    accepting_too_easily = simulated(20_000, lambda target, draft: 0.9 * target + 0.1 * draft)
    assert transform.x2(accepting_too_easily).p_value < ALPHA
    impossible = simulated(2_000)
    impossible.values[5] = np.nan
    assert transform.x2(impossible).p_value == 0


def test_the_transform_sees_a_place_of_the_cycle():
    """Each place alone is judged: what is too low at one and too high at another does not cancel."""
    of = simulated(40_000)
    values = of.values.copy()
    values[of.places == 0], values[of.places == 1] = values[of.places == 0] ** 1.15, values[of.places == 1] ** (1 / 1.15)
    assert transform.x2(transform.Transforms(values, of.places)).p_value < ALPHA < transform.x2(of).p_value


def text_of(places, taus, accepted, logprobs):
    starts = np.array([1 + at - place for at, place in enumerate(places)])
    return Text((0,), SamplingParams(temperature=1, seed=1), np.array([l.token_id for l in logprobs]), starts, np.array(places), np.array(taus),
                np.array(accepted), tuple(logprobs))


def test_the_kv_check_names_what_it_finds():
    cold = np.log(np.random.default_rng(1).dirichlet(np.ones(6), 5)).astype(np.float32)
    said = [paceline.TokenLogprob(2, float(row[2]), tuple((i, float(row[i])) for i in range(3))) for row in cold]
    places, taus, accepted = [0, 0, 1, 0, 1], [0, 2, 2, 1, 1], [False, True, False, True, False]
    text = text_of(places, taus, accepted, said)
    assert kv.judged("coupled", [kv.compared(text, cold)]).passed and text.num_rollbacks == 1
    spoilt = [*said[:3], paceline.TokenLogprob(2, -9.0, said[3].top), said[4]]  # in the cycle after the rejection
    check = kv.judged("coupled", [kv.compared(text_of(places, taus, accepted, spoilt), cold)])
    assert not check.passed and check.faults == (faults.KV_NOT_ROLLED_BACK,)
    before = [*said[:4], paceline.TokenLogprob(2, float(cold[3][2]), tuple((i, float(cold[3][i])) for i in range(3)))]
    check = kv.judged("coupled", [kv.compared(text_of(places, taus, accepted, before), cold)])
    assert not check.passed and check.faults == (faults.BONUS_ROW,)


def test_a_divergence_is_shown_with_its_margin():
    tokens = [paceline.TokenLogprob(i, -1.0, ((i, -1.0), (9, -1.25))) for i in range(4)]
    plain = types.SimpleNamespace(token_ids=(0, 1, 2, 3), logprobs=tuple(tokens))
    other = types.SimpleNamespace(token_ids=(0, 1, 7, 3), logprobs=(*tokens[:2], paceline.TokenLogprob(7, -1.25, tokens[2].top), tokens[3]))
    assert parity.divergence(parity.Pairing("here", plain, plain)) is None
    assert parity.divergence(parity.Pairing("here", plain, other)) == parity.Divergence("here", 2, 2, 7, 0.25)
    check = parity.judged("coupled", [parity.Pairing("here", plain, other)])
    assert not check.passed and "at token 2: 2 plain, 7 with drafts; the two best tokens are 0.25 apart" in check.found


def test_penalties_over_committed_history_are_named():
    """A cycle of two tokens: the second one's row has seen the first or has not."""
    rng = np.random.default_rng(2)
    n = 400
    target, draft = (np.log(rng.dirichlet(np.ones(8), n)).astype(np.float32) for _ in range(2))
    counts, committed = rng.integers(0, 3, (n, 8)), np.zeros((n, 8), np.int64)
    params = SamplingParams(temperature=1, presence_penalty=1.0, frequency_penalty=0.5, seed=0)
    seed, start = np.arange(n).astype(np.uint64), np.full(n, 5)
    token_noise = noise.gumbels(seed, start + 1, start, noise.TOKEN, 8)
    for seen, named in ((counts, ()), (committed, (faults.COMMITTED_HISTORY,))):
        tokens = (scaled(target, params, seen) + token_noise).argmax(axis=1)
        drawn = (scaled(draft, params, counts) + token_noise).argmax(axis=1)
        verdict = book.judged(book.Decisions("coupled", params, seed, start + 1, start, np.ones(n, bool), target, draft, target, counts, committed,
                                             None, tokens, tokens == drawn))
        assert verdict.faults == named and bool(len(verdict.wrong)) == bool(named)


# ------------------------------------------------------------------------------------------------ the whole


def test_the_report_says_what_failed():
    good, bad = (Check(part="law", name=name, passed=passed, found="p", figures={"statistic": math.inf}, statistical=True, faults=named)
                 for name, passed, named in (("a", True, ()), ("b", False, (faults.BONUS_ROW,))))
    setup = {"target": "T", "draft": "D", "device": "cpu"}
    report = report_of([good, bad], 1, 2.0, setup)
    assert not report.passed and report.faults == (faults.BONUS_ROW,) and report.false_alarm_rate == pytest.approx(2 * ALPHA**2)
    assert report.page().endswith("\nFAIL") and "named: " + faults.BONUS_ROW in report.page()
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["checks"][0]["figures"]["statistic"] is None
    assert report_of([good], 1, 2.0, setup).page().endswith("\nPASS")


def test_the_bundled_pair_passes(monkeypatch, capsys):
    """And the negative control is found; the exit status, the page and the JSON agree."""
    found = []
    audit = paceline.Engine.audit
    monkeypatch.setattr(paceline.Engine, "audit", lambda engine, *given, **options: found.append(audit(engine, *given, **options)) or found[-1])
    assert main(["audit", "--tokens", str(LEAST_TOKENS), "--seed", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(paceline.Engine, "audit", lambda *given, **options: found[0])
    assert main(["audit"]) == 0 and capsys.readouterr().out.endswith("PASS\n") and report["passed"] and report["faults"] == []
    assert {check["part"] for check in report["checks"]} == {"parity", "law", "kv", "control"} and len(report["checks"]) >= 30
    controls = [check for check in report["checks"] if check["part"] == "control"]
    assert len(controls) == 5 and all(check["passed"] for check in controls)
    assert sum(check["figures"]["rollbacks"] for check in report["checks"] if check["part"] == "kv") > 500


def test_a_control_that_is_not_found_is_a_failure(monkeypatch):
    """Judges that see nothing: everything passes but the control, and a failed check fails a report (below)."""
    sound = types.SimpleNamespace(p_value=0.5, statistic=1.0, degrees=1)
    monkeypatch.setattr(control.transform, "x2", lambda of: sound)
    walked = types.SimpleNamespace(tampered=None)
    assert not control._rows(walked).passed


def test_an_audit_that_fails_has_exit_status_1(monkeypatch, capsys):
    found = Check(part="law", name="a", passed=False, found="p", figures={}, faults=(faults.BONUS_ROW,))
    monkeypatch.setattr(paceline.Engine, "audit", lambda *given, **options: report_of([found], 1, 2.0, {"target": "T", "draft": "D", "device": "cpu"}))
    assert main(["audit"]) == 1
    assert capsys.readouterr().out.endswith("\nFAIL\n")
    assert main(["audit", "--draft", "somewhere"]) == 1 and "--draft needs --target" in capsys.readouterr().err


def test_arguments_are_checked():
    target, draft = paceline.demo_pair()
    with paceline.Engine(target) as engine, pytest.raises(ValueError, match="must have a draft"):
        engine.audit()
    for options in ({"draft": "ngram"}, {"draft": draft, "drafter": "chain"}):
        with paceline.Engine(target, **options) as engine, pytest.raises(ValueError, match=r"\[audit\] drafter must be the draft model alone"):
            engine.audit()
    with paceline.Engine(target, draft) as engine:
        for options, said in (({"tokens": 5}, "tokens must be in"), ({"seed": -1}, "seed must be in"), ({"prompts": []}, "prompts must be")):
            with pytest.raises(ValueError, match=said):
                engine.audit(**options)


def test_recorded_rows_are_the_ones_that_show_most():
    weak = replay.Rows("weak", SamplingParams(temperature=1, seed=0), np.zeros((2, 4), np.float32), np.zeros((1, 4), np.float32), 8192)
    strong = replay.planted()[0]
    walk = types.SimpleNamespace(candidates=[(0.1, weak), (9.0, strong)])
    (chosen,) = end_to_end.recorded([walk])
    assert chosen.name == strong.name and chosen.power == pytest.approx(replay.weakest_power(*(law[0] for law in strong.laws()), chosen.cycles))
