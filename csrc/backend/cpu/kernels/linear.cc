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

constexpr int kPrefetchBytes = 6144;  // ahead, shared by the streams of the blocks in flight; 6 to 8 KB measured best
constexpr size_t kChunkBytes = 256 << 10;  // weights that several tiles share: this and the next chunk fit the second-level cache

struct Tile {
  const char* packed;
  size_t row_bytes;
  int first_row, rows;
  // While the tiles of a pass take turns at one chunk of weights, each fetches its share of the next one: with two tiles or
  // more the memory would otherwise rest while the second multiplies.
  size_t next_chunk;  // bytes from a block to its counterpart there; 0 = none
  int turn, turns;
};

// How weights of a type meet rows: at most kRows rows share one load of a weight, with blocks(rows) blocks in flight. From
// memory four streams are 12 % faster than eight; sums and weights must leave two of the 32 registers free. AVX2 has sixteen
// of half the width. step: step k of K for R blocks and M rows. w: the step's 64 bytes of each block; x: the rows.
struct Fp32 {
#if defined(PACELINE_ISA_avx2)
  static constexpr int kRows = 2;
  static constexpr int blocks(int rows) { return rows == 1 ? 4 : 2; }
#else
  static constexpr int kRows = 8;
  static constexpr int blocks(int rows) { return rows <= 6 ? 4 : 2; }
#endif
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
  static constexpr int kRows = 8;
  static constexpr int blocks(int rows) { return rows <= 6 ? 4 : 2; }
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
#if defined(PACELINE_ISA_avx2)
  static constexpr int kRows = 4;
  static constexpr int blocks(int rows) { return rows <= 2 ? 2 : 1; }
#else
  static constexpr int kRows = 8;
  static constexpr int blocks(int rows) { return rows <= 5 ? 4 : 2; }
#endif
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

// The sums of R blocks from `block` on with the M rows of the tile.
template <class Format, int M, int R>
void accumulate(const Matrix& w, const Tile& tile, int block, F32 (&sum)[R][M]) {
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
}

// All blocks of [begin, end) for M rows: R at a time, then fewer. Gate and up come in pairs, so their ranges are even.
template <class Format, int M, int R>
void sweep(const Matrix& w, const Tile& tile, int begin, int end, const Epilogue& to) {
  const bool paired = to.kind == Epilogue::gate;
  for (; begin + R <= end; begin += R) {
    F32 sum[R][M], up[1][M];
    accumulate<Format, M, R>(w, tile, begin, sum);
    if (R == 1 && paired) accumulate<Format, M, 1>(w, tile, begin + 1, up);
    for (int r = 0; r < R; r += paired ? 2 : 1)
      for (int m = 0; m < M; ++m) finish(to, begin + r, tile.first_row + m, sum[r][m], r + 1 < R ? sum[r + 1][m] : up[0][m]);
    if (R == 1 && paired) ++begin;
  }
  if constexpr (R > 1)
    if (begin < end) sweep<Format, M, R / 2>(w, tile, begin, end, to);
}

template <class Format, int M = 1>
void sweep_tile(const Matrix& w, const Tile& tile, int begin, int end, const Epilogue& to) {
  if (M == tile.rows) return sweep<Format, M, Format::blocks(M)>(w, tile, begin, end, to);
  if constexpr (M < Format::kRows) sweep_tile<Format, M + 1>(w, tile, begin, end, to);
}

// Rows are dealt evenly to as few tiles as hold them. Several tiles take turns at each chunk of weights, so that it comes from
// memory once.
template <class Format>
void product(const Matrix& w, const char* packed, int rows, int begin, int end, const Epilogue& to) {
  const size_t row_bytes = packed_row_bytes(w.k, w.dtype);
  const int tiles = (rows + Format::kRows - 1) / Format::kRows, fitting = int(kChunkBytes / w.block_bytes()) & ~1;
  const int chunk = tiles == 1 ? end - begin : (fitting > 2 ? fitting : 2);
  for (; begin < end; begin += chunk) {
    const int stop = begin + chunk < end ? begin + chunk : end;
    const size_t next_chunk = stop + chunk <= end ? chunk * w.block_bytes() : 0;
    for (int i = 0; i < tiles; ++i) {
      const int first = rows * i / tiles, last = rows * (i + 1) / tiles;
      sweep_tile<Format>(w, {packed + first * row_bytes, row_bytes, first, last - first, next_chunk, i, tiles}, begin, stop, to);
    }
  }
}

}  // namespace

void linear(const Matrix& w, const char* packed, int rows, int begin, int end, const Epilogue& to) {
  if (w.dtype == DType::bf16) product<Bf16>(w, packed, rows, begin, end, to);
  else product<Fp32>(w, packed, rows, begin, end, to);
}

}  // namespace paceline::cpu::PACELINE_ISA
