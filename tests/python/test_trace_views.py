"""The two views of a trace: nested, complete, and the same columns again when read back."""

import dataclasses
import json

import numpy as np
import pytest
from cycle_simulator import Machine, Simulator, iid
from paceline.cycle_view import cycle_lines, summary_line
from paceline.timeline import read_timeline, timeline, write_timeline
from paceline.trace import Trace

TEXTS = {i: f" t{i}" for i in range(0, 1000, 2)}  # every other id has none


def trace_of(sequences=2, tau=4):
    stream = np.random.default_rng(2)
    simulator = Simulator(Machine(), sequences=sequences)
    for _ in range(2):
        simulator.run([iid(0.7, 60, stream) for _ in range(sequences)], tau)
    return simulator.trace()


def slices(events, pid, tid):
    return [e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (pid, tid)]


def not_nested(events):
    """Slices of a track that overlap without one holding the other: what a viewer drops or draws wrongly. Times in nanoseconds."""
    wrong = []
    for track in {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"}:
        stack = []
        for e in sorted(slices(events, *track), key=lambda e: (e["ts"], -e["dur"])):
            begin, end = round(1e3 * e["ts"]), round(1e3 * e["ts"]) + round(1e3 * e["dur"])
            while stack and stack[-1] <= begin and not (stack[-1] == begin == end):
                stack.pop()
            if stack and end > stack[-1]:
                wrong.append(e)
            stack.append(end)
    return wrong


def test_every_cycle_holds_its_parts_in_their_order():
    trace = trace_of()
    events = timeline(trace, TEXTS)["traceEvents"]
    assert not_nested(events) == []
    of_engine = slices(events, 1, 1)
    cycles = [e for e in of_engine if e["name"].startswith("cycle")]
    assert [e["name"] for e in cycles] == [f"cycle {i}" for i in np.unique(trace.cycle)]
    for e in cycles:
        rows = trace.where(trace.cycle == int(e["name"].split()[1]))
        inside = [each for each in of_engine if each is not e and e["ts"] <= each["ts"] and each["ts"] + each["dur"] <= e["ts"] + e["dur"] + 1e-6]
        rejected = (rows.accepted < rows.tau).any()
        assert [each["name"] for each in inside] == [
            *(f"draft {k + 1}" for k in range(rows.tau.max())), "verify", "accept", *(["rollback"] if rejected else [])]
        assert e["dur"] == pytest.approx(1e6 * (rows.draft_time + rows.verify_time + rows.sample_time)[0], abs=0.01)
        assert inside[-1]["args"] == {"drafts": (rows.tau - rows.accepted).sum()} if rejected else inside[-1]["name"] == "accept"


def test_a_planted_overlap_is_found():
    events = timeline(trace_of(), TEXTS)["traceEvents"]
    longest = max((e for e in events if e.get("name") == "verify"), key=lambda e: e["dur"])
    longest["dur"] *= 3
    assert not_nested(events)


def test_counters_and_one_flow_per_request():
    trace = trace_of()
    events = timeline(trace, TEXTS)["traceEvents"]
    for name in ("accepted", "tau"):
        counted = [e["args"][name] for e in events if e["ph"] == "C" and e["name"] == name]
        assert counted == [getattr(trace, name)[trace.cycle == cycle].sum() for cycle in np.unique(trace.cycle)]
    for request in np.unique(trace.request):
        flow = [e for e in events if e["ph"] in "stf" and e["id"] == request]
        assert "".join(e["ph"] for e in flow) == "s" + "t" * ((trace.request == request).sum() - 2) + "f"
        mine = slices(events, 2, request)
        for step, part in zip(flow, mine, strict=True):  # a flow binds to the slice that it lies in
            assert part["ts"] <= step["ts"] <= part["ts"] + part["dur"] and step["pid"] == part["pid"] and step["tid"] == part["tid"]
        assert [part["name"] for part in mine] == [f"+{n}" for n in trace.emitted[trace.request == request]]


def test_cycles_that_were_launched_ahead_do_not_overlap_on_their_track():
    trace = trace_of(sequences=1)
    trace.start[1:] = trace.start[:-1] + 1e-4
    assert not_nested(timeline(trace, TEXTS)["traceEvents"]) == []


def test_the_file_gives_the_columns_back(tmp_path):
    trace = trace_of()
    write_timeline(tmp_path / "out.json", trace, TEXTS)
    json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)  # no NaN, which is not JSON
    again, texts = read_timeline(tmp_path / "out.json")
    for field in dataclasses.fields(Trace):
        before, after = getattr(trace, field.name), getattr(again, field.name)
        assert before.dtype == after.dtype and np.array_equal(before, after, equal_nan=before.dtype.kind == "f"), field.name
    assert texts == {i: text for i, text in TEXTS.items() if i in set(trace.drafted.flat) | set(trace.extra_token)}


@pytest.mark.parametrize("content", [
    "", "[]", "{}", '{"paceline": 1}', '{"paceline": {"format": 2}}', '{"traceEvents": []}',
    lambda told: told["columns"].pop("tau"), lambda told: told["columns"]["tau"].pop(), lambda told: told["columns"]["tau"].__setitem__(0, 99),
    lambda told: told["columns"].__setitem__("reason", [200] * len(told["columns"]["tau"])), lambda told: told.__setitem__("tau_max", 7),
    lambda told: told["columns"].__setitem__("start", [[1.0]] * len(told["columns"]["tau"]))])
def test_any_other_file_is_refused(tmp_path, content):
    path = tmp_path / "other.json"
    if callable(content):
        told = timeline(trace_of(), TEXTS)
        content(told["paceline"])
        content = json.dumps(told)
    path.write_text(content)
    with pytest.raises(ValueError, match=r"^\[trace\] .*other.json must be a file of"):
        read_timeline(path)


def test_a_line_per_cycle_marks_what_became_of_each_draft():
    trace = trace_of(sequences=1)
    lines = list(cycle_lines(trace, TEXTS))
    assert len(lines) == 2 + len(trace)
    for row, line in enumerate(lines[2:]):
        tokens = line[line.index(f"{1e3 * trace.host_time[row]:.3f}"):].split("  ", 1)[1]
        tau, accepted = trace.tau[row], trace.accepted[row]
        expected = []
        for k in range(tau):
            mark = "+" if k < accepted else "-" if k == accepted else "."
            token = trace.drafted[row, k]
            expected.append(mark + TEXTS.get(token, f"<{token}>") + mark)
        assert tokens == " ".join([*expected, "[<7>]"]) and line.split()[:3] == [str(each[row]) for each in (trace.cycle, trace.request, trace.position)]
    assert f"{trace.emitted.sum()} tokens" in summary_line(trace)


def test_a_text_cannot_command_the_terminal():
    trace = trace_of(sequences=1)
    shown = "\n".join(cycle_lines(trace, {i: "\x1b[2J\r\n\u202e" for i in range(1000)}))
    assert "\x1b" not in shown and "\u202e" not in shown and "\r" not in shown and len(shown.splitlines()) == 2 + len(trace)


def test_what_a_limit_cut_off_is_not_shown_as_judged():
    trace = trace_of(sequences=1)
    row = int(np.flatnonzero(trace.accepted >= 3)[0])
    trace.emitted[row], trace.extra_token[row] = 2, -1
    line = list(cycle_lines(trace, {}))[2 + row]
    first, second, third, *_ = (f"<{i}>" for i in trace.drafted[row])
    assert f"+{first}+ +{second}+ .{third}." in line and "[" not in line.split("  ")[-1]
    assert trace.emitted_ids(row) == trace.drafted[row, :2].tolist()
