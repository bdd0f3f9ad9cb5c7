"""What another tau would bring, read off one run, against a simulator that runs it."""

import cycle_simulator
import numpy as np
import pytest
from cycle_simulator import Machine, clustered, iid, simulate
from paceline.diagnosis.agreement import Run, acceptance_by_place, agreement_runs, mean_agreement
from paceline.diagnosis.costs import CycleCosts, Passes
from paceline.diagnosis.curve import Curve
from paceline.diagnosis.parse import cycle_starts, emitted_per_cycle
from paceline.diagnosis.prediction import best_of, predict

TAUS = np.arange(0, 9)
WORKLOADS = {f"{make.__name__} {alpha}": (make, alpha) for make in (iid, clustered) for alpha in (0.5, 0.6, 0.7, 0.8, 0.95)}
TOLERANCE = 0.07


def texts_of(name, seed=0, texts=8, length=192):
    make, alpha = WORKLOADS[name]
    stream = np.random.default_rng(seed)
    return [make(alpha, length, stream) for _ in range(texts)]


def relative_errors(name, seen_tau):
    """Predicted over simulated speedup of tau 1..8, less 1. The trace has plain decoding, seen_tau, and a few cycles of 8, for T(9)."""
    machine = Machine()
    seen = cycle_simulator.Simulator(machine)
    texts = texts_of(name)
    for text in texts:
        seen.run([text], 0)
        seen.run([text], seen_tau)
    seen.run([texts[0][:64]], 8)
    trace = seen.trace()
    predicted = {each.tau: each.speedup for each in predict(CycleCosts.of(trace), emitted_per_cycle(agreement_runs(trace), TAUS), TAUS)}
    _, rates = simulate(machine, texts, range(1, 9))
    return [predicted[tau] / (rates[tau] / rates[0]) - 1 for tau in range(1, 9)]


@pytest.mark.parametrize("seen_tau", [1, 3, 8])
@pytest.mark.parametrize("name", WORKLOADS)
def test_predicted_speedup_is_the_simulated_one(name, seen_tau):
    errors = relative_errors(name, seen_tau)
    assert np.median(np.abs(errors)) < TOLERANCE, errors
    assert np.max(np.abs(errors)) < 2 * TOLERANCE, errors


def test_a_product_of_rates_per_place_fails_where_acceptance_comes_in_clusters():
    """The trap that the parse avoids: a run of tau 8 begins most of its cycles in hard stretches, and its rates make tau 2 look worse."""
    stream = np.random.default_rng(7)
    texts = [clustered(0.8, 1024, stream) for _ in range(20)]
    machine = Machine(noise=0.0)
    trace, rates = simulate(machine, texts, [2])
    truth = rates[2] / rates[0] * machine.cycle(2) / machine.cycle(0)
    seen = cycle_simulator.Simulator(machine)
    for text in texts:
        seen.run([text], 8)
    places = acceptance_by_place(seen.trace())
    of_rates = 1 + places[0] + places[0] * places[1]
    parsed = emitted_per_cycle(agreement_runs(seen.trace()), np.array([2])).tokens_per_cycle[0]
    assert abs(of_rates / truth - 1) > 2 * TOLERANCE and abs(parsed / truth - 1) < TOLERANCE / 2


@pytest.mark.parametrize("tau", [0, 1, 2, 5])
def test_cycle_starts_of_certain_agreement_are_a_walk(tau):
    m = iid(0.7, 200, np.random.default_rng(3))
    walked, at = np.zeros(200), 0
    while at < 200:
        walked[at] = 1
        accepted = 0
        while accepted < tau and at + accepted < 200 and m[at + accepted]:
            accepted += 1
        at += accepted + 1
    assert (cycle_starts(m[None], np.array([tau]))[0, 0] == walked).all()


def test_cycle_starts_of_probabilities_are_the_mean_of_many_walks():
    stream = np.random.default_rng(4)
    m = stream.random(60)
    walks = cycle_starts((stream.random((4000, 60)) < m).astype(float), np.array([1, 3, 6]))
    expected = cycle_starts(m[None], np.array([1, 3, 6]))[0]
    assert np.abs(walks.mean(axis=0) - expected).max() < 5 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize("tau", [1, 3, 8])
def test_the_agreement_of_a_text_is_assembled_whole_whatever_tau_walked_it(tau):
    text = iid(0.6, 400, np.random.default_rng(5))
    seen = cycle_simulator.Simulator(Machine())
    seen.run([text], tau, prompt=11)
    runs = agreement_runs(seen.trace())
    found = np.concatenate([run.agreement for run in runs])
    assert len(runs) == 1 and runs[0].first_position == 12  # the first token comes before the draft is ready
    assert (found == text[1:1 + len(found)]).all() and len(found) >= 400 - 1 - 2  # of the end a bonus or a plain token may be missing


def test_what_nobody_knows_is_a_gap():
    seen = cycle_simulator.Simulator(Machine())
    seen.run([np.ones(40)], 3)
    trace = seen.trace()
    trace.catch_up_agreement[4] = np.nan
    runs = agreement_runs(trace)
    unknown = trace.position[4] - 1
    assert [run.first_position for run in runs] == [trace.position[1], unknown + 1]
    assert len(runs[0].agreement) == unknown - trace.position[1]


def test_intervals_hold_what_other_texts_of_the_kind_give():
    """Of 95 % intervals at least 80 % hold the truth: a bootstrap of two dozen blocks is a little narrow."""
    taus = np.array([4])
    truth = emitted_per_cycle([_run(clustered(0.7, 100_000, np.random.default_rng(1)))], taus).tokens_per_cycle[0]
    held = 0
    for seed in range(60):
        stream = np.random.default_rng(100 + seed)
        found = emitted_per_cycle([_run(clustered(0.7, 512, stream)) for _ in range(6)], taus)
        held += found.low[0] <= truth <= found.high[0]
    assert 48 <= held


def _run(agreement):
    return Run(0, 0, agreement)


def test_costs_are_the_machines():
    machine = Machine(noise=0.03)
    trace, _ = simulate(machine, texts_of("iid 0.8"), [1, 2, 4, 8])
    costs = CycleCosts.of(trace)
    for tau in range(9):
        assert float(costs.cycle(tau)) == pytest.approx(machine.cycle(tau), rel=0.02)
    assert costs.draft_step == pytest.approx(machine.draft_step, rel=0.02)


def test_one_slow_cycle_in_ten_changes_no_cost():
    machine = Machine()
    trace, _ = simulate(machine, texts_of("iid 0.8"), [4])
    trace.verify_time[::10] *= 30
    assert float(CycleCosts.of(trace).cycle(4)) == pytest.approx(machine.cycle(4), rel=0.02)


def test_time_between_two_requests_is_nobodys_host_time():
    seen = cycle_simulator.Simulator(Machine(noise=0.0))
    for tau in (0, 0, 0):
        seen.run([np.ones(3)], tau)
        seen.clock += 5.0
    assert Passes.of(seen.trace()).host == pytest.approx([Machine().host] * 9)


def test_time_between_launches_is_host_time_though_no_record_counts_it():
    seen = cycle_simulator.Simulator(Machine(noise=0.0))
    seen.run([np.ones(30)], 0)
    trace = seen.trace()
    trace.start[:] += 0.004 * np.arange(len(trace))
    assert np.median(Passes.of(trace).host) == pytest.approx(Machine().host + 0.004)


def test_a_curve_never_falls_and_goes_on_as_it_ended():
    at = np.repeat([1, 2, 4, 8], 5)
    curve = Curve.of(at, np.array([1.0, 1.4, 1.2, 1.6])[np.searchsorted([1, 2, 4, 8], at)])
    assert curve.seconds == pytest.approx([1.0, 1.3, 1.3, 1.6])
    assert curve(np.array([1, 3, 6, 12])) == pytest.approx([1.0, 1.3, 1.45, 1.9])


def test_the_best_tau_is_the_simulated_best():
    texts = texts_of("iid 0.8", texts=30)
    trace, rates = simulate(Machine(), texts, range(1, 17))
    best = best_of(predict(CycleCosts.of(trace), emitted_per_cycle(agreement_runs(trace), np.arange(17)), np.arange(17)))
    assert rates[best.tau] > 0.98 * max(rates.values())


def test_mean_agreement_is_alpha():
    trace, _ = simulate(Machine(), texts_of("clustered 0.7", texts=40), [3])
    assert mean_agreement(agreement_runs(trace)) == pytest.approx(0.7, abs=0.05)
