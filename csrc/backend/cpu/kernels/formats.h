// How weights of each format meet rows: the sums of R blocks of sixteen outputs with M rows, over all of K. linear.cc decides
// which blocks and rows, and what becomes of the sums.
//
// A format says how many rows share one load of a weight at most (kRows; more are dealt to tiles) and how many blocks are then in
// flight (blocks(rows)). From memory four streams are 12 % faster than eight; sums and weights must leave two of the 32 registers free.
// AVX2 has sixteen of half the width.
#pragma once

#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/simd.h"
#include "math/bfloat16.h"

namespace paceline::cpu::PACELINE_ISA {

constexpr int kPrefetchBytes = 8192;  // ahead, shared by the streams of the blocks in flight; 6 to 16 KB measured alike

// Where R neighbouring blocks are being read, line by line, and what is fetched meanwhile: each block's lines ahead, and past its end
// those of the block R further on, which is read next (int4 blocks are so short that R cold starts each cost 8 %). While the tiles
// of a pass take turns at one chunk of weights, each also fetches its share of the next chunk: with two tiles or more the memory
// would otherwise rest while the second multiplies. All into the second-level cache: the first has so few places for lines on
// their way that the multiplications would wait for one (8 rows of int8 took 1.25 times the limit, and now 1.10).
template <int R>
struct Lines {
  const char *at[R], *next[R];
  size_t ahead, jump;
  int until_jump, until_fetch, turns;

  void move() {
    for (int r = 0; r < R; ++r) {
      _mm_prefetch(at[r] + ahead, _MM_HINT_T1);
      at[r] += 64;
    }
    if (--until_jump == 0) ahead += jump;
    if (--until_fetch > 0) return;
    until_fetch = turns;
    for (int r = 0; r < R; ++r) {
      _mm_prefetch(next[r], _MM_HINT_T1);
      next[r] += 64;
    }
  }
};

// Sums live in arrays of the innermost function: gcc keeps those in registers, and those of a caller in memory.
template <int M, int R>
struct Sums {
  F32 of[R][M];
  Sums() {
    for (int r = 0; r < R; ++r)
      for (int m = 0; m < M; ++m) of[r][m] = splat(0.0f);
  }
  void copy(F32 (&out)[R][M]) const {
    for (int r = 0; r < R; ++r)
      for (int m = 0; m < M; ++m) out[r][m] = of[r][m];
  }
};

struct Fp32 {
#if defined(PACELINE_ISA_avx2)
  static constexpr int kRows = 2;
  static constexpr int blocks(int rows) { return rows == 1 ? 4 : 2; }
#else
  static constexpr int kRows = 12;
  static constexpr int blocks(int rows) { return rows <= 6 ? 4 : 2; }
#endif
  template <int M, int R>
  static void sums(const Matrix& w, Lines<R>& lines, PackedRows x, F32 (&out)[R][M]) {
    Sums<M, R> sum;
    for (int left = w.k; left > 0; left -= 16, x.line += size_t(x.rows) * 64)
      for (int i = 0; i < (left < 16 ? left : 16); ++i, lines.move()) {
        F32 weight[R];
        for (int r = 0; r < R; ++r) weight[r] = load(reinterpret_cast<const float*>(lines.at[r]));
        for (int m = 0; m < M; ++m) {
          const F32 value = splat(reinterpret_cast<const float*>(x.line)[16 * m + i]);
          for (int r = 0; r < R; ++r) sum.of[r][m] = fma(weight[r], value, sum.of[r][m]);
        }
      }
    sum.copy(out);
  }
};

#if defined(PACELINE_ISA_avx512_bf16)
struct Bf16 {
  static constexpr int kRows = 12;
  static constexpr int blocks(int rows) { return rows <= 6 ? 4 : 2; }
  template <int M, int R>
  static void sums(const Matrix& w, Lines<R>& lines, PackedRows x, F32 (&out)[R][M]) {
    Sums<M, R> sum;
    for (int left = (w.k + 1) / 2; left > 0; left -= 16, x.line += size_t(x.rows) * 64)
      for (int i = 0; i < (left < 16 ? left : 16); ++i, lines.move()) {
        __m512bh weight[R];
        for (int r = 0; r < R; ++r) weight[r] = (__m512bh)_mm512_loadu_si512(lines.at[r]);
        for (int m = 0; m < M; ++m) {
          const __m512bh pair = (__m512bh)_mm512_set1_epi32(reinterpret_cast<const int32_t*>(x.line)[16 * m + i]);
          for (int r = 0; r < R; ++r) sum.of[r][m].v = _mm512_dpbf16_ps(sum.of[r][m].v, weight[r], pair);
        }
      }
    sum.copy(out);
  }
};
#else
struct Bf16 {
#if defined(PACELINE_ISA_avx2)
  static constexpr int kRows = 4;
  static constexpr int blocks(int rows) { return rows <= 2 ? 2 : 1; }
#else
  static constexpr int kRows = 12;
  static constexpr int blocks(int rows) { return rows <= 5 ? 4 : 2; }
#endif
  template <int M, int R>
  static void sums(const Matrix& w, Lines<R>& lines, PackedRows x, F32 (&out)[R][M]) {
    Sums<M, R> sum;
    for (int left = (w.k + 1) / 2; left > 0; left -= 8, x.line += size_t(x.rows) * 64)
      for (int i = 0; i < (left < 8 ? left : 8); ++i, lines.move()) {
        F32 low[R], high[R];
        for (int r = 0; r < R; ++r) {
          low[r] = load_even(reinterpret_cast<const uint32_t*>(lines.at[r]));
          high[r] = load_odd(reinterpret_cast<const uint32_t*>(lines.at[r]));
        }
        for (int m = 0; m < M; ++m) {
          const float* pair = reinterpret_cast<const float*>(x.line) + 16 * m + 2 * i;  // rounded to bf16
          const F32 even = splat(pair[0]), odd = splat(pair[1]);
          for (int r = 0; r < R; ++r) sum.of[r][m] = fma(high[r], odd, fma(low[r], even, sum.of[r][m]));
        }
      }
    sum.copy(out);
  }
};
#endif

// Integer weights are stored with an offset that makes them unsigned, as the instructions want one side; a row's sums start at
// minus that offset times the sum of its values. Groups are of G values along K.
static inline I32 splat_four(const char* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return splat(four);
}

template <int Bits, int G>
struct Integer {
#if defined(PACELINE_ISA_avx2)
  static constexpr int kRows = 4;
  static constexpr int blocks(int rows) { return rows <= 1 ? 2 : 1; }
#else
  // Integer sums and float totals both stay in registers: up to six rows with two blocks, up to twelve with one. The latter only where
  // a weight needs no work before it is multiplied.
  static constexpr int kRows = Bits == 8 && kMultipliesBytes ? 12 : 6;
  static constexpr int blocks(int rows) { return rows == 1 ? 4 : rows <= 6 ? 2 : 1; }
#endif
  // One line of each block: four values along K, or eight.
  template <int M, int R>
  static void step(const Lines<R>& lines, const char* x, I32 (&sum)[R][M]) {
    I32 weight[R], high[R];
    for (int r = 0; r < R; ++r) {
      weight[r] = load_line(lines.at[r]);
      if constexpr (Bits == 4) high[r] = high_nibbles(weight[r]), weight[r] = low_nibbles(weight[r]);
    }
    for (int m = 0; m < M; ++m) {
      const I32 four = splat_four(x + m * G);
      if constexpr (Bits == 8) {
        for (int r = 0; r < R; ++r) add_dot(sum[r][m], weight[r], four);
      } else {
        const I32 next_four = splat_four(x + m * G + 4);
        for (int r = 0; r < R; ++r) add_dot_nibbles(sum[r][m], weight[r], four), add_dot_nibbles(sum[r][m], high[r], next_four);
      }
    }
  }

  template <int M, int R>
  static void sums(const Matrix& w, Lines<R>& lines, PackedRows x, F32 (&out)[R][M]) {
    Sums<M, R> total;
    const RowGroup* const row = x.group;
    const char* scales[R] = {};
    for (int group = 0; group < groups_of(w.k, G); ++group, x.line += size_t(x.rows) * G, x.group += x.rows) {
      if (Bits == 8 ? group == 0 : group % 2 == 0) {
        for (int r = 0; r < R; ++r) scales[r] = lines.at[r];
        lines.move();
      }
      I32 sum[R][M];
      for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m) sum[r][m] = splat(x.group[m].correction);
      for (int k = 0; k < G; k += 32 / Bits, lines.move()) step<M, R>(lines, x.line + k, sum);
      for (int r = 0; r < R; ++r) {
        F32 scale;
        if constexpr (Bits == 4) scale = load_bf16(reinterpret_cast<const bf16*>(scales[r]) + group % 2 * kLanes);
        for (int m = 0; m < M; ++m) {
          if constexpr (Bits == 8) scale = splat(x.group[m].scale);
          total.of[r][m] = fma(scale, to_float(sum[r][m]), total.of[r][m]);
        }
      }
    }
    for (int r = 0; r < R; ++r)
      for (int m = 0; m < M; ++m) out[r][m] = total.of[r][m] * (Bits == 8 ? load(reinterpret_cast<const float*>(scales[r])) : splat(row[m].scale));
  }
};

}  // namespace paceline::cpu::PACELINE_ISA
