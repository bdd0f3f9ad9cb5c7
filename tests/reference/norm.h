// RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) and rotary positions (Su et al. 2021, arXiv:2104.09864) of one vector.
#pragma once

#include "reference/near.h"

namespace paceline::reference {

inline std::vector<Near> rms_norm(const std::vector<Near>& x, const float* weight, float eps) {
  Near sum;
  for (const Near& v : x) sum = sum + v * v;
  const Near root = square_root(sum / exactly(double(x.size())) + exactly(eps));
  std::vector<Near> out;
  for (size_t i = 0; i < x.size(); ++i) out.push_back(x[i] * (exactly(1) / root) * exactly(weight[i]));
  return out;
}

// Pairs (i, i + Dh/2) turn by the angle whose cosine and sine are given: the convention of Hugging Face checkpoints.
inline std::vector<Near> rotated(const std::vector<Near>& x, const float* cosines, const float* sines) {
  const size_t half = x.size() / 2;
  std::vector<Near> out(x.size());
  for (size_t i = 0; i < half; ++i) {
    const Near c = exactly(cosines[i]), s = exactly(sines[i]);
    out[i] = x[i] * c - x[half + i] * s;
    out[half + i] = x[half + i] * c + x[i] * s;
  }
  return out;
}

}  // namespace paceline::reference
