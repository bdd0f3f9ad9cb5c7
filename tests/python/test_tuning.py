"""Which candidate is recommended, and the file that says so."""

import json

import numpy as np
import paceline
import pytest
from cycle_simulator import Machine, iid, simulate
from paceline import ModelFileError
from paceline.commands.prompts import read_prompts
from paceline.diagnosis.diagnose import diagnose_traces
from paceline.engine_config import write_config
from paceline.tuning import Candidate, choose_tau, ranked

TARGET, DRAFT = map(str, paceline.demo_pair())


def candidate(draft="d", measured=2.0, latency=0.01, tau=4):
    return Candidate(draft=draft, draft_dtype="bf16", tau=tau, predicted=measured, measured=measured, tokens_per_second=50 * measured, latency=latency)


PLAIN = candidate(None, 1.0, 0.005, 0)


@pytest.mark.parametrize("found, limit, best", [
    ([candidate("a", 1.5), candidate("b", 2.5)], None, "b"),
    ([candidate("a", 1.5), candidate("b", 2.5, latency=0.05)], 0.02, "a"),  # the faster one breaks the limit
    ([candidate("a", 1.01), candidate("b", 0.7)], None, None),              # a mood of the machine is no gain
    ([candidate("a", 2.0, latency=0.05)], 0.02, None)])
def test_the_fastest_that_keeps_the_limit_is_recommended(found, limit, best):
    assert ranked(found, [PLAIN], limit)[0].draft == best
    assert len(ranked(found, [PLAIN], limit)) == len(found) + 1


@pytest.mark.parametrize("alpha", [0.5, 0.9])
def test_a_latency_limit_shortens_tau(alpha):
    machine, stream = Machine(), np.random.default_rng(0)
    trace, _ = simulate(machine, [iid(alpha, 160, stream) for _ in range(8)], [1, 4, 8])
    found = diagnose_traces(trace, tau=4)
    free = choose_tau(found, None, 8)
    assert 1 <= free <= 8
    limit = (machine.cycle(free - 1) + machine.cycle(free)) / 2
    limited = choose_tau(found, limit, 8)
    assert machine.cycle(limited) <= limit < machine.cycle(free)
    assert choose_tau(found, machine.cycle(0) / 2, 8) == 0  # none can keep it: plain decoding comes nearest


def test_a_draft_that_is_never_right_is_not_chosen():
    trace, _ = simulate(Machine(), [np.zeros(100)] * 4, [1, 4, 8])
    assert choose_tau(diagnose_traces(trace, tau=4), None, 8) == 0


@pytest.mark.parametrize("name, content, prompts", [
    ("p.txt", "def a(\n\n  import os\n", ["def a(", "  import os"]), ("p.json", '["a\\nb", {"prompt": "c"}, [1, 2]]', ["a\nb", "c", [1, 2]]),
    ("p.jsonl", '"a\\nb"\n{"prompt": [{"role": "user", "content": "x"}]}\n', ["a\nb", [{"role": "user", "content": "x"}]])])
def test_prompts_of_a_file(tmp_path, name, content, prompts):
    (tmp_path / name).write_text(content)
    assert read_prompts(str(tmp_path / name)) == prompts


@pytest.mark.parametrize("name, content", [("p.txt", b""), ("p.txt", b"\xff"), ("p.json", b"{}"), ("p.json", b"["), ("p.jsonl", b"x\n"), ("p.json", b"3")])
def test_a_file_without_prompts_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="^--prompts must"):
        read_prompts(str(tmp_path / name))


def test_a_config_is_an_engines_arguments(tmp_path):
    file = tmp_path / "pair.json"
    write_config(file, {"target": TARGET, "draft": DRAFT, "dtype": "int8", "draft_dtype": "int4", "num_speculative_tokens": 5}, {"measured": 2.0})
    with paceline.Engine(config=file) as engine:
        told = [engine.info[name] for name in ("target", "draft", "dtype", "draft_dtype", "num_speculative_tokens")]
        assert told == [TARGET, DRAFT, "int8", "int4", 5]
        assert len(engine.generate("def f(", max_tokens=4).token_ids) == 4
    with paceline.Engine(TARGET, config=file, num_speculative_tokens=2, warmup=False) as engine:  # what is said in the call goes first
        assert (engine.info["num_speculative_tokens"], engine.info["dtype"]) == (2, "int8")
    assert paceline.Engine.plan(config=file).weight_bytes > 0


def test_a_config_may_lie_and_be_read_anywhere(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    for name, path in (("t", TARGET), ("d", DRAFT)):
        (tmp_path / "models" / name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "pair.json", {"target": "models/t", "draft": "models/d"}, {})
    monkeypatch.chdir("/")
    paceline.Engine(config=tmp_path / "pair.json", warmup=False).close()


@pytest.mark.parametrize("content, error, said", [
    ("{", ModelFileError, "expected JSON"), ("{}", ModelFileError, '"paceline_config": 1'), ({"paceline_config": 2}, ModelFileError, "another file or format"),
    ({"paceline_config": 1, "trust": 1}, ModelFileError, "found trust"), ({"paceline_config": 1}, ValueError, "target must be"),
    ({"paceline_config": 1, "target": TARGET, "draft": DRAFT, "num_speculative_tokens": 65}, ValueError, r"num_speculative_tokens must be in \[0, 64\]"),
    ({"paceline_config": 1, "target": TARGET, "draft": 3}, ValueError, "draft must be"),
    ({"paceline_config": 1, "target": TARGET, "dtype": "int3"}, ValueError, "dtype must be one of"),
    ({"paceline_config": 1, "target": TARGET, "dtype": None}, ValueError, "dtype must be one of")])
def test_a_config_is_checked_like_arguments(tmp_path, content, error, said):
    (tmp_path / "pair.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(error, match=said):
        paceline.Engine(config=tmp_path / "pair.json", warmup=False)


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(ModelFileError, match="none.json: expected a regular file, found nothing"):
        paceline.Engine(config=tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"\[Engine\] target must be"):
        paceline.Engine()
