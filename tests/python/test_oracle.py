"""The engine against transformers itself: the stored cases anew, more shapes and rope spellings, long contexts.

Marked `oracle`: needs torch and transformers. `make oracle` and `.ci/run` select it, `make test` does not.
"""

import dataclasses

import numpy as np
import paceline
import pytest
from oracle_models import CASES, YARN, Case, bf16_bound, build, fixed_tokens, shape

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]  # torch and transformers warn as they like

NEW = {"rope_theta": 10000.0}
MORE = [
    Case("gqa4-hd96", shape("llama", 8, 2, 96, vocab=257, ffn=333, rope_theta=10000.0), 101),
    Case("hd32", shape("llama", 6, 2, 32, layers=5, rope_theta=10000.0), 102),
    Case("hd256", shape("mistral", 2, 1, 256, hidden=128, rope_theta=10000.0, sliding_window=None), 103),
    Case("hd48-qk-norm", shape("qwen3", 4, 1, 48, hidden=144, rope_theta=1000000.0, attention_bias=False, use_sliding_window=False), 104),
    Case("one-layer", shape("llama", 1, 1, 64, layers=1, hidden=48, ffn=40, vocab=33, rope_theta=10000.0), 105),
    Case("yarn-attention-factor", shape("llama", 4, 2, 64, rope_parameters={"rope_type": "yarn", "attention_factor": 1.3, **NEW, **YARN}), 106),
    Case("yarn-betas", shape("llama", 4, 2, 64, rope_parameters={"rope_type": "yarn", "beta_fast": 16.0, "beta_slow": 2.0, **NEW, **YARN}), 107),
    Case("yarn-mscale", shape("llama", 4, 2, 64, rope_parameters={
        "rope_type": "yarn", "mscale": 0.7, "mscale_all_dim": 1.2, **NEW, **YARN}), 108),
    Case("yarn-untruncated", shape("llama", 4, 2, 64, rope_parameters={"rope_type": "yarn", "truncate": False, **NEW, **YARN}), 109),
    Case("scaling-without-type", shape("llama", 4, 2, 64, rope_scaling=None, rope_theta=250000.0), 110, dtype="F16", shards=4),
]
RESEEDED = [dataclasses.replace(case, name=case.name + "-again", seed=case.seed + 200) for case in CASES]
ALL = CASES + RESEEDED + MORE
LENGTH = 700  # beyond a page (64 positions), a group of pages (512), a prefill chunk and yarn's original context (256)
WINDOWS = [(1, 6), (63, 3), (256, 8), (509, 7), (697, 3)]  # (prefix, drafts)


@pytest.fixture(params=ALL, ids=lambda case: case.name)
def checkpoint(request, tmp_path):
    """(case, directory, LENGTH token ids) of a fresh checkpoint."""
    build(request.param, tmp_path)
    return request.param, tmp_path, fixed_tokens(request.param, LENGTH)


def reference(directory, ids, exact_angles=True):
    """float32 [len(ids), vocab_size]: transformers' log-probabilities, in fp32 with eager attention.

    exact_angles: transformers rounds rotary frequencies and angles to fp32, an error of up to position * 2^-23 radians:
    at position 500 it alone moves log-probabilities by 1e-4 (the engine stays within 5e-5 of a run in fp64). With it the
    same formulas run in double.
    """
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    if exact_angles:
        model.model.rotary_emb.forward = double_rotary(model.model.rotary_emb, model.config)
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([list(ids)])).logits[0], dim=-1).numpy()


def double_rotary(rotary, config):
    """transformers' own frequencies and angles, computed in double."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch, "float32", torch.float64)
        frequencies, scale = ROPE_INIT_FUNCTIONS.get(rotary.rope_type, rotary.compute_default_rope_parameters)(config)
    assert frequencies.dtype == torch.float64

    def forward(x, position_ids):
        half = position_ids[..., None].double() * frequencies
        angles = torch.cat([half, half], dim=-1)
        return (angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype)

    return forward


def differences(engine, text, expected, windows):
    """The engine's log-probabilities less the expected ones, for all rows of the windows; NaN counts as infinite."""
    rows = [engine.verify(text[:prefix], text[prefix:prefix + drafts]).logprobs - expected[prefix - 1:prefix + drafts]
            for prefix, drafts in windows]
    return np.nan_to_num(np.concatenate(rows).astype(np.float64), nan=np.inf)


def test_fp32(checkpoint):
    _, directory, text = checkpoint
    early = [window for window in WINDOWS if sum(window) < 128]
    with paceline.Engine(directory, dtype="fp32", kv_dtype="fp32") as engine:
        assert np.abs(differences(engine, text, reference(directory, text), WINDOWS)).max() < 1e-4
        assert np.abs(differences(engine, text, reference(directory, text, exact_angles=False), early)).max() < 1e-4


def test_bf16(checkpoint, tmp_path):
    case, _, text = checkpoint
    build(dataclasses.replace(case, dtype="BF16"), tmp_path / "bf16")
    with paceline.Engine(tmp_path / "bf16", dtype="bf16", kv_dtype="bf16") as engine:
        difference = differences(engine, text, reference(tmp_path / "bf16", text), WINDOWS)
    rms, worst = bf16_bound(case)
    assert np.sqrt(np.mean(difference**2)) < rms
    assert np.abs(difference).max() < worst


@pytest.mark.parametrize("prompt_tokens", [5, 500])
def test_greedy_tokens_are_the_reference_s_best(checkpoint, prompt_tokens):
    """Each of 40 tokens is the best given those before it; a tie within 2e-4, twice the tolerance, may fall either way."""
    _, directory, text = checkpoint
    prompt = text[:prompt_tokens]
    with paceline.Engine(directory, dtype="fp32", kv_dtype="fp32") as engine:
        tokens = list(engine.generate(prompt, max_tokens=40, ignore_eos=True).token_ids)
    assert len(tokens) == 40
    rows = reference(directory, prompt + tokens)[len(prompt) - 1:-1]
    assert (rows.max(axis=-1) - rows[np.arange(40), tokens]).max() < 2e-4


def test_a_sliding_window_is_right_or_refused(tmp_path):
    case = Case("mistral-window", shape("mistral", 4, 2, 64, rope_theta=10000.0, sliding_window=128), 120)
    build(case, tmp_path)
    text = fixed_tokens(case, LENGTH)
    try:
        engine = paceline.Engine(tmp_path, dtype="fp32", kv_dtype="fp32")
    except (ValueError, paceline.ModelFileError) as refusal:
        assert "sliding_window" in str(refusal)
        return
    with engine:
        length = min(LENGTH, engine.info["max_model_len"])  # the window itself, where attention is full, is an answer too
        expected = reference(tmp_path, text[:length])
        assert np.abs(differences(engine, text[:length], expected, [(length - 3, 3)])).max() < 1e-4
