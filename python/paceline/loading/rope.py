"""Rotary position embedding: the frequencies of config.json, in double.

transformers computes them in fp32, which is off by up to 2e-4 in log-probability at position 500; double is exact enough for any.
Scalings: linear (Chen et al. 2023, arXiv:2306.15595), llama3 (Llama 3.1's), yarn (Peng et al. 2023, arXiv:2309.00071).
"""

import math

from paceline._core import ModelFileError
from paceline.loading.fields import Fields


def rope_of(fields: Fields, head_dim: int, max_position_embeddings: int) -> tuple[tuple[float, ...], float]:
    """(frequencies [head_dim / 2] in radians per position, factor on cos and sin): finite, whatever the fields are."""
    try:
        frequencies, scale = _computed(fields, head_dim, max_position_embeddings)
    except (ArithmeticError, ValueError) as error:  # no number is too odd to be written into a file
        raise _no_numbers(fields, error) from error
    if not all(map(math.isfinite, (*frequencies, scale))) or scale <= 0:
        raise _no_numbers(fields, ValueError("NaN or infinity"))
    return frequencies, scale


def _computed(fields: Fields, head_dim: int, max_position_embeddings: int) -> tuple[tuple[float, ...], float]:
    rope, theta = _spelled(fields)
    kind = _kind(rope)
    if rope.number("partial_rotary_factor", 1.0) != 1.0 or fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise fields.error("partial_rotary_factor", "1", rope.number("partial_rotary_factor", 1.0))
    plain = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    if kind == "default":
        return tuple(plain), 1.0
    factor = rope.number("factor", above=0.0)
    if kind == "linear":
        return tuple(f / factor for f in plain), 1.0
    if kind == "llama3":
        return _llama3(rope, plain, factor), 1.0
    return _yarn(rope, plain, factor, theta, head_dim, max_position_embeddings)


def _no_numbers(fields: Fields, why: Exception) -> ModelFileError:
    return fields.error("rope_theta and rope_scaling", "values that frequencies can be computed from", why)


def _spelled(fields: Fields) -> tuple[Fields, float]:
    """New spelling: rope_parameters holds everything. Old: rope_theta, and rope_scaling or null."""
    new, old = fields.object("rope_parameters"), fields.object("rope_scaling")
    rope = new if new is not None else old if old is not None else fields.of({}, "rope_scaling")
    if new is not None and old is not None and new.values != old.values:
        raise fields.error("rope_scaling", "nothing beside rope_parameters", old.values)
    theta = rope if "rope_theta" in rope.values else fields
    return rope, theta.number("rope_theta", 10000.0, above=0.0)


def _kind(rope: Fields) -> str:
    kinds = {str(rope.values[name]) for name in ("rope_type", "type") if rope.values.get(name) is not None} or {"default"}
    if len(kinds) > 1:
        raise rope.error("type", "the same as rope_type", sorted(kinds))
    (kind,) = kinds
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise rope.error("rope_type", "default, linear, llama3 or yarn", kind)
    return kind


def _llama3(rope: Fields, plain: list[float], factor: float) -> tuple[float, ...]:
    """Long wavelengths are divided by factor, short ones kept, those between blended."""
    low, high = rope.number("low_freq_factor", above=0.0), rope.number("high_freq_factor", above=0.0)
    if not low < high:
        raise rope.error("high_freq_factor", f"more than low_freq_factor = {low}", high)
    context = rope.integer("original_max_position_embeddings")

    def scaled(frequency: float) -> float:
        wavelength = 2 * math.pi / frequency
        if wavelength < context / high:
            return frequency
        if wavelength > context / low:
            return frequency / factor
        smooth = (context / wavelength - low) / (high - low)
        return (1 - smooth) * frequency / factor + smooth * frequency
    return tuple(map(scaled, plain))


def _yarn(rope: Fields, plain: list[float], factor: float, theta: float, head_dim: int, max_len: int) -> tuple[tuple[float, ...], float]:
    """Dimensions that turn often are kept, those that turn seldom divided by factor, with a ramp between (section 3.2)."""
    original = rope.values.get("original_max_position_embeddings")
    context = max_len if original is None else rope.integer("original_max_position_embeddings")
    fast, slow = rope.number("beta_fast", 32.0, above=0.0), rope.number("beta_slow", 1.0, above=0.0)

    def dimension(rotations: float) -> float:
        """Index of the dimension that turns that often over the original context."""
        return head_dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))
    low, high = dimension(fast), dimension(slow)
    if rope.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # no division by zero: a step instead of a ramp
    kept = [1 - min(1.0, max(0.0, (i - low) / (high - low))) for i in range(len(plain))]
    return tuple(f / factor * (1 - k) + f * k for f, k in zip(plain, kept, strict=True)), _yarn_attention(rope, factor)


def _yarn_attention(rope: Fields, factor: float) -> float:
    """Temperature of attention as a factor on cos and sin (section 3.4)."""
    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
    if rope.values.get("attention_factor") is not None:
        return rope.number("attention_factor", above=0.0)
    mscale, mscale_all = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    return magnitude(mscale) / magnitude(mscale_all) if mscale and mscale_all else magnitude(1.0)
