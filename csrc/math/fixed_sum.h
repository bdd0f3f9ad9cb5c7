// Sums over the vocabulary, exactly: floor(2^45 e^x) as 64-bit integers. Integers add exactly, so blocks, threads and
// backends cannot change a bit (fp32 partial sums change a third of all logprobs with the number of parts).
#pragma once

#include "math/exp_log.h"

namespace paceline {

constexpr int kMaxVocabSize = 1 << 18;  // 2^18 weights of at most 2^45 stay below 2^63

// Weight of a token with x = (l - l_max) / T <= 0.
PACELINE_HD uint64_t fixed_weight(double x) {
  return x > -32.0 ? uint64_t(exp_of(x) * 0x1p45) : 0;  // e^-32 2^45 < 1
}

// Logarithm of a sum of fixed weights, sum >= 1.
PACELINE_HD double log_of_sum(uint64_t sum) { return log_of(double(sum) * 0x1p-45); }

}  // namespace paceline
