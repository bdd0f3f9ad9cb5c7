// out = sum_j softmax_j(q . k_j / sqrt(Dh)) v_j over the positions given: one query, one head, the definition.
#pragma once

#include "reference/near.h"

namespace paceline::reference {

// q: [Dh] as it enters the scores. keys, values: [positions][Dh] as the pages hold them.
inline std::vector<Near> attention(const std::vector<Near>& q, const std::vector<std::vector<double>>& keys,
                                   const std::vector<std::vector<double>>& values) {
  const size_t positions = keys.size(), head_dim = q.size();
  std::vector<Near> scores(positions), out(head_dim);
  const Near scale = exactly(1) / square_root(exactly(double(head_dim)));
  Near highest{-INFINITY, 0}, sum;
  for (size_t j = 0; j < positions; ++j) {
    for (size_t d = 0; d < head_dim; ++d) scores[j] = scores[j] + q[d] * exactly(keys[j][d]);
    scores[j] = scores[j] * scale;
    if (scores[j].value > highest.value) highest = scores[j];
  }
  // Softmax does not depend on what is subtracted, so the error of the maximum is not an error of the result.
  for (size_t j = 0; j < positions; ++j) {
    const Near weight = exponential(scores[j] - exactly(highest.value));
    sum = sum + weight;
    for (size_t d = 0; d < head_dim; ++d) out[d] = out[d] + weight * exactly(values[j][d]);
  }
  for (Near& o : out) o = o / sum;
  return out;
}

}  // namespace paceline::reference
