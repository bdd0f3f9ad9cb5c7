"""What passes cost, measured in a dozen of them and kept for the next engine."""

import json

import numpy as np
import pytest
from paceline import Engine, Trace, calibration, demo_pair
from paceline.calibration import MAX_PASSES, kinds_of_cycles, read_costs, write_costs

PROMPT = "def add(a, b):"


def reasons(trace, request):
    return [Trace.REASONS[each] for each in trace.reason[trace.request == request]]


def first_reasons(engine):
    """Why the cycles of a fresh request had their taus."""
    before = engine.trace().cycle
    engine.generate(PROMPT, max_tokens=30, ignore_eos=True)
    trace = engine.trace()
    return [Trace.REASONS[each] for each in trace.reason[trace.cycle > (int(before.max()) if len(before) else 0)]]


@pytest.mark.parametrize("tau", [0, 1, 2, 3, 5, 8, 20])
def test_it_takes_twelve_passes_at_most(tau):
    target, draft = demo_pair()
    with Engine(target, draft if tau else None, num_speculative_tokens=tau) as engine:
        found = engine.calibrate()
        trace = engine.trace()
        passes = len(trace) + int(trace.tau.sum())
        assert found.passes == passes <= MAX_PASSES and passes >= (3 if tau == 0 else 9)
        assert (trace.accepted == trace.tau).all() and len(trace) == len(np.unique(trace.cycle))
        assert found.target_pass[1] > 0 and found.rest > 0
        assert (found.draft_step is None) == (tau == 0)
        assert sorted(found.target_pass) == sorted({1, *(int(each) + 1 for each in trace.tau)})


def test_figures_are_the_trace_s():
    with Engine(*demo_pair(), num_speculative_tokens=4) as engine:
        found, trace = engine.calibrate(), engine.trace()
        for rows, seconds in found.target_pass.items():
            assert seconds == np.median(trace.verify_time[trace.rows == rows])
        drafted = trace.tau > 0
        assert found.draft_step == pytest.approx(np.median(trace.draft_time[drafted] / trace.tau[drafted]))


def test_a_calibrated_engine_knows_where_to_begin():
    for calibrated in (False, True):
        with Engine(*demo_pair(), policy="auto") as engine:
            if calibrated:
                engine.calibrate()
            assert ("start" in first_reasons(engine)[:1]) == (not calibrated)


def test_the_next_engine_begins_where_this_one_ended(tmp_path):
    options = {"policy": "auto", "cost_cache": tmp_path / "costs"}
    with Engine(*demo_pair(), **options) as engine:
        assert first_reasons(engine)[0] == "start" and engine.info["cost_cache"] == str(tmp_path / "costs")
        engine.generate(PROMPT, max_tokens=200, ignore_eos=True)
    (file,) = (tmp_path / "costs").iterdir()
    told = json.loads(file.read_text())
    assert told["about"]["num_speculative_tokens"] == 8 and len(told["cycles"]) >= 2
    with Engine(*demo_pair(), **options) as engine:
        assert "start" not in first_reasons(engine) and not any("cost_cache" in note for note in engine.info["notes"])
    with Engine(*demo_pair(), **options, draft_dtype="int8") as engine:  # another model: another file
        assert first_reasons(engine)[0] == "start"
    assert len(list((tmp_path / "costs").iterdir())) == 2


@pytest.mark.parametrize("damage, said", [
    (lambda text: text[:len(text) // 2], "cost_cache: "), (lambda text: "", "cost_cache: "),
    (lambda text: text.replace('"paceline_costs": 1', '"paceline_costs": 2'), 'expected "paceline_costs": 1'),
    (lambda text: json.dumps(json.loads(text) | {"cycles": [[1, 1, 0, 0.0, "x", 0.0]]}), "expected up to 64 cycles"),
    (lambda text: json.dumps(json.loads(text) | {"cycles": [[1, 1, 0, 0.0, -1.0, 0.0]]}), "expected up to 64 cycles"),
    (lambda text: json.dumps(json.loads(text) | {"cycles": [[9, 9, 0, 0.0, 1.0, 0.0]]}), "costs must be of cycles that this engine could run, got 9 sequences"),
])
def test_a_damaged_file_is_done_without(tmp_path, damage, said):
    options = {"policy": "auto", "cost_cache": tmp_path}
    with Engine(*demo_pair(), **options) as engine:
        engine.calibrate()
        engine.generate(PROMPT, max_tokens=40)
    (file,) = tmp_path.iterdir()
    file.write_text(damage(file.read_text()))
    with Engine(*demo_pair(), **options) as engine:
        (note,) = [each for each in engine.info["notes"] if "cost_cache" in each]
        assert said in note and str(file) in note and note.endswith("; done without")
        assert first_reasons(engine)[0] == "start"
    assert read_costs(file)[1] is None  # written anew


def test_a_directory_that_cannot_be_written_costs_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with Engine(*demo_pair(), policy="auto", cost_cache=tmp_path / "file") as engine:
        engine.calibrate()


def test_kinds_are_medians_of_what_ran_often(tmp_path):
    with Engine(*demo_pair(), num_speculative_tokens=3, max_num_seqs=2) as engine:
        engine.generate_batch([PROMPT, "class A:"], max_tokens=60, ignore_eos=True)
        for tau in (0, 3):
            engine.generate(PROMPT, max_tokens=60, ignore_eos=True, num_speculative_tokens=tau)
        trace = engine.trace()
    found = kinds_of_cycles(trace)
    assert [each[2] for each in found] == sorted((each[2] for each in found), reverse=True) and {each[0] for each in found} == {1, 2}
    for sequences, rows, steps, draft, verify, rest in found:
        _, first = np.unique(trace.cycle, return_index=True)
        taus = np.array([trace.tau[trace.cycle == number].max() for number in trace.cycle[first]])
        same = first[(trace.sequences[first] == sequences) & (trace.rows[first] == rows) & (taus == steps)]
        assert len(same) >= calibration.FEW and verify == np.median(trace.verify_time[same]) and draft == np.median(trace.draft_time[same]) and rest > 0
    write_costs(tmp_path / "x.json", {"a": 1}, found)
    assert read_costs(tmp_path / "x.json") == (found, None) and list(tmp_path.iterdir()) == [tmp_path / "x.json"]


def test_what_the_text_drafts_takes_no_step_of_a_draft(tmp_path):
    with Engine(demo_pair()[0], "ngram", policy="auto", cost_cache=tmp_path) as engine:
        engine.generate([7, 8, 9] * 20, max_tokens=80, ignore_eos=True, logit_bias={7: 100.0})
        kinds = kinds_of_cycles(engine.trace())
    assert any(rows > sequences for sequences, rows, *_ in kinds) and all(steps == 0 for _, _, steps, *_ in kinds)
    with Engine(demo_pair()[0], "ngram", policy="auto", cost_cache=tmp_path) as engine:
        assert not [each for each in engine.info["notes"] if "cost_cache" in each]


def test_cycles_with_rows_of_a_stranger_teach_nothing():
    with Engine(*demo_pair(), num_speculative_tokens=3, max_num_seqs=2) as engine:
        engine.generate_batch([PROMPT, "class A:"], max_tokens=60, ignore_eos=True)
        trace = engine.trace()
    half = trace.where(trace.request == trace.request.min())
    assert kinds_of_cycles(trace) and not [each for each in kinds_of_cycles(half) if each[0] == 2]


@pytest.mark.parametrize("options, said", [
    ({"cost_cache": "x"}, 'cost_cache must be None with policy="fixed", which goes by no costs, got \'x\''),
    ({"policy": "auto", "cost_cache": 3}, "cost_cache must be a path"), ({"policy": "budget", "verify_budget": 4, "cost_cache": "x"}, 'with policy="budget"')])
def test_what_keeps_no_costs_is_refused(options, said):
    with pytest.raises(ValueError) as error:
        Engine(*demo_pair(), **options)
    assert said in str(error.value) and str(error.value).startswith("[Engine] ")


def test_no_trace_no_calibration():
    with Engine(*demo_pair(), trace_cycles=0) as engine, pytest.raises(ValueError, match=r"\[calibrate\] trace_cycles must be at least 12 in the engine, got 0"):
        engine.calibrate()
