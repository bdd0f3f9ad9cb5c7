// Products of weight matrices with a few rows: out[t, n] = sum_k W[n, k] x[t, k].
//
// Traffic   the weights once, N K bytes-per-weight, for any number of rows: that is what makes verification cheap.
// Order     every (row, output) is one accumulator that walks K from 0 up. The number of rows chooses how many blocks of
//           outputs are in flight, never the order of a sum: a row's bits do not depend on its company.
// Oracle    tests/reference/linear.h
#include "backend/cpu/kernels/formats.h"

namespace paceline::cpu::PACELINE_ISA {
namespace {

constexpr size_t kChunkBytes = 128 << 10;  // weights that several tiles share: this and the next chunk fit the second-level cache

struct Tile {
  PackedRows packed;
  int first_row, rows;
  size_t next_chunk;  // bytes from a block to its counterpart there; 0 = none
  int turn, turns;
};

// What becomes of a block's sums with M rows; for gate `up` holds those of the next block.
template <int M>
void finish(const Epilogue& to, int block, int first_row, const F32 (&sum)[M], const F32 (&up)[M]) {
  const int column = (to.kind == Epilogue::gate ? block / 2 : block) * kLanes, count = to.n - column;
  if (count <= 0) return;
  float* out = to.out + size_t(first_row) * to.stride + column;
  const F32 bias = to.bias ? load(to.bias + column) : splat(0.0f);
  for (int m = 0; m < M; ++m, out += to.stride) {
    F32 value = sum[m];
    if (to.kind == Epilogue::gate) {  // silu(gate) up
      const F32 sigmoid = splat(1.0f) / (splat(1.0f) + exp_of(splat(0.0f) - value));
      value = (value * sigmoid) * up[m];
    } else if (to.bias) {
      value = value + bias;
    }
    if (count >= kLanes) store(out, to.kind == Epilogue::add ? load(out) + value : value);
    else store_first(out, count, to.kind == Epilogue::add ? load_first(out, count) + value : value);
  }
}

// The sums of R blocks from `block` on with the M rows of the tile.
template <class Format, int M, int R>
void accumulate(const Matrix& w, const Tile& tile, int block, F32 (&sum)[R][M]) {
  Lines<R> lines;
  const int count = int(w.block_bytes() / 64), share = (count + tile.turns - 1) / tile.turns;
  for (int r = 0; r < R; ++r) {
    lines.at[r] = static_cast<const char*>(w.data) + (block + r) * w.block_bytes();
    lines.next[r] = lines.at[r] + tile.next_chunk + size_t(tile.turn) * share * 64;
  }
  lines.ahead = kPrefetchBytes / R;
  lines.jump = (R - 1) * w.block_bytes();
  lines.until_jump = count - int(lines.ahead / 64);
  lines.until_fetch = tile.next_chunk ? 1 : count + 1;
  lines.turns = tile.turns;
  Format::template sums<M, R>(w, lines, tile.packed, sum);
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
      finish<M>(to, begin + r, tile.first_row, sum[r], r + 1 < R ? sum[r + 1] : up[0]);
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
  const size_t line_bytes = is_integer(w.dtype) ? group_of(w.dtype) : 64;
  const auto* groups = reinterpret_cast<const RowGroup*>(packed + packed_lines(w.k, w.dtype) * rows * line_bytes);
  const int tiles = (rows + Format::kRows - 1) / Format::kRows, fitting = int(kChunkBytes / w.block_bytes()) & ~1;
  const int chunk = tiles == 1 ? end - begin : (fitting > 2 ? fitting : 2);
  for (; begin < end; begin += chunk) {
    const int stop = begin + chunk < end ? begin + chunk : end;
    const size_t next_chunk = stop + chunk <= end ? chunk * w.block_bytes() : 0;
    for (int i = 0; i < tiles; ++i) {
      const int first = rows * i / tiles, last = rows * (i + 1) / tiles;
      sweep_tile<Format>(w, {{packed + first * line_bytes, groups + first, rows}, first, last - first, next_chunk, i, tiles}, begin, stop, to);
    }
  }
}

}  // namespace

void linear(const Matrix& w, const char* packed, int rows, int begin, int end, const Epilogue& to) {
  switch (w.dtype) {
    case DType::bf16: return product<Bf16>(w, packed, rows, begin, end, to);
    case DType::int8: return product<Integer<8, 64>>(w, packed, rows, begin, end, to);
    case DType::int4: return product<Integer<4, 64>>(w, packed, rows, begin, end, to);
    case DType::int4_g32: return product<Integer<4, 32>>(w, packed, rows, begin, end, to);
    default: return product<Fp32>(w, packed, rows, begin, end, to);
  }
}

}  // namespace paceline::cpu::PACELINE_ISA
