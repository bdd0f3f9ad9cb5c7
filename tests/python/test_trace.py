"""Engine.trace(): the core's records as columns. What they say is tests/cpp/trace_test.cc."""

import dataclasses

import numpy as np
import pytest
from paceline import Engine, Trace, demo_pair

PROMPT = "def add(a, b):\n"


def traced(**options):
    with Engine(*demo_pair(), num_speculative_tokens=3, warmup=False, **options) as engine:
        results = [engine.generate(PROMPT, max_tokens=40), engine.generate(PROMPT, max_tokens=30, temperature=0.8, seed=3)]
        return engine.trace(), results


def test_columns_have_the_types_and_shapes_that_they_are_said_to_have():
    trace, results = traced()
    assert len(trace) == sum(result.stats.num_cycles for result in results)
    for field in dataclasses.fields(Trace):
        column = getattr(trace, field.name)
        wide = field.name in ("drafted", "draft_logprob", "target_logprob", "agreement")
        assert column.shape == ((len(trace), 3) if wide else (len(trace),)), field.name
        assert f"numpy.{column.dtype}]" in str(field.type), field.name


def test_emitted_ids_are_the_text():
    trace, results = traced()
    for request, result in zip(np.unique(trace.request), results, strict=True):
        rows = trace.where(trace.request == request)
        assert [token for row in range(len(rows)) for token in rows.emitted_ids(row)] == list(result.token_ids)
        assert rows.accepted.sum() == result.stats.num_accepted_draft_tokens
        assert set(rows.reason) == {Trace.REASONS.index("fixed")} and set(rows.source) == {Trace.SOURCES.index("model")}


def test_an_empty_trace_has_its_columns():
    with Engine(*demo_pair(), warmup=False) as engine:
        assert len(engine.trace()) == 0 and engine.trace().agreement.shape == (0, 3)


def test_the_ring_keeps_the_newest():
    trace, _ = traced()
    last, _ = traced(trace_cycles=7)
    assert len(last) == 7 and (last.position == trace.position[-7:]).all()
    none, results = traced(trace_cycles=0)
    assert len(none) == 0 and len(results[0].token_ids) == 40


@pytest.mark.parametrize("rows", [-1, 2**20 + 1, 1.5, "many", True])
def test_trace_cycles_is_checked(rows):
    with pytest.raises(ValueError, match="trace_cycles must be"):
        Engine(*demo_pair(), trace_cycles=rows)


def test_a_closed_engine_has_no_trace():
    engine = Engine(*demo_pair(), warmup=False)
    engine.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.trace()


def test_a_trace_of_plain_decoding_has_no_columns_of_drafts():
    with Engine(demo_pair()[0]) as engine:
        engine.generate("import ", max_tokens=5, ignore_eos=True)
        trace = engine.trace()
    assert trace.drafted.shape == trace.agreement.shape == (5, 0) and len(trace.where(trace.cycle > 2)) == 3
