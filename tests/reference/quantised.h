// The integer formats as math/quantised.h states them, one value at a time, with the C library's own rounding. Integer sums have no
// order and the few float operations have one, so kernels must give these very bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "math/bfloat16.h"

namespace paceline::reference {

struct Quantised {
  int k, group, groups;
  std::vector<int64_t> q;    // [n, k]
  std::vector<float> scale;  // [n, groups]

  float value(int row, int i) const { return scale[row * groups + i / group] * float(q[size_t(row) * k + i]); }
};

// In each group the extreme becomes `steps`: 127 in magnitude for 8 bits, -8 itself for 4.
inline Quantised quantised(const std::vector<float>& values, int n, int k, int group, bool four_bits, bool bf16_scales) {
  const int groups = (k + group - 1) / group;
  Quantised out{k, group, groups, {}, {}};
  for (int row = 0; row < n; ++row)
    for (int first = 0; first < k; first += group) {
      const float* x = &values[size_t(row) * k + first];
      const int count = std::min(group, k - first);
      float extreme = 0;
      bool finite = true;
      for (int i = 0; i < count; ++i) {
        finite = finite && std::isfinite(x[i]);
        if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
      }
      const bool small = std::fabs(extreme) < std::ldexp(1.0f, -100);
      float scale = four_bits ? extreme / -8.0f : std::fabs(extreme) / 127.0f, inverse = 127.0f / std::fabs(extreme);
      if (bf16_scales) scale = from_bf16(to_bf16(scale)), inverse = 1.0f / scale;
      out.scale.push_back(!finite ? NAN : small ? 1.0f : scale);
      for (int i = 0; i < count; ++i) out.q.push_back(!finite || small ? 0 : std::min(four_bits ? 7L : 127L, std::lrint(x[i] * inverse)));
    }
  return out;
}

inline int group_along_k(DType dtype) { return dtype == DType::int4_g32 ? 32 : 64; }
inline Quantised weights(const std::vector<float>& values, int n, int k, DType dtype) {
  if (dtype == DType::int8) return quantised(values, n, k, k, false, false);
  return quantised(values, n, k, group_along_k(dtype), true, true);
}
inline Quantised rows(const std::vector<float>& values, int n, int k, DType dtype) {
  return quantised(values, n, k, dtype == DType::int8 ? group_along_k(dtype) : k, false, false);
}

// Output `n` of matrix w for row `m` of x: one of them has groups, whose scale enters the chain; that of the other comes last.
inline float product(const Quantised& w, int n, const Quantised& x, int m, DType dtype) {
  const bool rows_have_groups = dtype == DType::int8;
  const Quantised &fine = rows_have_groups ? x : w, &coarse = rows_have_groups ? w : x;
  const int fine_row = rows_have_groups ? m : n, coarse_row = rows_have_groups ? n : m;
  float chain = 0;
  for (int g = 0; g < fine.groups; ++g) {
    int64_t sum = 0;
    for (int i = g * fine.group; i < std::min(w.k, (g + 1) * fine.group); ++i) sum += w.q[size_t(n) * w.k + i] * x.q[size_t(m) * x.k + i];
    chain = std::fma(fine.scale[fine_row * fine.groups + g], float(sum), chain);
  }
  return chain * coarse.scale[coarse_row];
}

}  // namespace paceline::reference
