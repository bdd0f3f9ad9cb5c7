"""config.json by whoever: every field checked and named, rope scalings against their papers' formulas, look-alikes refused."""

import math

import paceline
import pytest
from paceline.loading.config import config_of

LLAMA = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=1000, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu")
PLAIN = [10000.0 ** (-i / 8) for i in range(8)]  # head_dim 16


def config(**changes):
    return config_of(LLAMA | changes, "here/config.json")[1]


def refusal(**changes):
    with pytest.raises(paceline.ModelFileError) as caught:
        config(**changes)
    assert str(caught.value).startswith("here/config.json: ")
    return str(caught.value)


def test_names_become_ours():
    got = config(head_dim=32, tie_word_embeddings=True, attention_bias=True)
    assert (got.vocab_size, got.hidden_size, got.intermediate_size, got.num_layers, got.num_heads, got.num_kv_heads) == (1000, 64, 96, 2, 4, 2)
    assert (got.head_dim, got.rms_norm_eps, got.max_position_embeddings, got.tie_word_embeddings) == (32, 1e-5, 2048, True)
    assert config().head_dim == 16 and config(num_key_value_heads=None).num_kv_heads == 4


@pytest.mark.parametrize("name, fields, expected", [
    ("LlamaForCausalLM", {}, (False, False, False)), ("LlamaForCausalLM", {"attention_bias": True}, (True, True, False)),
    ("MistralForCausalLM", {}, (False, False, False)), ("Qwen2ForCausalLM", {}, (True, False, False)), ("Qwen3ForCausalLM", {}, (False, False, True)),
    ("Qwen3ForCausalLM", {"attention_bias": True}, (True, True, True))])
def test_what_an_architecture_means(name, fields, expected):
    got = config(architectures=[name], **fields)
    assert (got.qkv_bias, got.output_bias, got.qk_norm) == expected


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                   "num_key_value_heads", "head_dim", "max_position_embeddings"])
@pytest.mark.parametrize("value", [0, -1, 1.0, 1e9, 2**31, 2**63, "64", True, [64], {}])
def test_a_bad_integer_is_named(field, value):
    assert refusal(**{field: value}).startswith(f"here/config.json: {field}: expected an integer")


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                   "max_position_embeddings"])
def test_a_missing_integer_is_named(field):
    assert "found nothing" in refusal(**{field: None}) and field in refusal(**{field: None})


@pytest.mark.parametrize("field", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [0, -1e-5, "1e-5", True, math.inf, []])
def test_a_bad_number_is_named(field, value):
    assert refusal(**{field: value}).startswith(f"here/config.json: {field}: expected a finite number above 0, found")


@pytest.mark.parametrize("changes, complaint", [
    ({"num_attention_heads": 3}, "num_key_value_heads: expected a divisor of num_attention_heads = 3, found 2"),
    ({"num_attention_heads": 6}, "num_attention_heads: expected a divisor of hidden_size = 64, found 6"),
    ({"head_dim": 15}, "head_dim: expected an even number up to 256, found 15"), ({"head_dim": 258}, "head_dim: expected an even"),
    ({"vocab_size": 2**18 + 1}, "vocab_size: expected an integer in [1, 262144]"), ({"hidden_act": "gelu"}, "hidden_act: expected silu, found gelu"),
    ({"mlp_bias": True}, "mlp_bias: expected false"), ({"attention_bias": 1}, "attention_bias: expected true or false"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected true or false"), ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"num_local_experts": 8}, "num_local_experts"), ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1"),
    ({"architectures": ["MambaForCausalLM"]}, "expected one of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM"),
    ({"architectures": None}, "architectures"), ({"architectures": "LlamaForCausalLM"}, "architectures"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type: expected default, linear, llama3 or yarn, found dynamic"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "found longrope"), ({"rope_scaling": {"type": "linear", "rope_type": "yarn"}}, "rope_scaling: type"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor: expected a finite number above 0, found nothing"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"), ({"rope_scaling": "linear"}, "rope_scaling: expected an object or null"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}, "original_max_position_embeddings"),
    ({"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1, "original_max_position_embeddings": 64}},
     "high_freq_factor: expected more than low_freq_factor"),
    ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling: expected nothing beside")])
def test_what_is_refused(changes, complaint):
    assert complaint in refusal(**changes)


@pytest.mark.parametrize("changes, window", [
    ({"sliding_window": 4096}, None), ({"sliding_window": 512}, None), ({"sliding_window": 512, "use_sliding_window": True}, 512),
    ({"architectures": ["MistralForCausalLM"], "sliding_window": 512}, 512), ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, None),
    ({"architectures": ["MistralForCausalLM"], "sliding_window": 4096}, None),  # longer than the context: never felt
    ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 512, "use_sliding_window": False}, None),
    ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 512, "layer_types": ["full_attention", "sliding_attention"]}, 512),
    ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 512, "layer_types": ["full_attention"] * 2}, None)])
def test_sliding_windows(changes, window):
    assert config_of(LLAMA | changes, "here")[2] == window


BOTH_SPELLINGS = pytest.mark.parametrize("spelled", [
    lambda kind, **rope: dict(rope_theta=10000.0, rope_scaling={"type": kind, **rope}),
    lambda kind, **rope: dict(rope_theta=10000.0, rope_scaling={"rope_type": kind, "type": kind, **rope}),
    lambda kind, **rope: dict(rope_theta=None, rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **rope})], ids=["type", "rope_type", "new"])


@BOTH_SPELLINGS
def test_default_and_linear(spelled):
    assert config(**spelled("default")).rope_frequencies == pytest.approx(PLAIN, rel=1e-15)
    assert config(**spelled("linear", factor=4.0)).rope_frequencies == pytest.approx([f / 4 for f in PLAIN], rel=1e-15)
    assert config(**spelled("linear", factor=4)).rope_scale == 1.0


@BOTH_SPELLINGS
def test_llama3(spelled):
    got = config(**spelled("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128))
    # Wavelengths 2 pi / f: 6.3, 19.9 (short of 128 / 4: kept), 62.8 (between), 198.7 and more (beyond 128: divided by 8).
    blend = (128 * PLAIN[2] / (2 * math.pi) - 1) / 3
    expected = [PLAIN[0], PLAIN[1], PLAIN[2] * (blend + (1 - blend) / 8), *(f / 8 for f in PLAIN[3:])]
    assert got.rope_frequencies == pytest.approx(expected, rel=1e-14) and got.rope_scale == 1.0


@BOTH_SPELLINGS
@pytest.mark.parametrize("more, scale", [
    ({}, 0.1 * math.log(4) + 1), ({"attention_factor": 1.5}, 1.5), ({"mscale": 2.0, "mscale_all_dim": 0.5}, (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1))])
def test_yarn(spelled, more, scale):
    got = config(**spelled("yarn", factor=4.0, original_max_position_embeddings=256, **more))
    # Index that turns r times over 256 positions: 16 ln(256 / (2 pi r)) / (2 ln 10000): .21 for 32 turns, 3.22 for 1: ramp from 0 to 4.
    expected = [f * (1 - i / 4) + f / 4 * (i / 4) if i < 4 else f / 4 for i, f in enumerate(PLAIN)]
    assert got.rope_frequencies == pytest.approx(expected, rel=1e-14) and got.rope_scale == pytest.approx(scale, rel=1e-14)


def test_yarn_without_truncation():
    got = config(rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "truncate": False})
    low, high = (16 * math.log(256 / (2 * math.pi * turns)) / (2 * math.log(10000)) for turns in (32, 1))
    kept = [1 - min(1, max(0, (i - low) / (high - low))) for i in range(8)]
    assert got.rope_frequencies == pytest.approx([f * k + f / 4 * (1 - k) for f, k in zip(PLAIN, kept, strict=True)], rel=1e-14)
