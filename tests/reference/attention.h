// out = sum_j softmax_j(q . k_j / sqrt(Dh)) v_j over the positions given: one query, one head, the definition.
#pragma once

#include "reference/near.h"

namespace paceline::reference {

// q: [Dh] as it enters the scores. keys, values: [positions][Dh] as the pages hold them. With bf16 values the weights are rounded to
// bf16 as well, each relative to the highest score from the last multiple of rounding_span positions to the end of its page: how far that
// maximum reaches is the engine's. 0: they are not rounded.
inline std::vector<Near> attention(const std::vector<Near>& q, const std::vector<std::vector<double>>& keys,
                                   const std::vector<std::vector<double>>& values, size_t rounding_span) {
  const size_t positions = keys.size(), head_dim = q.size();
  std::vector<Near> scores(positions), out(head_dim);
  const Near scale = exactly(1) / square_root(exactly(double(head_dim)));
  for (size_t j = 0; j < positions; ++j) {
    for (size_t d = 0; d < head_dim; ++d) scores[j] = scores[j] + q[d] * exactly(keys[j][d]);
    scores[j] = scores[j] * scale;
  }
  const auto is_less = [](const Near& a, const Near& b) { return a.value < b.value; };
  const double highest = std::max_element(scores.begin(), scores.end(), is_less)->value;
  Near sum;
  for (size_t page = 0; page < positions; page += 64) {
    const auto first = scores.begin() + page, last = scores.begin() + std::min(page + 64, positions);
    const auto top = std::max_element(rounding_span ? scores.begin() + page / rounding_span * rounding_span : first, last, is_less);
    // Softmax does not depend on what is subtracted, so the error of a maximum is none of the sums': only of what is rounded.
    const Near share = exponential(exactly(top->value - highest));
    for (auto score = first; score != last; ++score) {
      const Near weight = exponential(*score - exactly(top->value));
      sum = sum + weight * share;
      const Near entering = rounding_span ? nearest_bf16(score == top ? exactly(1) : exponential(*score - *top)) : weight;
      for (size_t d = 0; d < head_dim; ++d) out[d] = out[d] + entering * share * exactly(values[score - scores.begin()][d]);
    }
  }
  for (Near& o : out) o = o / sum;
  return out;
}

}  // namespace paceline::reference
