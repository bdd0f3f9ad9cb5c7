"""Which candidate is recommended, and the file that says so."""

import contextlib
import dataclasses
import json

import numpy as np
import paceline
import pytest
from cycle_simulator import Machine, iid, simulate
from paceline import ModelFileError, tuning
from paceline.cli import main
from paceline.commands.prompts import read_prompts
from paceline.commands.tune import chosen_arguments, table
from paceline.diagnosis.diagnose import diagnose_traces
from paceline.engine_config import write_config
from paceline.tuning import MEASURED_TAUS, Candidate, Tuning, choose_measured, choose_tau, ranked, tune

TARGET, DRAFT = map(str, paceline.demo_pair())


def candidate(draft="d", measured=2.0, latency=0.01, tau=4, drafter="auto"):
    return Candidate(draft=draft, drafter=drafter, draft_dtype="bf16", tau=tau, predicted=measured, measured=measured, tokens_per_second=50 * measured,
                     latency=latency)


@contextlib.contextmanager
def recorded_engines():
    """Inside, the info of every engine that tuning builds, in order."""
    built, original = [], tuning.Engine

    def recorded(*args, **options):
        engine = original(*args, **options)
        built.append(engine.info)
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "Engine", recorded)
        yield built


PLAIN = candidate(None, 1.0, 0.005, 0)


@pytest.mark.parametrize("found, limit, best", [
    ([candidate("a", 1.5), candidate("b", 2.5)], None, "b"),
    ([candidate("a", 1.5), candidate("b", 2.5, latency=0.05)], 0.02, "a"),  # the faster one breaks the limit
    ([candidate("a", 1.01), candidate("b", 0.7)], None, None),              # a mood of the machine is no gain
    ([candidate("a", 2.0, latency=0.05)], 0.02, None)])
def test_the_fastest_that_keeps_the_limit_is_recommended(found, limit, best):
    assert ranked(found, [PLAIN], limit)[0].draft == best
    assert len(ranked(found, [PLAIN], limit)) == len(found) + 1


@pytest.mark.parametrize("latencies, closest", [((0.03, 0.02, 0.01), None), ((0.03, 0.008, 0.01), "b"), ((0.009, 0.03, 0.01), "a")])
def test_where_nothing_keeps_the_limit_the_closest_comes_first(latencies, closest):
    found = [candidate("a", 3.0, latencies[0]), candidate("b", 0.5, latencies[1])]
    result = Tuning(candidates=ranked(found, [candidate(None, 1.0, latencies[2], 0)], 0.005), latency_limit=0.005)
    assert result.best.draft == closest and not result.keeps_latency
    assert [each.latency for each in result.candidates] == sorted(latencies)
    said = "\n".join(table(result, None))
    assert "Recommended" not in said and said.count("(above the limit)") == 3
    name = "no draft" if closest is None else f"{closest} in bf16, tau 4"
    assert said.endswith(f"Nothing keeps 5 ms: plain decoding alone takes 10 ms between two chunks (p99); the closest is {name}, {1e3 * min(latencies):.3g} ms.")


def test_who_keeps_the_limit_is_recommended_as_ever():
    result = Tuning(candidates=ranked([candidate("ngram", 1.5, 0.004), candidate("a", 2.0, 0.006)], [PLAIN], 0.005), latency_limit=0.005)
    assert result.keeps_latency and "Recommended: ngram, tau 4, 1.50 times" in "\n".join(table(result, None))
    assert Tuning(candidates=ranked([], [PLAIN], None), latency_limit=None).keeps_latency


@pytest.mark.parametrize("speeds, limit, tau", [
    ((1.2, 1.5, 1.4, 0.9), None, 2), ((1.2, 1.5, 1.4, 1.6), 0.045, 2), ((1.2, 1.5, 1.4, 1.6), 0.015, 1), ((0.9, 0.8, 0.7, 1.0), None, None),
    ((1.2, 1.5, 1.4, 1.6), 0.005, None)])
def test_where_nothing_can_be_predicted_the_fastest_measured_tau_within_the_limit_is_taken(speeds, limit, tau):
    tried = [candidate("ngram", speed, 0.01 * each, each) for each, speed in zip(MEASURED_TAUS, speeds, strict=True)]
    chosen = choose_measured(tried, limit)
    assert (chosen and chosen.tau) == tau


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


@pytest.mark.parametrize("best, drafts", [
    (candidate("ngram", tau=7), (None, "ngram", 7)), (candidate(DRAFT, tau=2, drafter="chain"), (DRAFT, "chain", 2)), (candidate(DRAFT), (DRAFT, "model", 4)),
    (PLAIN, (None, None, 0))])
def test_a_config_carries_whoever_was_chosen(tmp_path, monkeypatch, best, drafts):
    (tmp_path / "ngram").mkdir()  # a path would lead there
    monkeypatch.chdir(tmp_path)
    best = dataclasses.replace(best, draft_dtype="auto" if best.draft in (None, "ngram") else "int4")
    write_config(tmp_path / "pair.json", chosen_arguments(TARGET, "int8", best), {})
    monkeypatch.chdir("/")
    with paceline.Engine(config=tmp_path / "pair.json") as engine:
        assert tuple(engine.info[name] for name in ("draft", "drafter", "num_speculative_tokens")) == drafts
        assert engine.info["draft_dtype"] == (None if drafts[0] is None else "int4")
        engine.generate("x = [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2,", max_tokens=24)
        sources = {engine.trace().SOURCES[each] for each in engine.trace().source[engine.trace().tau > 0]}
    assert sources == {None: set(), "model": {"model"}, "ngram": {"ngram"}}.get(drafts[1], sources)
    assert drafts[1] != "chain" or "ngram" in sources


def test_every_kind_of_drafter_runs_and_is_judged():
    with recorded_engines() as built:
        found = tune(TARGET, [DRAFT], ["def f(x):\n    return", "import os\n"], draft_dtypes=["bf16", "int4"], max_tokens=12, repetitions=1)
    models = [each for each in found.candidates if each.draft == DRAFT and each.drafter == "auto"]
    best = max(models, key=lambda each: each.predicted)
    kinds = sorted((str(each.draft), each.drafter, each.draft_dtype) for each in found.candidates)
    assert kinds == sorted([(DRAFT, "auto", "bf16"), (DRAFT, "auto", "int4"), (DRAFT, "chain", best.draft_dtype), ("ngram", "auto", "auto"), ("None", "auto", "auto")])
    assert [each["drafter"] for each in built] == ["model", "model", "chain", "ngram"]  # as the engines say, not their arguments
    for each in found.candidates:
        assert each.tokens_per_second > 0 and 0 < each.latency < 60 and each.predicted > 0
        assert each.tau in {None: (0,), "ngram": MEASURED_TAUS}.get(each.draft, range(1, 9))


def test_only_the_drafters_asked_for_run():
    with recorded_engines() as built:
        found = tune(TARGET, [], ["import os\n"], drafters=["ngram"], max_tokens=4, repetitions=1)
        tune(TARGET, [DRAFT], ["import os\n"], drafters=["chain"], max_tokens=4, repetitions=1)
    assert [each["drafter"] for each in built] == ["ngram", "chain"]
    assert {each.draft for each in found.candidates} == {"ngram", None}


@pytest.mark.parametrize("drafts, drafters", [([], ["model"]), ([], ["chain"]), (["ngram"], ["model", "ngram"]), ([DRAFT], ["tree"]), ([DRAFT], [])])
def test_what_cannot_be_tuned_is_refused(drafts, drafters):
    with pytest.raises(ValueError, match=r"^\[tune\] drafters must be (at least )?one of|^\[tune\] drafts must be directories of checkpoints"):
        tune(TARGET, drafts, ["x"], drafters=drafters)


def test_the_command_says_in_json_that_nothing_keeps_the_limit(tmp_path, capsys):
    out = tmp_path / "best.json"
    (tmp_path / "p.txt").write_text("import os\n")
    main(["tune", "--target", TARGET, "--drafters", "ngram", "--prompts", str(tmp_path / "p.txt"), "--max-tokens", "4", "--repetitions", "1",
          "--latency-ms", "0.0001", "--json", "--out", str(out)])
    told = json.loads(capsys.readouterr().out)
    assert told["keeps_latency"] is False and json.loads(out.read_text())["about"]["keeps_latency"] is False
    assert told["best"] == min(told["candidates"], key=lambda each: each["latency"])


def test_a_config_may_lie_and_be_read_anywhere(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    for name, path in (("t", TARGET), ("d", DRAFT)):
        (tmp_path / "models" / name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "pair.json", {"target": "models/t", "draft": "models/d"}, {})
    monkeypatch.chdir("/")
    paceline.Engine(config=tmp_path / "pair.json", warmup=False).close()


def test_commands_read_a_config_and_what_is_said_beside_it_counts_more(tmp_path, capsys):
    write_config(tmp_path / "pair.json", {"target": TARGET, "draft": DRAFT, "num_speculative_tokens": 3}, {})
    drafted = []
    for beside in ([], ["--num-speculative-tokens", "1"]):
        assert main(["generate", "import os", "--config", str(tmp_path / "pair.json"), "--max-tokens", "8", "--json", *beside]) == 0
        drafted.append(len(json.loads(capsys.readouterr().out)["stats"]["drafted_per_position"]))
    assert drafted == [3, 1]
    (tmp_path / "pair.json").write_text("{}")
    assert main(["generate", "import os", "--config", str(tmp_path / "pair.json")]) == 1
    assert 'expected "paceline_config": 1' in capsys.readouterr().err


@pytest.mark.parametrize("content, error, said", [
    ("{", ModelFileError, "expected JSON"), ("{}", ModelFileError, '"paceline_config": 1'), ({"paceline_config": 2}, ModelFileError, "another file or format"),
    ({"paceline_config": 1, "trust": 1}, ModelFileError, "found trust"),
    ({"paceline_config": 1, "target": TARGET, "draft": DRAFT, "drafter": "tree"}, ValueError, "drafter must be one of auto, chain, got 'tree'"),
    ({"paceline_config": 1, "target": TARGET, "draft": "ngram", "drafter": "chain"}, ValueError, "drafter must be"), ({"paceline_config": 1}, ValueError, "target must be"),
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
