"""The engine against transformers' stored answers, for every architecture (tests/python/oracle_models.py). No torch."""

import dataclasses
import json
import pathlib

import numpy as np
import paceline
import pytest
from oracle_models import CASES, GREEDY_TOKENS, PROMPT_TOKENS, TEXT_TOKENS, WINDOWS, bf16_bound, build, fixed_tokens

GOLDEN = pathlib.Path(__file__).parent / "golden"
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def golden(case):
    return np.load(GOLDEN / f"{case.name}.npz")


def verified(engine, case):
    """float32 [rows, vocab_size]: the rows that tools/make_golden.py stored."""
    text = fixed_tokens(case, TEXT_TOKENS)
    return np.concatenate([engine.verify(text[:prefix], text[prefix:prefix + drafts]).logprobs for prefix, drafts in WINDOWS])


def largest(difference):
    """Largest magnitude; NaN counts as infinite."""
    return float(np.max(np.nan_to_num(np.abs(difference), nan=np.inf)))


@EVERY_CASE
def test_fp32_logprobs_are_those_of_transformers(case, tmp_path):
    assert build(case, tmp_path) == golden(case)["digest"], "the checkpoint is not the one that transformers saw"
    with paceline.Engine(tmp_path, dtype="fp32", kv_dtype="fp32") as engine:
        assert largest(verified(engine, case) - golden(case)["logprobs"]) < 1e-4


@pytest.mark.parametrize("level", ["avx2", "avx512", "avx512_bf16"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_instruction_level_gives_these_logprobs(level, dtype, tmp_path, monkeypatch):
    case = dataclasses.replace(next(c for c in CASES if c.name == "llama-hd80"), dtype={"fp32": "F32", "bf16": "BF16"}[dtype])
    build(case, tmp_path)
    monkeypatch.setenv("PACELINE_CPU_LEVEL", level)
    try:
        engine = paceline.Engine(tmp_path, dtype=dtype, kv_dtype=dtype)
    except ValueError as refusal:
        assert "instruction level" in str(refusal)
        pytest.skip(str(refusal))  # this machine lacks it
    with engine:
        difference = verified(engine, case) - golden(case)["logprobs" if dtype == "fp32" else "bf16_logprobs"]
    assert largest(difference) < (1e-4 if dtype == "fp32" else bf16_bound(case)[1])


@EVERY_CASE
def test_fp32_greedy_tokens_are_those_of_transformers(case, tmp_path):
    build(case, tmp_path)
    with paceline.Engine(tmp_path, dtype="fp32", kv_dtype="fp32") as engine:
        result = engine.generate(fixed_tokens(case, PROMPT_TOKENS), max_tokens=GREEDY_TOKENS, ignore_eos=True, logprobs=0)
    assert list(result.token_ids) == golden(case)["greedy_tokens"].tolist()


@EVERY_CASE
def test_bf16_logprobs_stay_within_the_rounding_of_bf16(case, tmp_path):
    rounded = dataclasses.replace(case, dtype="BF16")
    assert build(rounded, tmp_path) == golden(case)["bf16_digest"]
    with paceline.Engine(tmp_path, dtype="bf16", kv_dtype="bf16") as engine:
        difference = verified(engine, case) - golden(case)["bf16_logprobs"]
    rms, worst = bf16_bound(case)
    assert np.sqrt(np.mean(difference.astype(np.float64) ** 2)) < rms
    assert largest(difference) < worst


@pytest.mark.parametrize("case", [c for c in CASES if "factor" in str(c.config)], ids=lambda case: case.name)
def test_the_comparison_sees_a_missing_rope_scaling(case, tmp_path):
    """What the tolerance is worth: without its scaling the same checkpoint is a hundred tolerances away."""
    build(case, tmp_path)
    config = {key: value for key, value in case.config.items() if key not in ("rope_scaling", "rope_parameters")}
    theta = case.config.get("rope_theta") or case.config["rope_parameters"]["rope_theta"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_theta": theta}))
    with paceline.Engine(tmp_path, dtype="fp32", kv_dtype="fp32") as engine:
        assert largest(verified(engine, case) - golden(case)["logprobs"]) > 1e-2
