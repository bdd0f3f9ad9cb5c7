// The integer formats, as arithmetic: how weights and activations become small integers. Backends store them as they like and
// compute exactly this, so that sums of products are integers, which have no order.
//
// int8    one scale per output: W[n, k] = scale[n] q, q in [-127, 127], scale fp32.
// int4    one scale per output and group along K: W[n, k] = scale[n, g] q, q in [-8, 7], scale bf16. Its sign is the opposite of
//         the group's extreme's, which thereby gets the one value more that -8 has.
// Rows    that meet either: x[k] = scale q, q in [-127, 127], one fp32 scale per row.
// Sums    int8: float(sum q q) (scale[n] scale). int4: scale times the fma chain over groups, in ascending order, of
//         scale[n, g] float(sum q q).
// Zeros get scale 1; where a NaN or an infinity comes in, the scale is NaN, so that it comes out again.
#pragma once

#include "core/bfloat16.h"
#include "core/dtype.h"

namespace paceline {

constexpr int kLongestIntegerSum = 131072;  // K at most: 127 127 K stays below 2^31

struct Scale {
  float scale, inverse;  // inverse 0: all values are 0
};

static inline float magnitude(float x) { return float_from_bits(bits_of(x) & 0x7fffffffu); }
static inline bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

// largest: max |x|, NaN above all. Below 2^-100 nothing is told from 0, since an inverse could be infinite.
static inline Scale int8_scale(float largest) {
  if (!is_finite(largest)) return {float_from_bits(0x7fc00000u), 0};
  if (largest < 0x1p-100f) return {1, 0};
  return {largest / 127.0f, 127.0f / largest};
}

// extreme: the first value of the largest magnitude.
static inline Scale int4_scale(float extreme) {
  if (!is_finite(extreme)) return {float_from_bits(0x7fc00000u), 0};
  if (magnitude(extreme) < 0x1p-100f) return {1, 0};
  const float scale = from_bf16(to_bf16(extreme / -8.0f));
  return {scale, 1.0f / scale};
}

// Nearest integer, ties to even, for |x| < 2^22; adding 1.5 2^23 leaves no room for a fraction.
static inline int32_t nearest_integer(float x) { return int32_t((x + 12582912.0f) - 12582912.0f); }
static inline int32_t int8_of(float x, float inverse) { return nearest_integer(x * inverse); }
static inline int32_t int4_of(float x, float inverse) {
  const int32_t q = nearest_integer(x * inverse);
  return q > 7 ? 7 : q;  // below -8 it never is: the scale is off by at most 2^-8 of itself
}

}  // namespace paceline
