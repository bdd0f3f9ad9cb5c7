// Products of weight matrices with a few rows: out[t, n] = sum_k W[n, k] x[t, k].
//
// Traffic   the weights once, N K bytes-per-weight, for any number of rows: that is what makes verification cheap.
// Order     every (row, output) is one accumulator that walks K from 0 up. The number of rows chooses how many blocks of
//           outputs are in flight, never the order of a sum: a row's bits do not depend on its company.
// Oracle    tests/reference/linear.h
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/simd.h"
#include "core/bfloat16.h"

namespace paceline::cpu::PACELINE_ISA {
namespace {

constexpr int kPrefetchBytes = 1536;  // ahead in each block's stream; 1 to 1.5 KB measured best

// Step k of K for R blocks and M rows. w: the step's 64 bytes of each block; x: the rows.
struct Fp32 {
  using Value = float;
  template <int M, int R>
  static void step(const char* const (&w)[R], const Value* const (&x)[M], int k, F32 (&sum)[R][M]) {
    F32 weight[R];
    for (int r = 0; r < R; ++r) weight[r] = load(reinterpret_cast<const float*>(w[r]));
    for (int m = 0; m < M; ++m) {
      const F32 value = splat(x[m][k]);
      for (int r = 0; r < R; ++r) sum[r][m] = fma(weight[r], value, sum[r][m]);
    }
  }
};

#if defined(PACELINE_ISA_avx512_bf16)
struct Bf16 {
  using Value = uint32_t;  // a pair
  template <int M, int R>
  static void step(const char* const (&w)[R], const Value* const (&x)[M], int k, F32 (&sum)[R][M]) {
    __m512bh weight[R];
    for (int r = 0; r < R; ++r) weight[r] = (__m512bh)_mm512_loadu_si512(w[r]);
    for (int m = 0; m < M; ++m) {
      const __m512bh value = (__m512bh)_mm512_set1_epi32(int(x[m][k]));
      for (int r = 0; r < R; ++r) sum[r][m].v = _mm512_dpbf16_ps(sum[r][m].v, weight[r], value);
    }
  }
};
#else
struct Bf16 {
  using Value = float;  // rounded to bf16
  template <int M, int R>
  static void step(const char* const (&w)[R], const Value* const (&x)[M], int k, F32 (&sum)[R][M]) {
    F32 low[R], high[R];
    for (int r = 0; r < R; ++r) {
      low[r] = load_even(reinterpret_cast<const uint32_t*>(w[r]));
      high[r] = load_odd(reinterpret_cast<const uint32_t*>(w[r]));
    }
    for (int m = 0; m < M; ++m) {
      const F32 even = splat(x[m][2 * k]), odd = splat(x[m][2 * k + 1]);
      for (int r = 0; r < R; ++r) sum[r][m] = fma(high[r], odd, fma(low[r], even, sum[r][m]));
    }
  }
};
#endif

void finish(const Epilogue& to, int block, int row, F32 sum, F32 next_block) {
  const int column = (to.kind == Epilogue::gate ? block / 2 : block) * kLanes, count = to.n - column;
  if (count <= 0) return;
  float* out = to.out + size_t(row) * to.stride + column;
  if (to.kind == Epilogue::gate) {  // silu(gate) up
    const F32 sigmoid = splat(1.0f) / (splat(1.0f) + exp_of(splat(0.0f) - sum));
    return store_first(out, count, (sum * sigmoid) * next_block);
  }
  if (to.bias) sum = sum + load(to.bias + column);
  if (to.kind == Epilogue::add) sum = load_first(out, count) + sum;
  store_first(out, count, sum);
}

// R blocks from `block` against rows [m0, m0 + M) of the tile.
template <class Format, int M, int R>
void product(const Matrix& w, const Tile& tile, int m0, int block, int first_row, const Epilogue& to) {
  F32 sum[R][M];
  const char* stream[R];
  const typename Format::Value* x[M];
  for (int m = 0; m < M; ++m) x[m] = reinterpret_cast<const typename Format::Value*>(tile.packed + (m0 + m) * tile.row_bytes);
  for (int r = 0; r < R; ++r) {
    stream[r] = static_cast<const char*>(w.data) + (block + r) * w.block_bytes();
    for (int m = 0; m < M; ++m) sum[r][m] = splat(0.0f);
  }
  const int steps = w.steps();
  for (int k = 0; k < steps; ++k) {
    Format::template step<M, R>(stream, x, k, sum);
    for (int r = 0; r < R; ++r) {
      _mm_prefetch(stream[r] + kPrefetchBytes, _MM_HINT_T0);
      stream[r] += 64;
    }
  }
  for (int r = 0; r < R; r += to.kind == Epilogue::gate ? 2 : 1)
    for (int m = 0; m < M; ++m) finish(to, block + r, first_row + m0 + m, sum[r][m], sum[r + 1 < R ? r + 1 : r][m]);
}

// All blocks of [begin, end) for M rows: R at a time, then fewer. Gate and up come in pairs, so their ranges are even.
template <class Format, int M, int R>
void sweep(const Matrix& w, const Tile& tile, int m0, int begin, int end, int first_row, const Epilogue& to) {
  for (; begin + R <= end; begin += R) product<Format, M, R>(w, tile, m0, begin, first_row, to);
  if constexpr (R > 1)
    if (begin < end) sweep<Format, M, R / 2>(w, tile, m0, begin, end, first_row, to);
}

// R M sums plus R weights stay below the number of registers: 32, or 16 halves.
template <class Format>
void rows_of(const Matrix& w, const Tile& tile, int begin, int end, int first_row, const Epilogue& to) {
  int m0 = 0;
#if defined(PACELINE_ISA_avx2)
  for (; tile.rows - m0 >= 2; m0 += 2) sweep<Format, 2, 2>(w, tile, m0, begin, end, first_row, to);
  if (m0 < tile.rows) sweep<Format, 1, 4>(w, tile, m0, begin, end, first_row, to);
#else
  switch (tile.rows) {
    case 1: return sweep<Format, 1, 8>(w, tile, m0, begin, end, first_row, to);
    case 2: return sweep<Format, 2, 8>(w, tile, m0, begin, end, first_row, to);
    case 3: return sweep<Format, 3, 8>(w, tile, m0, begin, end, first_row, to);
    case 4: return sweep<Format, 4, 4>(w, tile, m0, begin, end, first_row, to);
    case 5: return sweep<Format, 5, 4>(w, tile, m0, begin, end, first_row, to);
    case 6: return sweep<Format, 6, 4>(w, tile, m0, begin, end, first_row, to);
    case 7: return sweep<Format, 7, 2>(w, tile, m0, begin, end, first_row, to);
    default: return sweep<Format, 8, 2>(w, tile, m0, begin, end, first_row, to);
  }
#endif
}

}  // namespace

// Several tiles share each chunk of weights while it is in the second-level cache, so it comes from memory once.
void linear(const Matrix& w, const Tile* tiles, int num_tiles, int begin, int end, const Epilogue& to) {
  const int in_cache = int((256 << 10) / w.block_bytes()) & ~1;
  const int chunk = num_tiles == 1 ? end - begin : (in_cache > 4 ? in_cache : 4);
  for (; begin < end; begin += chunk) {
    const int stop = begin + chunk < end ? begin + chunk : end;
    for (int i = 0; i < num_tiles; ++i) {
      if (w.dtype == DType::bf16) rows_of<Bf16>(w, tiles[i], begin, stop, i * kTileRows, to);
      else rows_of<Fp32>(w, tiles[i], begin, stop, i * kTileRows, to);
    }
  }
}

}  // namespace paceline::cpu::PACELINE_ISA
