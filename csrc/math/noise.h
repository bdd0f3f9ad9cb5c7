// Noise by address, not by order: every random number is a pure function of (seed, position, purpose, token id).
//
// Counter words: c0 = token id >> 2, the word is chosen by id & 3 (word 0 for scalars); c1 = position of the token being
// chosen; c2 = 0 for TOKEN noise, else the first position of the cycle; c3 = purpose + half 2^8 + sample index 2^16.
// The first position of the cycle is in the address of draft and accept noise so that no address is ever consulted twice:
// a position drafted again after a rejection gets fresh noise, and whatever the discarded drafts told a controller is
// independent of it. TOKEN noise is the opposite: it belongs to the position, so that the seed fixes the output.
#pragma once

#include "math/exp_log.h"
#include "math/philox.h"

namespace paceline {

enum class Purpose : uint32_t {
  token = 0,   // `coupled`: target and draft alike; plain decoding under either rule; the extra token of `rejection`
  draft = 1,   // draft tokens of `rejection`
  accept = 2,  // the uniforms of `rejection`
};

struct NoiseAddress {
  uint64_t seed;
  uint32_t position;     // of the token being chosen, prompt included
  uint32_t cycle_start;  // first position of the cycle; ignored for Purpose::token
  Purpose purpose;
  uint32_t sample_index;  // n-th sample or fork of one request
};

// The 32-bit words of token ids 4 g .. 4 g + 3. half 0 gives the high words of k, half 1 the low ones.
PACELINE_HD PhiloxWords noise_words(const NoiseAddress& at, uint32_t group, uint32_t half) {
  const uint32_t cycle = at.purpose == Purpose::token ? 0 : at.cycle_start;
  return philox(at.seed, group, at.position, cycle, uint32_t(at.purpose) + (half << 8) + (at.sample_index << 16));
}

// y = min((k + 1/2) 2^-64, 1 - 2^-53), k = hi 2^32 + lo: uniform, never 0, never 1, rounded once.
PACELINE_HD double uniform_of(uint32_t hi, uint32_t lo) {
  const double y = fma(double(hi), 0x1p-32, (double(lo) + 0.5) * 0x1p-64);
  return y < 1.0 - 0x1p-53 ? y : 1.0 - 0x1p-53;
}

// Exponential of mean 1: e = -log1p(-y). 64 bits of k: with 32 the law would be off by 4e-6 at V = 152064 and tails beyond 22 nats lost.
PACELINE_HD double exponential_of(uint32_t hi, uint32_t lo) { return minus_log1m(uniform_of(hi, lo)); }

PACELINE_HD double exponential_at(const NoiseAddress& at, uint32_t token) {
  return exponential_of(noise_words(at, token >> 2, 0).word[token & 3], noise_words(at, token >> 2, 1).word[token & 3]);
}

// Gumbel = -log e: argmax of (log weight + Gumbel) draws a token with probability proportional to its weight.
PACELINE_HD double gumbel_of(double exponential) { return -log_of(exponential); }

// 53-bit uniform in [0, 1): the u of `rejection`.
PACELINE_HD double accept_uniform_at(const NoiseAddress& at) {
  const uint64_t hi = noise_words(at, 0, 0).word[0], lo = noise_words(at, 0, 1).word[0];
  return double((hi << 32 | lo) >> 11) * 0x1p-53;
}

}  // namespace paceline
