// How weights of each format meet rows: the sums of R blocks of sixteen outputs with M rows, over all of K. linear.cc decides
// which blocks and rows, and what becomes of the sums.
//
// A format says how many rows share one load of a weight (kRows where there are several such tiles, kAlone for a single one) and how
// many blocks are then in flight (blocks(rows)). From memory four streams are 12 % faster than eight; sums and weights must leave two
// of the 32 registers free. AVX2 has sixteen of half the width.
#pragma once

#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/simd.h"
#include "core/bfloat16.h"

namespace paceline::cpu::PACELINE_ISA {

constexpr int kPrefetchBytes = 6144;  // ahead, shared by the streams of the blocks in flight; 6 to 8 KB measured best

// Where R neighbouring blocks are being read, line by line, and what is fetched meanwhile: each block's lines ahead, and past its end
// those of the block R further on, which is read next (int4 blocks are so short that R cold starts each cost 8 %). While the tiles
// of a pass take turns at one chunk of weights, each also fetches its share of the next chunk: with two tiles or more the memory
// would otherwise rest while the second multiplies.
template <int R>
struct Lines {
  const char *at[R], *next[R];
  size_t ahead, jump;
  int until_jump, until_fetch, turns;

  void move() {
    for (int r = 0; r < R; ++r) {
      _mm_prefetch(at[r] + ahead, _MM_HINT_T0);
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
  static constexpr int kRows = 2, kAlone = 2;
  static constexpr int blocks(int rows) { return rows == 1 ? 4 : rows <= 12 ? 2 : 1; }
#else
  static constexpr int kRows = 12, kAlone = 16;
  static constexpr int blocks(int rows) { return rows <= 6 ? 4 : rows <= 12 ? 2 : 1; }
#endif
  template <int M, int R>
  static void sums(const Matrix& w, Lines<R>& lines, const char* const (&x)[M], F32 (&out)[R][M]) {
    Sums<M, R> sum;
    for (int k = 0; k < w.k; ++k, lines.move()) {
      F32 weight[R];
      for (int r = 0; r < R; ++r) weight[r] = load(reinterpret_cast<const float*>(lines.at[r]));
      for (int m = 0; m < M; ++m) {
        const F32 value = splat(reinterpret_cast<const float*>(x[m])[k]);
        for (int r = 0; r < R; ++r) sum.of[r][m] = fma(weight[r], value, sum.of[r][m]);
      }
    }
    sum.copy(out);
  }
};

#if defined(PACELINE_ISA_avx512_bf16)
struct Bf16 {
  static constexpr int kRows = 12, kAlone = 16;
  static constexpr int blocks(int rows) { return rows <= 6 ? 4 : rows <= 12 ? 2 : 1; }
  template <int M, int R>
  static void sums(const Matrix& w, Lines<R>& lines, const char* const (&x)[M], F32 (&out)[R][M]) {
    Sums<M, R> sum;
    for (int k = 0; k < (w.k + 1) / 2; ++k, lines.move()) {
      __m512bh weight[R];
      for (int r = 0; r < R; ++r) weight[r] = (__m512bh)_mm512_loadu_si512(lines.at[r]);
      for (int m = 0; m < M; ++m) {
        const __m512bh pair = (__m512bh)_mm512_set1_epi32(reinterpret_cast<const int32_t*>(x[m])[k]);
        for (int r = 0; r < R; ++r) sum.of[r][m].v = _mm512_dpbf16_ps(sum.of[r][m].v, weight[r], pair);
      }
    }
    sum.copy(out);
  }
};
#else
struct Bf16 {
#if defined(PACELINE_ISA_avx2)
  static constexpr int kRows = 4, kAlone = 4;
  static constexpr int blocks(int rows) { return rows <= 2 ? 2 : 1; }
#else
  static constexpr int kRows = 12, kAlone = 16;
  static constexpr int blocks(int rows) { return rows <= 5 ? 4 : rows <= 12 ? 2 : 1; }
#endif
  template <int M, int R>
  static void sums(const Matrix& w, Lines<R>& lines, const char* const (&x)[M], F32 (&out)[R][M]) {
    Sums<M, R> sum;
    for (int k = 0; k < (w.k + 1) / 2; ++k, lines.move()) {
      F32 low[R], high[R];
      for (int r = 0; r < R; ++r) {
        low[r] = load_even(reinterpret_cast<const uint32_t*>(lines.at[r]));
        high[r] = load_odd(reinterpret_cast<const uint32_t*>(lines.at[r]));
      }
      for (int m = 0; m < M; ++m) {
        const float* pair = reinterpret_cast<const float*>(x[m]) + 2 * k;  // rounded to bf16
        const F32 even = splat(pair[0]), odd = splat(pair[1]);
        for (int r = 0; r < R; ++r) sum.of[r][m] = fma(high[r], odd, fma(low[r], even, sum.of[r][m]));
      }
    }
    sum.copy(out);
  }
};
#endif

// Integer weights are stored with an offset that makes them unsigned, as the instructions want one side; a row's sums start at
// minus that offset times the sum of its values.
static inline int32_t four_values(const char* x, int index) {
  int32_t four;
  __builtin_memcpy(&four, x + kRowHead + 4 * size_t(index), 4);
  return four;
}

struct Int8 {
#if defined(PACELINE_ISA_avx2)
  static constexpr int kRows = 4, kAlone = 4;
  static constexpr int blocks(int rows) { return rows <= 2 ? 2 : 1; }
#else
  static constexpr int kRows = 12, kAlone = 16;
  static constexpr int blocks(int rows) { return rows <= 6 ? 4 : rows <= 12 ? 2 : 1; }
#endif
  template <int M, int R>
  static void sums(const Matrix& w, Lines<R>& lines, const char* const (&x)[M], F32 (&out)[R][M]) {
    const char* scales[R];
    I32 sum[R][M];
    for (int r = 0; r < R; ++r) {
      scales[r] = lines.at[r];
      for (int m = 0; m < M; ++m) sum[r][m] = splat(row_head(x[m]).correction);
    }
    lines.move();
    for (int k = 0; k < (w.k + 3) / 4; ++k, lines.move()) {
      I32 weight[R];
      for (int r = 0; r < R; ++r) weight[r] = load_line(lines.at[r]);
      for (int m = 0; m < M; ++m) {
        const I32 four = splat(four_values(x[m], k));
        for (int r = 0; r < R; ++r) add_dot(sum[r][m], weight[r], four);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int m = 0; m < M; ++m)
        out[r][m] = to_float(sum[r][m]) * (load(reinterpret_cast<const float*>(scales[r])) * splat(row_head(x[m]).scale));
  }
};

// G values along K share a scale; a line of scales leads each two groups.
template <int G>
struct Int4 {
#if defined(PACELINE_ISA_avx2)
  static constexpr int kRows = 4, kAlone = 4;
  static constexpr int blocks(int rows) { return rows <= 1 ? 2 : 1; }
#else
  static constexpr int kRows = 12, kAlone = 12;  // a single block at a time is 1.5 times slower: gcc spills its sums
  static constexpr int blocks(int rows) { return rows == 1 ? 4 : 2; }
#endif
  template <int M, int R>
  static void sums(const Matrix& w, Lines<R>& lines, const char* const (&x)[M], F32 (&out)[R][M]) {
    Sums<M, R>().copy(out);
    const int groups = groups_of(w.k, G);
    const int32_t* corrections[M];
    for (int m = 0; m < M; ++m) corrections[m] = reinterpret_cast<const int32_t*>(x[m] + kRowHead + size_t(groups) * G);
    for (int first = 0; first < groups; first += 2) {
      const char* scales[R];
      for (int r = 0; r < R; ++r) scales[r] = lines.at[r];
      lines.move();
      for (int half = 0; half < 2; ++half) {
        const int group = first + half;
        I32 sum[R][M];
        for (int r = 0; r < R; ++r)
          for (int m = 0; m < M; ++m) sum[r][m] = splat(corrections[m][group]);
        asm volatile("" ::"r"(&out) : "memory");  // totals stay in memory: registers are for the loop
        for (int k = group * (G / 4); k < (group + 1) * (G / 4); k += 2, lines.move()) {
          I32 low[R], high[R];
          for (int r = 0; r < R; ++r) {
            const I32 line = load_line(lines.at[r]);
            low[r] = low_nibbles(line), high[r] = high_nibbles(line);
          }
          for (int m = 0; m < M; ++m) {
            const I32 four = splat(four_values(x[m], k)), next_four = splat(four_values(x[m], k + 1));
            for (int r = 0; r < R; ++r) add_dot_nibbles(sum[r][m], low[r], four), add_dot_nibbles(sum[r][m], high[r], next_four);
          }
        }
        for (int r = 0; r < R; ++r) {
          const F32 scale = load_bf16(reinterpret_cast<const bf16*>(scales[r]) + half * kLanes);
          for (int m = 0; m < M; ++m) out[r][m] = fma(scale, to_float(sum[r][m]), out[r][m]);
        }
      }
    }
    for (int r = 0; r < R; ++r)
      for (int m = 0; m < M; ++m) out[r][m] = out[r][m] * splat(row_head(x[m]).scale);
  }
};

}  // namespace paceline::cpu::PACELINE_ISA
