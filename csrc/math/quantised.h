// The integer formats, as arithmetic: how weights and activations become small integers. Backends store them as they like; the
// CPU computes exactly this, so that sums of products are integers, which have no order.
//
// Groups  of G values along K: 64, or 32 in int4_g32. The last one may be short.
// int8    W[n, k] = scale[n] q, q in [-127, 127], scale fp32. Rows: x[k] = scale[g] q, likewise.
//         out[n] = scale[n] times the fma chain over groups, in ascending order, of scale[g] float(sum q q).
// int4    W[n, k] = scale[n, g] q, q in [-8, 7], scale bf16; its sign is the opposite of the group's extreme's, which thereby gets
//         the one value more that -8 has. Rows: x[k] = scale q, q in [-127, 127], one fp32 scale.
//         out[n] = scale times the fma chain of scale[n, g] float(sum q q).
// CUDA holds weights in the same way but rounds rows to bf16, in both formats: tensor cores multiply those at the full rate, and a pass
// of few rows waits for weights, not for arithmetic.
// Zeros get scale 1; where a NaN or an infinity comes in, the scale is NaN, so that it comes out again.
//
// So either side has groups, never both: that would cost one multiplication more per sum and group (8 % at 16 rows). int8 needs
// them where the outliers are, in the rows (KL to fp32 on the bundled target 0.0008 nats; 0.0015 with one scale per row), int4 in
// the weights.
#pragma once

#include "math/bfloat16.h"

namespace paceline {

struct Scale {
  float scale, inverse;  // inverse 0: all values are 0
};

PACELINE_HD float magnitude(float x) { return float_from_bits(bits_of(x) & 0x7fffffffu); }
PACELINE_HD bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

// extreme: the first value of the largest magnitude in a group, NaN above all; it becomes `steps`, which may be negative. Below 2^-100
// nothing is told from 0, since an inverse could be infinite.
PACELINE_HD Scale scale_of(float extreme, float steps) {
  if (!is_finite(extreme)) return {float_from_bits(0x7fc00000u), 0};
  if (magnitude(extreme) < 0x1p-100f) return {1, 0};
  return {extreme / steps, steps / extreme};
}
PACELINE_HD Scale int8_scale(float extreme) { return scale_of(magnitude(extreme), 127); }
PACELINE_HD Scale int4_scale(float extreme) {
  Scale s = scale_of(extreme, -8);
  s.scale = from_bf16(to_bf16(s.scale));
  if (s.inverse != 0) s.inverse = 1.0f / s.scale;
  return s;
}

// Nearest integer, ties to even, for |x| < 2^22; adding 1.5 2^23 leaves no room for a fraction. A scale rounded to bf16 is off by at
// most 2^-8 of itself: -8 is not passed, 7 may be.
PACELINE_HD int32_t nearest_integer(float x) { return int32_t((x + 12582912.0f) - 12582912.0f); }
PACELINE_HD int32_t int8_of(float x, float inverse) { return nearest_integer(x * inverse); }
PACELINE_HD int32_t int4_of(float x, float inverse) {
  const int32_t q = nearest_integer(x * inverse);
  return q > 7 ? 7 : q;
}

}  // namespace paceline
