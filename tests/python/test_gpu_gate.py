"""The gate of bench/gpu_gate.py over the stub: every part runs to its end, and nothing is called passed that did not run."""

import fnmatch
import json
import os
import pathlib
import subprocess
import sys

import pytest
from gate import correctness, cycle, engine_worker, kernels
from gate.cells import FAILED, MEASURED, NOT_RUN, PASSED, Failed, Gate, NotRun, markdown
from gate.machine import Build
from reliability_registry import named_tests, rows

ROOT = pathlib.Path(__file__).resolve().parents[2]
FACTS = dict(date="today", command="python gate", stub=True, gpu="stub", driver=None, cuda=None, cublas=None, cpu="some", torch=None,
             commit=None)


def run_gate(part, out, **environment):
    done = subprocess.run([sys.executable, ROOT / "bench/gpu_gate.py", "--part", part, "--stub", "--out", out], capture_output=True,
                          text=True, env=os.environ | environment, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


def report(out, part):
    run = json.loads((out / f"{part}.json").read_text())
    assert [json.loads(line) for line in (out / f"{part}.cells.jsonl").read_text().splitlines()] == run["cells"]
    assert (out / f"{part}.md").read_text() == markdown(run)
    for cell in run["cells"]:
        assert cell["status"] in (PASSED, FAILED, MEASURED, NOT_RUN)
        assert bool(cell["reason"]) == (cell["status"] in (FAILED, NOT_RUN)), cell
    return run, {cell["name"]: cell for cell in run["cells"]}


@pytest.fixture(scope="module")
def stubbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("gate")
    assert run_gate("all", out) == 0
    return {part: report(out, part) for part in ("correctness", "kernels", "cycle", "peers")}


@pytest.mark.slow
def test_every_part_runs_over_the_stub(stubbed):
    for run, cells in stubbed.values():
        assert run["stub"] and run["gpu"] == "stub" and run["commit"] and run["date"] and cells["build"]["status"] == PASSED
        assert run["summary"][FAILED] == 0 and run["targets_met"] == run["targets_missed"] == 0  # the stub's times are judged by nobody
    correct, timed, cycles, peers = (cells for _, cells in stubbed.values())
    assert correct["parity of all tokens"]["data"]["tokens"] >= 16 and correct["parity, batch 2, T 0.8"]["status"] == PASSED
    assert correct["a cycle is one launch, without allocations or synchronisations"]["status"] == PASSED
    assert correct["seeded texts beside other work"]["data"]["runs"] == 1
    assert correct["row invariance from position 5, up to 3 rows"]["data"]["rows"] > 3
    for name in ("bandwidth, read", "tiny, bf16, qkv, 16 rows", "tiny, attention at 70, 4 rows",
                 "a cycle's own kernels, tau 4, vocabulary 3000, greedy"):
        assert timed[name]["status"] == MEASURED and timed[name]["data"]["microseconds"] > 0
    for name in ("tiny, alpha 0.8, batch 2, context 20, tau 1", "tiny, int4, tau 1"):
        assert cycles[name]["data"]["tokens_per_second"] > 0
    assert peers["ours, speculative"]["status"] == MEASURED


@pytest.mark.slow
def test_what_needs_a_device_is_not_called_passed(stubbed):
    correct, timed, cycles, peers = (cells for _, cells in stubbed.values())
    sanitized = [cell for name, cell in correct.items() if "check, " in name]
    assert len(sanitized) >= 24 and {name.split(", ")[0] for name in correct if "check, " in name} == {"memcheck", "racecheck", "initcheck", "synccheck"}
    for cell in [*sanitized, timed["ncu, the read kernel"], cycles["8B + 1B"]]:
        assert (cell["status"], cell["reason"]) == (NOT_RUN, "stub")
    assert peers["transformers, static cache and torch.compile"]["status"] == NOT_RUN


def test_a_failing_engine_is_a_failed_cell(tmp_path):
    assert run_gate("cycle", tmp_path, PACELINE_STUB_DRIVER="13000 0 0") == 1
    run, cells = report(tmp_path, "cycle")
    failed = [cell for cell in run["cells"] if cell["status"] == FAILED]
    assert [cell["name"] for cell in failed] == [
        "tiny, alpha 0.8, batch 1, context 20", "tiny, alpha 0.8, batch 2, context 20", "tiny alone", "tiny, int4"]
    assert all("the NVIDIA driver shows no device" in cell["reason"] for cell in failed)
    assert cells["8B + 1B"]["status"] == NOT_RUN and run["summary"][PASSED] == 2  # the others go on
    assert "**failed**" in (tmp_path / "cycle.md").read_text()


def raising(error):
    def body():
        raise error

    return body


def test_cells_are_kept_whatever_happens_in_them(tmp_path):
    gate = Gate("some", tmp_path, 1, stub=True, facts=FACTS)
    assert gate.cell("good", dict) and not gate.cell("bad", raising(Failed("wrong"))) and not gate.cell("broken", raising(KeyError("x")))
    gate.cell("absent", raising(NotRun("no tool")))
    gate.cell("late", dict, needs=61)
    gate.stream("dies", [sys.executable, "-c", "print('{\"cell\": \"first\", \"x\": 1}', flush=True); raise SystemExit('gone')"], limit=60)
    gate.stream("silent", [sys.executable, "-c", "pass"], limit=60)
    gate.stream("hangs", [sys.executable, "-c", "import time; time.sleep(60)"], limit=0.3)
    gate.stream("nowhere", ["no/such/program"], limit=1)
    assert gate.finish() == 1
    _, cells = report(tmp_path, "some")
    assert {name: cell["status"] for name, cell in cells.items()} == {
        "good": PASSED, "bad": FAILED, "broken": FAILED, "absent": NOT_RUN, "late": NOT_RUN, "first": MEASURED, "dies": FAILED,
        "silent": FAILED, "hangs": FAILED, "nowhere": NOT_RUN}
    assert "gone (1 results before that)" in cells["dies"]["reason"] and "did not end within 0.3 s" in cells["hangs"]["reason"]


def test_a_part_whose_time_is_over_says_so(tmp_path):
    gate = Gate("some", tmp_path, 0.005, stub=True, facts=FACTS)
    gate.stream("cut off", [sys.executable, "-c", "import time; time.sleep(60)"], limit=60)
    assert gate.cells[0]["status"] == NOT_RUN and gate.finish() == 2  # nothing failed, and nothing was shown


CLEAN = ["========= ERROR SUMMARY: 0 errors", "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"]


@pytest.mark.parametrize("said, status", [
    *((line, PASSED) for line in CLEAN), ("========= ERROR SUMMARY: 10 errors", FAILED), ("========= Error: Device not supported", NOT_RUN),
    ("nothing", FAILED)])
def test_a_sanitizer_passes_by_its_own_summary_alone(tmp_path, monkeypatch, said, status):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '{said}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    gate = Gate("some", tmp_path / "out", 1, stub=False, facts=FACTS)
    gate.cell("memcheck", correctness.sanitize(gate, Build(tmp_path, "device", dict(os.environ), tmp_path), "/bin/true", "memcheck", 60))
    assert gate.cells[0]["status"] == status


def test_every_other_summary_is_a_failure():
    for line in CLEAN:
        assert correctness.sanitized(0, f"ok rows\n{line}\n") == line.strip("= ")
        for status, said in ((86, line), (0, f"{line}\n========= ERROR SUMMARY: 1 error"), (0, f"========= ERROR SUMMARY: 1 error\n{line}")):
            with pytest.raises(Failed, match=f"status {status}, "):
                correctness.sanitized(status, said)
    for line in ("ERROR SUMMARY: 1 error", "ERROR SUMMARY: 20 errors", "RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)",
                 "RACECHECK SUMMARY: 10 hazards displayed (10 errors, 0 warnings)", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 3 warnings)",
                 "LEAK SUMMARY: 0 bytes leaked in 0 allocations", "SUMMARY: 0 errors", ""):
        with pytest.raises(Failed):
            correctness.sanitized(0, f"ok rows\n========= {line}\n")


def test_one_bit_apart_is_no_parity(capsys):
    plain = [([5, 6, 7], [-0.5, -0.25, -1.0]), ([8, 9], [-1.0, -2.0])]
    engine_worker.compare("same", plain, {0: plain, 3: plain})
    engine_worker.compare("token", plain, {0: plain, 3: [plain[0], ([8, 8], [-1.0, -2.0])]})
    engine_worker.compare("logprob", plain, {0: plain, 3: [([5, 6, 7], [-0.5, -0.25, -1.0000001]), plain[1]]})
    engine_worker.compare("shorter", plain, {4: [([5, 6], [-0.5, -0.25]), plain[1]]})
    same, *others = map(json.loads, capsys.readouterr().out.splitlines())
    assert same == {"cell": "same", "tokens": 10, "taus": "[0, 3]"}
    assert [each["failed"] for each in others] == [
        "tau 3, prompt 1: token 1 differs", "tau 3, prompt 0: lengths or logprobs differ", "tau 4, prompt 0: lengths or logprobs differ"]
    assert engine_worker.same_texts([{"texts": [[1, 2, 3], [4]]}, {"texts": [[1, 2], [4, 5]]}])
    assert not engine_worker.same_texts([{"texts": [[1, 2, 3], [4]]}, {"texts": [[1, 2], [3, 5]]}])


def test_a_parting_needs_rows_that_explain_it():
    cpu = [-1.00, -1.03, -9.0]
    assert engine_worker.unexplained("here", [-1.02, -1.01, -9.0], cpu, 1, 0) == ""
    assert "better by 0.0300 nats where the rows differ by 0.0200" in engine_worker.unexplained("here", [-1.0, -1.01, -9.0], cpu, 1, 0)
    assert "0.150 nats apart" in engine_worker.unexplained("here", [-1.1, -0.88, -9.0], cpu, 1, 0)
    assert "better by 8.0000 nats" in engine_worker.unexplained("here", cpu, cpu, 2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("test", [test for test in named_tests(rows()) if test.startswith("gate ")])
def test_the_gate_has_the_cells_that_rows_name(stubbed, test):
    _, part, cell = test.split(" ", 2)
    assert any(fnmatch.fnmatchcase(name, cell) for name in stubbed[part][1]), f"{part} has no cell {cell}"


def test_parity_needs_its_tokens(tmp_path):
    gate = Gate("some", tmp_path, 1, stub=False, facts=FACTS)
    gate.record("parity, batch 1, T 0.0", PASSED, data=dict(tokens=99))
    correctness.check_parity(gate, 100)
    gate.record("parity, batch 3, T 0.0", PASSED, data=dict(tokens=1))
    correctness.check_parity(gate, 100)
    gate.record("parity, batch 8, T 0.0", FAILED, reason="tau 3, prompt 1: token 7 differs")
    correctness.check_parity(gate, 100)
    assert [cell["status"] for cell in gate.cells if cell["name"] == "parity of all tokens"] == [NOT_RUN, PASSED, FAILED]


def test_every_target_has_a_cell_that_answers_it():
    data = dict(target_pass_ms=3.9, beyond_passes_us=31.0, tokens_per_second=500.0, over_one_row=1.04)
    answers = {what: met for case in cycle.llama_cases(pathlib.Path("x")) for tau in case["taus"]
               for what, _, _, met in cycle.targets(f"{case['label']}, tau {tau}", data | dict(tau=tau))}
    assert answers == {
        "milliseconds of an 8B pass at 2k": True, "microseconds of a cycle beyond its passes": False, "milliseconds of a 1B pass": False,
        "tokens/s at alpha 0.8 with a bf16 draft": True, "tokens/s at alpha 0.8 with an int4 draft": False, "T(16)/T(1)": True}
    assert [met for *_, met in kernels.targets("Llama-3.1-8B, bf16, qkv, 1 rows", dict(of_read=0.7, over_one_row=1.0))] == [False]
    assert [met for *_, met in kernels.targets("Llama-3.1-8B, bf16, qkv, 16 rows", dict(of_read=0.9, over_one_row=1.0))] == [True]
