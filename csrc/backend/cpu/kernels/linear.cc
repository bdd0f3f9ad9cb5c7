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

constexpr int kPrefetchBytes = 6144;       // ahead, shared by the streams of the blocks in flight; 6 to 8 KB measured best
constexpr size_t kChunkBytes = 256 << 10;  // weights that several tiles share: this and the next chunk fit the second-level cache

// Rows that share one load of each weight.
#if defined(PACELINE_ISA_avx2)
constexpr int kTileRows = 2;
#else
constexpr int kTileRows = 8;
#endif

struct Tile {
  const char* packed;
  size_t row_bytes;
  int first_row, rows;
  // While the tiles of a pass take turns at one chunk of weights, each fetches its share of the next one: with two tiles or
  // more the memory would otherwise rest while the second multiplies.
  size_t next_chunk;  // bytes from a block to its counterpart there; 0 = none
  int turn, turns;
};

// Step k of K for R blocks and M rows. w: the step's 64 bytes of each block; x: the rows.
struct Fp32 {
  static constexpr int kRegisters = 1;  // that a block's weights take in a step
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
  static constexpr int kRegisters = 1;
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
  static constexpr int kRegisters = 2;
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

// R blocks from `block` against the M rows of the tile.
template <class Format, int M, int R>
void product(const Matrix& w, const Tile& tile, int block, const Epilogue& to) {
  F32 sum[R][M];
  const char *stream[R], *next[R];
  const typename Format::Value* x[M];
  const int steps = w.steps(), share = (steps + tile.turns - 1) / tile.turns;
  for (int m = 0; m < M; ++m) x[m] = reinterpret_cast<const typename Format::Value*>(tile.packed + m * tile.row_bytes);
  for (int r = 0; r < R; ++r) {
    stream[r] = static_cast<const char*>(w.data) + (block + r) * w.block_bytes();
    next[r] = stream[r] + tile.next_chunk + size_t(tile.turn) * share * 64;
    for (int m = 0; m < M; ++m) sum[r][m] = splat(0.0f);
  }
  int until_fetch = tile.next_chunk ? 1 : steps + 1;
  for (int k = 0; k < steps; ++k) {
    Format::template step<M, R>(stream, x, k, sum);
    for (int r = 0; r < R; ++r) {
      _mm_prefetch(stream[r] + kPrefetchBytes / R, _MM_HINT_T0);
      stream[r] += 64;
    }
    if (--until_fetch > 0) continue;
    until_fetch = tile.turns;
    for (int r = 0; r < R; ++r) {
      _mm_prefetch(next[r], _MM_HINT_T1);
      next[r] += 64;
    }
  }
  for (int r = 0; r < R; r += to.kind == Epilogue::gate ? 2 : 1)
    for (int m = 0; m < M; ++m) finish(to, block + r, tile.first_row + m, sum[r][m], sum[r + 1 < R ? r + 1 : r][m]);
}

// All blocks of [begin, end) for M rows: R at a time, then fewer. Gate and up come in pairs, so their ranges are even.
template <class Format, int M, int R>
void sweep(const Matrix& w, const Tile& tile, int begin, int end, const Epilogue& to) {
  for (; begin + R <= end; begin += R) product<Format, M, R>(w, tile, begin, to);
  if constexpr (R > 1)
    if (begin < end) sweep<Format, M, R / 2>(w, tile, begin, end, to);
}

// Four blocks in flight while sums and weights leave two of the 32 registers free (eight streams were 12 % slower from
// memory); AVX2 has 16 registers of half the width.
template <class Format, int M>
void rows_of(const Matrix& w, const Tile& tile, int begin, int end, const Epilogue& to) {
#if defined(PACELINE_ISA_avx2)
  constexpr int kBlocks = M == 1 ? 4 : 2;
#else
  constexpr int kBlocks = 4 * (M + Format::kRegisters) <= 30 ? 4 : 2;
#endif
  if (M == tile.rows) return sweep<Format, M, kBlocks>(w, tile, begin, end, to);
  if constexpr (M < kTileRows) rows_of<Format, M + 1>(w, tile, begin, end, to);
}

}  // namespace

// Rows are dealt evenly to as few tiles as hold them. Several tiles take turns at each chunk of weights, so that it comes from
// memory once.
void linear(const Matrix& w, const char* packed, int rows, int begin, int end, const Epilogue& to) {
  const size_t row_bytes = packed_row_bytes(w.k, w.dtype);
  const int tiles = (rows + kTileRows - 1) / kTileRows, fitting = int(kChunkBytes / w.block_bytes()) & ~1;
  const int chunk = tiles == 1 ? end - begin : (fitting > 2 ? fitting : 2);
  for (; begin < end; begin += chunk) {
    const int stop = begin + chunk < end ? begin + chunk : end;
    const size_t next_chunk = stop + chunk <= end ? chunk * w.block_bytes() : 0;
    for (int i = 0; i < tiles; ++i) {
      const int first = rows * i / tiles, last = rows * (i + 1) / tiles;
      const Tile tile{packed + first * row_bytes, row_bytes, first, last - first, next_chunk, i, tiles};
      if (w.dtype == DType::bf16) rows_of<Bf16, 1>(w, tile, begin, stop, to);
      else rows_of<Fp32, 1>(w, tile, begin, stop, to);
    }
  }
}

}  // namespace paceline::cpu::PACELINE_ISA
