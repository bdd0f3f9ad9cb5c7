"""The registry of rows and the page made from it: nothing is named that does not exist, and nothing passes that did not run."""

import re
import tomllib

import nightly
import pytest
import reliability
import reliability_runs as runs
import reliability_table
from reliability_registry import ROOT, bugs, is_pytest, named_tests, rows, rules, tiers

COUNTS = {"MF": 9, "CF": 5, "PR": 9, "NU": 6, "KV": 8, "ST": 10, "RS": 5, "TH": 7, "CX": 4, "SK": 3, "GP": 6, "SE": 4}


def test_there_are_seventy_six_rows():
    assert [row["id"] for row in rows()] == [f"{prefix}{i + 1}" for prefix, count in COUNTS.items() for i in range(count)]
    assert len(rules()) == 13
    for row in rows():
        assert row["tier"] in tiers and row["fault"] and row["promise"] and row["tests"], row["id"]
    assert [row["id"] for row in rows() if row["tier"] == "gpu"] == ["ST10", "GP1", "GP3", "GP6"]
    for row in rows():
        assert (row["tier"] == "gpu") == any(test.startswith("gate ") for test in row["tests"]), row["id"]


def test_every_test_part_and_planted_bug_exists():
    assert reliability.missing(runs.pytest_nodes()) == {}
    assert reliability.wrong_bugs() == []


def test_every_planted_bug_finds_its_text():
    for path in ("tests/cpp/mutants.toml", "tests/audit/faults.toml"):
        lost = [mutant["name"] for mutant in tomllib.loads((ROOT / path).read_text())["mutant"]
                if (ROOT / mutant["file"]).read_text().count(mutant["old"]) != 1]
        assert lost == [], path


def test_the_page_is_made_of_the_registry():
    page = ROOT / "docs/reliability.md"
    text = page.read_text()
    assert reliability_table.page(text, rows(), bugs(), rules(), reliability.load(reliability.WRITTEN)) == text, "tools/reliability.py --write"
    table = {line.split("|")[1].strip(): line.split("|") for line in text.splitlines() if re.match(r"\| [A-Z]{2}\d+ \|", line)}
    assert list(table) == [row["id"] for row in rows()]
    for row in rows():
        assert re.findall(r"`([^`]+)`", table[row["id"]][4]) == [test.removeprefix("tests/python/") for test in row["tests"]]


@pytest.mark.parametrize("test, why", [
    ("law_test joint_law", "a part of a case's name is none"), ("no_such_test", "no program"), ("limits_test no_such_case", "no case"),
    ("tests/python/test_reliability.py::test_no_such", "no function"), ("tests/python/test_nowhere.py::*", "no file"), ("nightly nap", "no part"),
    ("gate garden x", "no part of the gate")])
def test_what_does_not_exist_is_missing(monkeypatch, test, why):
    monkeypatch.setattr(reliability, "rows", lambda: [dict(id="XX1", tests=[test, "law_test joint_law_coupled"])])
    assert list(reliability.missing(["tests/python/test_reliability.py::test_it[a]"])) == [test], why


def test_a_bug_that_nobody_plants_is_said(monkeypatch):
    monkeypatch.setattr(reliability, "bugs", lambda: [dict(bug="b", planted=["no length clamp", "nobody plants this"]), dict(bug="c", planted=[])])
    monkeypatch.setattr(reliability, "rules", lambda: [])
    assert reliability.wrong_bugs() == ["b: no planted bug 'nobody plants this'", "c: nothing is planted"]


PROGRAM = """#!/bin/sh
for each in "$@"; do
  case $each in good) echo "ok    good";; bad) echo "FAIL  bad: wrong"; status=1;; setting) test "$SETTING" = 1 && echo "ok    setting";; esac
done
exit $status
"""


def test_cases_of_programs_pass_by_their_own_line_alone(tmp_path, monkeypatch, capfd):
    (tmp_path / "some_test").write_text(PROGRAM)
    (tmp_path / "some_test").chmod(0o755)
    monkeypatch.setattr(runs, "BUILD", tmp_path)
    monkeypatch.setattr(runs, "cases_of", lambda program: {"some_test": ["good", "bad", "crashed", "setting"], "not_built": ["good"]}.get(program, []))
    assert runs.cpp_results(["some_test good", "some_test bad", "some_test crashed", "some_test setting", "SETTING=1 some_test setting", "some_test",
                             "not_built good"]) == {
        "some_test good": "passed", "some_test bad": "failed", "some_test crashed": "failed", "some_test setting": "failed",
        "SETTING=1 some_test setting": "passed", "some_test": "failed", "not_built good": "failed"}
    assert "bad: wrong" in capfd.readouterr().err


REPORT = """<testsuites><testsuite>
<testcase classname="tests.python.test_a" name="test_good[1]"/><testcase classname="tests.python.test_a" name="test_good[2]"/>
<testcase classname="tests.python.test_a" name="test_bad[1]"/><testcase classname="tests.python.test_a" name="test_bad[2]"><failure/></testcase>
<testcase classname="tests.python.test_a" name="test_skipped"><skipped/></testcase>
<testcase classname="tests.python.test_a" name="test_broken"><error/></testcase>
</testsuite></testsuites>"""


def test_a_skipped_test_has_not_passed(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    assert runs.outcomes_of(tmp_path / "report.xml") == {
        f"tests/python/test_a.py::{name}": outcome for name, outcome in
        {"test_good": "passed", "test_bad": "failed", "test_skipped": "not run", "test_broken": "failed"}.items()}


def test_rows_are_bad_without_tests_and_with_any_that_did_not_pass(capsys):
    row = dict(id="XX1", tier="test")
    assert reliability.show([row | dict(tests=["a", "b"])], {"a": "passed", "b": "passed"}, {}) == 0
    for result in (reliability.FAILED, reliability.MISSING, reliability.NOT_RUN):
        assert reliability.show([row | dict(tests=["a", "b"])], {"a": "passed", "b": result}, {}) == 1
    assert reliability.show([row | dict(tests=[])], {}, {}) == 1
    for kept, tier, bad in ((["failed", "2026-01-01"], "nightly", 1), (["passed", "2026-01-01"], "nightly", 0), (None, "nightly", 1), (None, "gpu", 0)):
        elsewhere = row | dict(tests=["nightly soak"], tier=tier)
        kept = {"nightly soak": kept} if kept else {}
        assert reliability.show([elsewhere], {}, kept) == bad and reliability.holds(elsewhere, {}, kept) == (not bad)
    assert "failed 2026-01-01" in capsys.readouterr().out


@pytest.mark.parametrize("results, said", [
    ({}, "never run"), ({"a": ["passed", "2026-01-02"], "b": ["passed", "2026-01-01"]}, "passed, 2026-01-01"),
    ({"a": ["passed", "2026-01-02"]}, "passed, 2026-01-02; 1 of 2 never run"),
    ({"a": ["passed", "2026-01-02"], "b": ["not run", "2026-01-03"]}, "**not run**, 2026-01-03"),
    ({"a": ["missing", "2026-01-02"], "b": ["failed", "2026-01-03"]}, "**failed**, 2026-01-03")])
def test_a_row_s_last_result_is_its_worst(results, said):
    assert reliability_table.last(dict(tests=["a", "b"]), results) == said


def test_a_statistic_fails_only_when_it_fails_again():
    calls = []

    def run(failing):
        def call(program, seconds, **settings):
            calls.append((settings["PACELINE_TEST_SEED"], settings["PACELINE_TEST_SCALE"]))
            if len(calls) in failing:
                raise nightly.Failed("X2")
        return call

    nightly.repeated("law_test", 5, 2, run({1}))
    assert calls == [("5", "2"), ("6", "8")]
    calls.clear()
    with pytest.raises(nightly.Failed):
        nightly.repeated("law_test", 5, 2, run({1, 2}))


def test_a_program_that_fails_or_hangs_fails_its_part():
    nightly.call("true", seconds=10)
    for command, seconds in ((["false"], 10), (["sleep", "5"], 0.1), (["/no/such"], 1)):
        with pytest.raises(nightly.Failed):
            nightly.call(*command, seconds=seconds)


def test_a_trend_is_found_where_there_is_one():
    from decay import mistakes_in

    noise = [((i * 7919) % 101) / 101 for i in range(60)]
    flat = [(0.7 + 0.01 * x, 3 + 0.1 * x, 5 + x) for x in noise]
    assert mistakes_in(flat) == [] == mistakes_in([(0.7, 3.0, 5.0)] * 60)
    fading = [(a - 0.001 * i, b - 0.01 * i, c + 0.1 * i) for i, (a, b, c) in enumerate(flat)]
    assert [each.split(":")[0] for each in mistakes_in(fading)] == ["acceptance falls", "tokens per cycle fall", "slow cycles get slower"]


def test_no_row_stands_on_what_needs_a_night_or_a_device_alone():
    for row in rows():
        if row["id"] != "SK2":  # a trend needs time
            assert any(is_pytest(test) or not test.startswith(("nightly ", "gate ")) for test in row["tests"]), row["id"]
    assert named_tests(rows())
