"""What a caller is told: errors name the method that was called, and say what was probably meant."""

import asyncio
import inspect
import json
import os

import paceline
import pytest
from paceline import Engine, SamplingParams, called, demo_pair, other_names
from paceline.cli import main
from paceline.commands import doctor
from paceline.arguments import THREADS_PER_CORE
from test_engine_api import overflowing

METHODS = ["submit", "generate", "stream", "generate_async", "stream_async", "generate_batch", "generate_batch_async"]


@pytest.fixture(scope="module")
def engine():
    with Engine(*demo_pair(), max_num_seqs=2, kv_cache_tokens=256, max_queue=0) as engine:
        yield engine


def call(engine, method, prompt, **options):
    """All of it, whichever method it is."""
    async def each(stream):
        return [chunk async for chunk in stream]

    if "batch" in method:
        prompt = [prompt]
    made = getattr(engine, method)(prompt, **options)
    if method == "submit":
        return made.result()
    if method == "stream_async":
        return asyncio.run(each(made))
    return asyncio.run(made) if inspect.iscoroutine(made) else list(made) if method == "stream" else made


def said(kind, engine, method, prompt, **options):
    with pytest.raises(kind) as error:
        call(engine, method, prompt, **options)
    return str(error.value)


@pytest.mark.parametrize("method", METHODS)
def test_an_error_names_the_method_that_was_called(engine, method):
    where = f"[{method}] " + ("prompts[0]: " if "batch" in method else "")
    assert said(ValueError, engine, method, "a", top_p=2.0) == where + "top_p must be in (0, 1], got 2"  # of the core
    assert said(ValueError, engine, method, "a", top_k="x") == where + "top_k must be an int, got 'x'"  # of the checks
    assert said(ValueError, engine, method, "") == where + "prompt must have at least 1 token, got 0"
    assert said(ValueError, engine, method, {"role": "user"}).startswith(where + "prompt must be text, token ids or messages")
    assert said(ValueError, engine, method, "a", sampling_params=3).startswith(f"[{method}] sampling_params must be a SamplingParams")
    assert said(paceline.CapacityError, engine, method, [1] * 300).startswith(where + "prompt of 300 tokens")
    assert said(TypeError, engine, method, "a", max_new_tokens=3) == where + "got an unexpected keyword argument 'max_new_tokens': did you mean max_tokens?"


@pytest.mark.parametrize("method", METHODS)
def test_so_does_a_full_queue(engine, method):
    running = [engine.stream([1, 2], max_tokens=100, ignore_eos=True) for _ in range(2)]
    assert said(paceline.CapacityError, engine, method, "a").startswith(f"[{method}] 0 requests wait already and max_queue = 0")
    for each in running:
        each.cancel()
        each.result()


def test_so_does_a_text_that_cannot_go_on(tmp_path):
    with Engine(overflowing(tmp_path / "target")) as engine:
        for method in METHODS:
            if "batch" in method:
                (result,) = call(engine, method, [1, 2])
                assert result.finish_reason == "error" and result.error.startswith(f"[{method}] the target's logits")
            else:
                assert said(paceline.NumericError, engine, method, [1, 2]).startswith(f"[{method}] the target's logits")


def test_parameters_made_apart_have_their_own_name():
    with pytest.raises(ValueError, match=r"^\[SamplingParams\] top_k must be an int, got 'x'$"):
        SamplingParams(top_k="x")


@pytest.mark.parametrize("name, hint", [
    ("max_new_tokens", "max_tokens"), ("n_predict", "max_tokens"), ("temprature", "temperature"), ("repeat_penalty", "repetition_penalty"),
    ("topp", "top_p"), ("stop_strings", "stop"), ("do_sample", "temperature (0 is greedy)"), ("beam_width_of_search", None)])
def test_an_unknown_parameter_is_guessed(name, hint):
    with pytest.raises(TypeError) as error:
        SamplingParams(**{name: 1})
    assert str(error.value) == f"[SamplingParams] got an unexpected keyword argument {name!r}" + (f": did you mean {hint}?" if hint else "")


def test_hints_are_parameters_and_change_nothing_else():
    parameters = inspect.signature(SamplingParams).parameters
    assert {hint.split(" ")[0] for hint in other_names._OURS.values()} <= set(parameters) and not set(other_names._OURS) & set(parameters)
    assert parameters["max_tokens"].kind is inspect.Parameter.KEYWORD_ONLY
    with pytest.raises(TypeError, match="positional"):
        SamplingParams(3)


def test_other_errors_keep_what_they_say():
    with pytest.raises(UnicodeDecodeError, match="invalid start byte"), called.called("stream"):
        b"\xff".decode()
    with pytest.raises(KeyError, match="generate"), called.called("stream"):
        raise KeyError("[generate] not ours")


def test_threads_are_honoured_within_reason():
    cores = len(os.sched_getaffinity(0))
    with Engine(*demo_pair()) as engine:
        assert engine.info["num_threads"] <= cores and not any("num_threads" in note for note in engine.info["notes"])
        usable = engine.info["num_threads"]  # a cgroup may grant less
        assert engine.info["device"].endswith(f"{usable} threads") and doctor.diagnosis()["cpu engine"].endswith(f" {usable} threads")
    with Engine(*demo_pair(), num_threads=usable + 1) as engine:
        assert engine.info["num_threads"] == usable + 1 and engine.info["device"].endswith(f"{usable + 1} threads")
        assert [note for note in engine.info["notes"] if note.startswith(f"num_threads: {usable + 1}, more than the cores")]
    with pytest.raises(ValueError, match=rf"^\[Engine\] num_threads must be in \[1, {THREADS_PER_CORE * usable}\], .* got 1000: None is one per core"):
        Engine(*demo_pair(), num_threads=1000)


@pytest.mark.parametrize("given", ["nowhere", "/a/b", "./a/b", "a/b/c", "a/b "])
def test_only_what_looks_like_a_model_of_the_hub_is_said_not_to_be_downloaded(given):
    with pytest.raises(ValueError, match="no such directory$"):
        Engine(given)


def test_the_doctor_speaks_json(capsys):
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == doctor.diagnosis()
