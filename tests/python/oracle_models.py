"""Small random checkpoints of every architecture, rebuilt bit for bit from (name, seed) with numpy alone.

tools/make_golden.py runs transformers on them and stores its answers; test_golden.py rebuilds them without torch and
compares the engine with those answers; test_oracle.py asks transformers itself.
"""

import dataclasses
import hashlib
import pathlib

import numpy as np
from checkpoint_writer import tensor_shapes, write_checkpoint

TEXT_TOKENS = 104
WINDOWS = [(1, 4), (62, 4), (98, 6)]  # (prefix, drafts) of the verifications compared: the start, a page border, later
PROMPT_TOKENS, GREEDY_TOKENS = 24, 48  # the continuation crosses position 64 too


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    config: dict
    seed: int
    dtype: str = "F32"
    shards: int = 1


ARCHITECTURE = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def shape(kind, heads, kv_heads, head_dim, *, layers=2, hidden=None, ffn=None, vocab=320, context=1024, tied=False, **fields):
    """A config.json. hidden: heads * head_dim unless given (then head_dim is written too). fields: rope and the rest, as spelled."""
    config = dict(
        architectures=[ARCHITECTURE[kind]], model_type=kind, hidden_size=hidden or heads * head_dim, intermediate_size=ffn or 2 * heads * head_dim,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=vocab, hidden_act="silu",
        max_position_embeddings=context, rms_norm_eps=1e-5, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2)
    if hidden:
        config["head_dim"] = head_dim
    return config | fields


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
YARN = {"factor": 4.0, "original_max_position_embeddings": 256}

# Every architecture; GQA ratios 1, 2, 8; head_dim 64, 80, 128; tied and untied; every rope scaling in the old spelling
# (rope_theta, rope_scaling with "type" or "rope_type") and the new (rope_parameters); shards; sizes that no block divides.
CASES = [
    Case("llama", shape("llama", 4, 4, 64, rope_theta=10000.0), 1),
    Case("llama-old-linear", shape("llama", 4, 2, 64, rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 2.0}), 22),
    Case("llama-old-llama3", shape("llama", 8, 1, 64, rope_theta=500000.0, rope_scaling={"rope_type": "llama3", **LLAMA3}), 3, shards=3),
    Case("llama-old-yarn", shape("llama", 4, 2, 64, rope_theta=10000.0, rope_scaling={"type": "yarn", **YARN}), 4),
    Case("llama-hd80", shape("llama", 8, 1, 80, ffn=424, vocab=301, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}), 5),
    Case("llama-new-linear", shape("llama", 2, 1, 80, layers=3, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}), 6),
    Case("llama-new-llama3", shape("llama", 2, 1, 128, rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}), 7),
    Case("llama-bias", shape("llama", 4, 4, 64, attention_bias=True, rope_theta=10000.0), 8),
    Case("smollm", shape("llama", 3, 1, 64, layers=4, vocab=300, tied=True, rope_theta=100000.0, rope_scaling=None), 9),
    Case("mistral", shape("mistral", 4, 2, 128, hidden=256, ffn=600, sliding_window=None,
                          rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}), 10),
    Case("mistral-old", shape("mistral", 8, 1, 64, rope_theta=10000.0, sliding_window=None), 11, dtype="F16"),
    Case("qwen2", shape("qwen2", 4, 2, 64, rms_norm_eps=1e-6, use_sliding_window=False, rope_theta=1000000.0), 12),
    Case("qwen2-tied", shape("qwen2", 8, 1, 64, layers=3, tied=True, use_sliding_window=False,
                             rope_parameters={"rope_type": "yarn", "rope_theta": 1000000.0, **YARN}), 33),
    Case("qwen3", shape("qwen3", 4, 2, 128, hidden=192, ffn=500, tied=True, attention_bias=False, use_sliding_window=False,
                        rope_theta=1000000.0, rope_scaling=None), 14),
    Case("qwen3-untied", shape("qwen3", 8, 1, 64, hidden=320, attention_bias=False, use_sliding_window=False,
                               rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}), 15, dtype="BF16", shards=2),
]


def scale_of(name, size, config):
    """(centre, spread) of uniform values. Chosen so that attention is far from uniform (scores spread by about 2),
    the layers outweigh the embedding, and logits spread by about 2: then every part of the network decides tokens."""
    if name.endswith("norm.weight"):
        return (1.4, 0.4) if "q_norm" in name or "k_norm" in name else (1.0, 0.5)
    if name.endswith(".bias"):
        return 0.0, 0.5
    inputs = size[1]
    unit = (3.0 / inputs) ** 0.5  # spread of uniform weights that keep the size of what they multiply
    if "q_proj" in name or "k_proj" in name:
        return 0.0, 1.4 * unit
    if "embed_tokens" in name:
        return 0.0, (2.0 * unit if config["tie_word_embeddings"] else 1.0)
    return 0.0, (2.0 * unit if "lm_head" in name else unit)


def build(case, directory):
    """Write the checkpoint. Returns its digest, so that a difference of files is not mistaken for one of engines.

    Uniform numbers of the legacy generator: their stream is frozen and they are made of integers, so every machine
    and every numpy has the same bits (no logarithm is rounded on the way).
    """
    stream = np.random.RandomState(case.seed)

    def maker(name, size):
        centre, spread = scale_of(name, size, case.config)
        return lambda: (centre + spread * (2.0 * stream.random_sample(size) - 1.0)).astype(np.float32)

    tensors = [(name, size, maker(name, size)) for name, size in tensor_shapes(case.config)]
    write_checkpoint(directory, case.config, tensors, case.dtype, case.shards)
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(directory).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def fixed_tokens(case, count):
    """`count` ids of the vocabulary, the same for everyone."""
    return np.random.RandomState(1000 + case.seed).randint(3, case.config["vocab_size"], count).tolist()


def bf16_bound(case):
    """(rms, largest) difference of log-probabilities that rounding to bf16 may cause, weights being equal.

    A bf16 value has 8 significant bits: rounding moves it by at most 2^-8 of itself and by 0.4 * 2^-8 in the mean
    square. A sum of K products whose factors move independently by that much moves by 0.4 * 2^-8 * sqrt(K) *
    rms(weight) * rms(input). For the head, sqrt(K) * rms(weight) * rms(input) is rms(logits): 2 here, by the scale of
    its weights. Each layer rounds six vectors on the way there (two normed inputs, key, value, attention output,
    gated activation); these errors are independent, so their squares add, and each arrives multiplied by what lies
    between: the attention scores spread by 2, so a relative error of query and key becomes four times that of the
    weights, shared by half of what a layer adds; 3 covers it (measured: 1.3 with two layers, 2 with four). Log-softmax
    adds no more than it takes. One logit: by Cauchy-Schwarz an error of the hidden vector can at most align with a row
    of the head, which makes it sqrt(K) times as large, K = hidden_size (measured: up to 7 times).
    """
    rounding = 0.4 * 2.0**-8
    num_roundings = 6 * case.config["num_hidden_layers"] + 1
    rms = 3.0 * rounding * num_roundings**0.5 * 2.0
    return rms, rms * case.config["hidden_size"] ** 0.5
