"""config.json: the shape of the network, every field checked before anything is computed from it."""

import dataclasses
import struct
from typing import Any

from paceline.loading.fields import Fields
from paceline.loading.rope import rope_of

# The core's own limits: what a file says beyond them is the file's fault, and is said of the file.
MAX_VOCAB_SIZE = 1 << 18  # exact sums over the vocabulary end there
MAX_WIDTH = 1 << 22  # columns of a matrix, counted in 32 bits, q, k and v together
MAX_POSITIONS = 1 << 24  # tables have an entry for each, whatever the size of the weights


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Names as in config.json; the core's ModelConfig takes the very same."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope_frequencies: tuple[float, ...]
    rope_scale: float
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool


def num_weights(config: ModelConfig) -> int:
    """Of the matrices; norms and biases are too few to count."""
    width, query, kv = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layers = config.num_layers * width * (2 * query + 2 * kv + 3 * config.intermediate_size)
    return layers + config.vocab_size * width * (1 if config.tie_word_embeddings else 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Architecture:
    """What an architecture's name says beyond config.json."""

    attention_bias: bool | None
    """Biases of q, k and v: always (True), never (False), or as config.json's attention_bias says, o's too (None)."""
    qk_norm: bool
    slides_when_set: bool
    """A sliding_window counts by itself; otherwise only with use_sliding_window."""


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(attention_bias=None, qk_norm=False, slides_when_set=False),
    "MistralForCausalLM": Architecture(attention_bias=False, qk_norm=False, slides_when_set=True),
    "Qwen2ForCausalLM": Architecture(attention_bias=True, qk_norm=False, slides_when_set=False),
    "Qwen3ForCausalLM": Architecture(attention_bias=None, qk_norm=True, slides_when_set=False),
}


def config_of(values: dict[str, Any], where: str) -> tuple[str, ModelConfig, int | None]:
    """(architecture, shape, sliding window or None) of the object in config.json. Raises ModelFileError."""
    fields = Fields(values, where)
    name = _architecture(fields)
    kind = ARCHITECTURES[name]
    _refuse_variants(fields)
    hidden, heads = fields.integer("hidden_size", most=MAX_WIDTH), fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads = {heads}", kv_heads)
    if values.get("head_dim") is None and hidden % heads:
        raise fields.error("num_attention_heads", f"a divisor of hidden_size = {hidden}", heads)
    head_dim = fields.integer("head_dim", hidden // heads)
    if head_dim % 2 or head_dim > 256:
        raise fields.error("head_dim", "an even number up to 256", head_dim)
    if heads * head_dim > MAX_WIDTH:
        raise fields.error("num_attention_heads", f"at most {MAX_WIDTH} columns of q, heads times head_dim = {head_dim}", heads)
    context = fields.integer("max_position_embeddings", most=MAX_POSITIONS, least=2)
    frequencies, scale = rope_of(fields, head_dim, context)
    bias = fields.flag("attention_bias")
    config = ModelConfig(
        vocab_size=fields.integer("vocab_size", most=MAX_VOCAB_SIZE), hidden_size=hidden, intermediate_size=fields.integer("intermediate_size", most=MAX_WIDTH),
        num_layers=fields.integer("num_hidden_layers", most=4096), num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim,
        rms_norm_eps=_float32(fields, "rms_norm_eps", 1e-6), max_position_embeddings=context, rope_frequencies=frequencies,
        rope_scale=scale, qkv_bias=bias if kind.attention_bias is None else kind.attention_bias,
        output_bias=bias and kind.attention_bias is None, qk_norm=kind.qk_norm, tie_word_embeddings=fields.flag("tie_word_embeddings"))
    return name, config, _sliding_window(fields, kind, context)


def _float32(fields: Fields, name: str, default: float) -> float:
    """What the core computes with: above 0 and finite in that precision, too."""
    value = fields.number(name, default, above=0.0)
    try:
        if struct.unpack("<f", struct.pack("<f", value))[0] > 0:
            return value
    except OverflowError:
        pass
    raise fields.error(name, "a positive float32", value)


def _architecture(fields: Fields) -> str:
    names = fields.values.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str) or names[0] not in ARCHITECTURES:
        raise fields.error("architectures", "one of " + ", ".join(ARCHITECTURES), names)
    return str(names[0])


def _refuse_variants(fields: Fields) -> None:
    """Networks that only look like ours."""
    if fields.values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise fields.error("hidden_act", "silu", fields.values["hidden_act"])
    if fields.flag("mlp_bias"):
        raise fields.error("mlp_bias", "false", True)
    for name in ("quantization_config", "num_local_experts", "num_experts"):
        if fields.values.get(name) is not None:
            raise fields.error(name, "nothing: not supported", fields.values[name])


def _sliding_window(fields: Fields, kind: Architecture, context: int) -> int | None:
    """Positions a layer may look back, if any layer is limited below the context."""
    if fields.values.get("sliding_window") is None:
        return None
    layers = fields.values.get("layer_types")
    slides = fields.flag("use_sliding_window", kind.slides_when_set)
    if isinstance(layers, list):
        unknown = [layer for layer in layers if layer not in ("full_attention", "sliding_attention")]
        if unknown:
            raise fields.error("layer_types", "full_attention or sliding_attention", unknown[0])
        slides = "sliding_attention" in layers
    window = fields.integer("sliding_window", least=2)
    return window if slides and window < context else None
