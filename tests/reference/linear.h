// out[n] = sum_k w[n, k] x[k], and the gated form of an MLP.
#pragma once

#include "reference/near.h"

namespace paceline::reference {

// w: [n, k] as the matrix holds it. x: [k] as it enters the product.
inline std::vector<Near> linear(const std::vector<double>& w, int n, int k, const std::vector<Near>& x) {
  std::vector<Near> out(n);
  for (int row = 0; row < n; ++row)
    for (int i = 0; i < k; ++i) out[row] = out[row] + exactly(w[size_t(row) * k + i]) * x[i];
  return out;
}

// silu(gate) up
inline Near gated(Near gate, Near up) { return gate * (exactly(1) / (exactly(1) + exponential(exactly(0) - gate))) * up; }

}  // namespace paceline::reference
