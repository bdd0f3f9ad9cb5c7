// The noise of many token ids at once: Philox with its counters side by side, in 64-bit lanes of which the low halves count. Every
// product of a round then lies where the next round wants it, and garbage above is never looked at: six operations per round
// and vector. math/noise.h says what the words are; the compiler's own vectorisation of it is four times slower.
#pragma once

#include <immintrin.h>

#include "math/noise.h"

namespace paceline::cpu::PACELINE_ISA {

#if defined(PACELINE_ISA_avx2)
using Counters = __m256i;
constexpr int kCounters = 4;
static inline Counters splat_counter(uint32_t x) { return _mm256_set1_epi64x(x); }
static inline Counters counting(uint32_t first) { return _mm256_add_epi64(splat_counter(first), _mm256_setr_epi64x(0, 1, 2, 3)); }
static inline Counters times(Counters a, Counters b) { return _mm256_mul_epu32(a, b); }
static inline Counters upper(Counters a) { return _mm256_srli_epi64(a, 32); }
static inline Counters xor3(Counters a, Counters b, Counters c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
static inline Counters joined(Counters low, Counters high) { return _mm256_blend_epi32(low, _mm256_slli_epi64(high, 32), 0xaa); }
// Pairs (0, 1) and (2, 3) of the words of each counter, to four words after the other.
static inline void store_words(uint32_t* words, Counters first, Counters second) {
  const Counters even = _mm256_unpacklo_epi64(first, second), odd = _mm256_unpackhi_epi64(first, second);
  _mm256_storeu_si256(reinterpret_cast<Counters*>(words), _mm256_permute2x128_si256(even, odd, 0x20));
  _mm256_storeu_si256(reinterpret_cast<Counters*>(words + 8), _mm256_permute2x128_si256(even, odd, 0x31));
}
#else
using Counters = __m512i;
constexpr int kCounters = 8;
static inline Counters splat_counter(uint32_t x) { return _mm512_set1_epi64(x); }
static inline Counters counting(uint32_t first) { return _mm512_add_epi64(splat_counter(first), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7)); }
static inline Counters times(Counters a, Counters b) { return _mm512_mul_epu32(a, b); }
static inline Counters upper(Counters a) { return _mm512_srli_epi64(a, 32); }
static inline Counters xor3(Counters a, Counters b, Counters c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
static inline Counters joined(Counters low, Counters high) { return _mm512_mask_blend_epi32(0xaaaa, low, _mm512_slli_epi64(high, 32)); }
static inline void store_words(uint32_t* words, Counters first, Counters second) {
  _mm512_storeu_si512(words, _mm512_permutex2var_epi64(first, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), second));
  _mm512_storeu_si512(words + 16, _mm512_permutex2var_epi64(first, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), second));
}
#endif

// High noise words of 64 ids from `first`, a multiple of 64: those of noise_words(at, first / 4 + g, 0) for sixteen g.
static inline void high_words(const NoiseAddress& at, uint32_t first, uint32_t* words) {
  constexpr int kVectors = 16 / kCounters;
  Counters c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
  for (int i = 0; i < kVectors; ++i) {
    c0[i] = counting(first / 4 + i * kCounters);
    c1[i] = splat_counter(at.position);
    c2[i] = splat_counter(at.purpose == Purpose::token ? 0 : at.cycle_start);
    c3[i] = splat_counter(uint32_t(at.purpose) + (at.sample_index << 16));
  }
  uint32_t k0 = uint32_t(at.seed), k1 = uint32_t(at.seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
    for (int i = 0; i < kVectors; ++i) {
      const Counters a = times(c0[i], splat_counter(0xD2511F53u)), b = times(c2[i], splat_counter(0xCD9E8D57u));
      c0[i] = xor3(upper(b), c1[i], splat_counter(k0));
      c1[i] = b;
      c2[i] = xor3(upper(a), c3[i], splat_counter(k1));
      c3[i] = a;
    }
  for (int i = 0; i < kVectors; ++i) store_words(words + 4 * kCounters * i, joined(c0[i], c1[i]), joined(c2[i], c3[i]));
}

}  // namespace paceline::cpu::PACELINE_ISA
