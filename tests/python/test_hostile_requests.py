"""Requests by somebody hostile or careless, row by row (PR1 to PR3, as far as arguments go): any value anywhere is taken or refused by
name, before anything is queued, and the engine is the same as before. Each test names its row."""

import dataclasses
import inspect
import math

import numpy as np
import paceline
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paceline import Engine, SamplingParams, demo_pair

FIELDS = [field.name for field in dataclasses.fields(SamplingParams)]
ODD = [-1, 0, 1, 2, 2047, 2048, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -2**63, 10**30, True, False, None, 0.0, -0.0, 0.5, 1.5, 1e-300, 1e300, math.nan, math.inf,
       -math.inf, np.int8(-1), np.int64(3), np.uint64(2**64 - 1), np.float32("nan"), np.float64(0.5), np.bool_(True), np.array(3), np.array([3]), np.array([[3]]), "", "3", "nan", b"3", [], [None],
       [1.5], [-1], [2**40], {}, {-1: 1.0}, {2**40: 1.0}, {0: math.nan}, {0: math.inf}, {0: "x"}, {"x": 1.0}, {0: None}, object(), lambda: 3, 3 + 4j, ("a", 3), ["\ud800"], [""]]


@pytest.fixture(scope="module")
def engine():
    with Engine(*demo_pair(), num_speculative_tokens=2, max_num_seqs=3, kv_cache_tokens=512) as engine:
        yield engine


def control(engine):
    return engine.generate([5, 6, 7], max_tokens=4, temperature=1.0, seed=1).token_ids


def refused_or_done(engine, prompt, **options):
    """Whether it ran. What is refused is refused by a typed error that names where."""
    before = engine.stats().num_requests
    try:
        result = engine.generate(prompt, **{"max_tokens": 2} | options)
    except (ValueError, paceline.CapacityError) as error:
        assert str(error).startswith("[generate] "), error
        assert engine.stats().num_requests == before
        return False
    except paceline.NumericError as error:  # a bias of 1e300 on every token leaves none
        assert "[generate]" in str(error) or "logits" in str(error) or "token" in str(error)
        return False
    assert 1 <= len(result.token_ids) <= 512 and all(0 <= token < 2048 for token in result.token_ids)
    assert result.logprobs is None or all(entry.logprob <= 0 and math.isfinite(entry.logprob) for entry in result.logprobs)
    return True


@pytest.mark.parametrize("field", FIELDS)
def test_pr1_any_value_in_any_field(engine, field):
    want = control(engine)
    ran = [refused_or_done(engine, [1, 2, 3], **{field: value}) for value in ODD]
    assert any(ran) and not all(ran) and control(engine) == want


ARGUMENTS = [name for name in inspect.signature(Engine).parameters if name not in ("target", "config", "warmup")]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_pr1_any_value_of_any_argument_of_an_engine(name, tmp_path, monkeypatch):
    """Taken, or refused by a typed error that names where; nothing is built for that. What goes with it is as a caller would have it."""
    monkeypatch.chdir(tmp_path)  # some of the values are names of directories
    beside = {"verify_budget": {"policy": "budget"}, "latency_target": {"policy": "latency"}, "cost_cache": {"policy": "auto"}}.get(name, {})
    arguments = {"target": demo_pair()[0], "draft": demo_pair()[1]} | beside
    ran = []
    for value in [*ODD, "auto", "bf16", "int4", "cpu", "fixed", "coupled", demo_pair()[1], tmp_path]:
        try:
            Engine.plan(**arguments | {name: value})
            ran.append(True)
        except (ValueError, paceline.CapacityError, paceline.ModelFileError) as error:
            assert str(error).startswith(("[Engine] ", "[plan] ", str(value))), (value, error)  # a file is named by its path
            ran.append(False)
    assert any(ran) and not all(ran)
    assert not list(tmp_path.iterdir())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=st.dictionaries(st.sampled_from([name for name in FIELDS if name != "max_tokens"]), st.sampled_from(ODD), max_size=5), prompt=st.sampled_from([[1, 2], "x", *ODD]))
def test_pr1_any_values_together(engine, options, prompt):
    refused_or_done(engine, prompt, **options)


def test_pr1_the_engine_is_the_same_after_all_that(engine):
    with Engine(*demo_pair(), num_speculative_tokens=2, max_num_seqs=3, kv_cache_tokens=512) as fresh:
        assert control(engine) == control(fresh)


@pytest.mark.parametrize("bad", [-1, 2048, 2**31, 2**63, -2**63])
@pytest.mark.parametrize("place", ["prompt", "stop_token_ids", "logit_bias"])
def test_pr2_an_id_that_does_not_exist_in_a_batch_under_way(engine, bad, place):
    """Two streams run while a third is refused: they end as they would have alone."""
    prompts = [[10, 11, 12], [20, 21]]
    alone = [engine.generate(prompt, max_tokens=20, temperature=1.0, seed=2).token_ids for prompt in prompts]
    streams = [engine.stream(prompt, max_tokens=20, temperature=1.0, seed=2) for prompt in prompts]
    tokens = [list(next(stream).token_ids) for stream in streams]
    prompt, options = ([1, bad], {}) if place == "prompt" else ([1], {place: [bad] if place == "stop_token_ids" else {bad: 1.0}})
    with pytest.raises(ValueError, match=r"^\[generate\] .* must be in \["):
        engine.generate(prompt, **options)
    for stream, got in zip(streams, tokens, strict=True):
        got += [token for chunk in stream for token in chunk.token_ids]
    assert [tuple(got) for got in tokens] == alone


@pytest.mark.parametrize("good", [0, 2047])
def test_pr2_the_first_and_the_last_id_exist(engine, good):
    assert refused_or_done(engine, [good], stop_token_ids=[good], logit_bias={good: -1.0})


def test_pr3_lengths(engine):
    limit = engine.info["max_model_len"]
    assert not refused_or_done(engine, []) and not refused_or_done(engine, "") and refused_or_done(engine, [1])
    assert refused_or_done(engine, [1] * (limit - 1)) and not refused_or_done(engine, [1] * limit) and not refused_or_done(engine, [1] * (limit + 1))


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_pr3_arrays_of_any_integers(engine, kind):
    ids = [5, 6, 7, 100]
    want = engine.generate(ids, max_tokens=5).token_ids
    frozen = np.array(ids, kind)
    frozen.flags.writeable = False
    for prompt in (np.array(ids, kind), frozen, np.array([[i, 0] for i in ids], kind)[:, 0], np.array(ids[::-1], kind)[::-1], tuple(ids), iter(ids), range(5, 6)):
        got = engine.generate(prompt, max_tokens=5)
        assert got.token_ids == want or got.prompt_token_ids == (5,)


@pytest.mark.parametrize("prompt", [np.array([1.0, 2.0]), np.array([[1, 2]]), np.array(["a"]), np.array(3), np.array([True]), np.array([], float), [[1]], [np.array([1])], [None], {1: 2}, {1, "a"}])
def test_pr3_arrays_that_are_no_prompts(engine, prompt):
    assert not refused_or_done(engine, prompt)


def test_pr3_a_prompt_is_copied(engine):
    """Changed or gone while its request runs: nothing is read from it any more."""
    ids = np.array([5, 6, 7, 100])
    want = engine.generate(ids, max_tokens=30).token_ids
    stream = engine.stream(ids, max_tokens=30)
    ids[:] = 0
    del ids
    assert tuple(token for chunk in stream for token in chunk.token_ids) == want
