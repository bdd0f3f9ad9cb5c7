"""What the integer formats cost in quality, on the bundled pair: the divergence of the target's distributions, and that nothing else changes."""

import inspect
import pathlib
import textwrap

import numpy as np
import pytest

import paceline
from paceline.bundled import demo_pair
from paceline.tokenizer import Tokenizer

TARGET, DRAFT = demo_pair()
TEXT = "\n".join(inspect.getsource(module) for module in (textwrap, pathlib))
WINDOW, WINDOWS = 480, 4


def logprobs(dtype):
    """[positions, V] of the target over the text."""
    ids = Tokenizer.read(TARGET).encode(TEXT)
    rows = []
    with paceline.Engine(TARGET, dtype=dtype, warmup=False) as engine:
        for first in range(0, WINDOW * WINDOWS, WINDOW):
            window = ids[first:first + WINDOW]
            rows.append(engine.verify(window[:1], window[1:]).logprobs.astype(np.float64))
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def exact():
    return logprobs("bf16")


# Measured 0.0009, 0.049 and 0.040 nats.
@pytest.mark.parametrize("dtype, bound", [("int8", 1e-3), ("int4", 0.06), ("int4_g32", 0.05)])
def test_divergence_of_a_quantised_target(exact, dtype, bound):
    other = logprobs(dtype)
    divergence = float((np.exp(exact) * (exact - other)).sum(-1).mean())
    assert 0 < divergence < bound


@pytest.mark.parametrize("dtype, draft_dtype", [("bf16", "int4"), ("int8", "int8"), ("int4", "int4_g32")])
def test_the_draft_changes_nothing_in_any_format(dtype, draft_dtype):
    prompts = ["def read_header(path):\n    ", "class Request:\n    def __init__(self"]
    with paceline.Engine(TARGET, DRAFT, dtype=dtype, draft_dtype=draft_dtype, max_num_seqs=2) as engine:
        assert (engine.info["dtype"], engine.info["draft_dtype"], engine.info["kv_dtype"]) == (dtype, draft_dtype, "bf16")
        for options in ({}, {"temperature": 0.8, "seed": 3}):
            plain = engine.generate_batch(prompts, max_tokens=60, num_speculative_tokens=0, logprobs=0, **options)
            fast = engine.generate_batch(prompts, max_tokens=60, num_speculative_tokens=3, logprobs=0, **options)
            assert [(r.token_ids, r.logprobs) for r in plain] == [(r.token_ids, r.logprobs) for r in fast]
            assert sum(r.stats.num_accepted_draft_tokens for r in fast) > 20
