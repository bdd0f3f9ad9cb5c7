// The integer formats as core/quantised.h states them, one value at a time, with the C library's own rounding. Integer sums have no
// order and the few float operations have one, so kernels must give these very bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/bfloat16.h"
#include "core/dtype.h"

namespace paceline::reference {

// A matrix or a row: `group` values along K share a scale; the rows of activations and of int8 have one group.
struct Quantised {
  int k, group, groups;
  std::vector<int64_t> q;      // [n, k]
  std::vector<float> scale;  // [n, groups]

  float value(int row, int i) const { return scale[row * groups + i / group] * float(q[size_t(row) * k + i]); }
};

inline Quantised int8_rows(const std::vector<float>& values, int n, int k) {
  Quantised out{k, k, 1, {}, {}};
  for (int row = 0; row < n; ++row) {
    const float* x = &values[size_t(row) * k];
    float largest = 0;
    bool finite = true;
    for (int i = 0; i < k; ++i) finite = finite && std::isfinite(x[i]), largest = std::fmax(largest, std::fabs(x[i]));
    const bool small = largest < std::ldexp(1.0f, -100);
    out.scale.push_back(!finite ? NAN : small ? 1.0f : largest / 127.0f);
    for (int i = 0; i < k; ++i) out.q.push_back(!finite || small ? 0 : std::lrint(x[i] * (127.0f / largest)));
  }
  return out;
}

inline Quantised int4_rows(const std::vector<float>& values, int n, int k, int group) {
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
      const float scale = !finite ? NAN : small ? 1.0f : from_bf16(to_bf16(extreme / -8.0f));
      out.scale.push_back(scale);
      for (int i = 0; i < count; ++i) out.q.push_back(!finite || small ? 0 : std::min(7L, std::lrint(x[i] * (1.0f / scale))));
    }
  return out;
}

inline Quantised quantised(const std::vector<float>& values, int n, int k, DType dtype) {
  return dtype == DType::int8 ? int8_rows(values, n, k) : int4_rows(values, n, k, group_of(dtype));
}

// Output `n` of matrix w for row `m` of x.
inline float product(const Quantised& w, int n, const Quantised& x, int m, DType dtype) {
  float chain = 0;
  for (int g = 0; g < w.groups; ++g) {
    int64_t sum = 0;
    for (int i = g * w.group; i < std::min(w.k, (g + 1) * w.group); ++i) sum += w.q[size_t(n) * w.k + i] * x.q[size_t(m) * x.k + i];
    if (dtype == DType::int8) return float(sum) * (w.scale[n] * x.scale[m]);
    chain = std::fma(w.scale[n * w.groups + g], float(sum), chain);
  }
  return chain * x.scale[m];
}

}  // namespace paceline::reference
