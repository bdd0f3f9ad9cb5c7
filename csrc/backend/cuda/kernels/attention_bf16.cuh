// The leaf of attention over pages of bf16, on tensor cores: the queries of a block against one page, which it holds in shared memory.
//
//   score[i, j] = bf16(q[i]) . K[j] scale,   weight[i, j] = 2^(score - maximum[i]),   out[i] = sum_j bf16(weight[i, j]) V[j]
//
// Queries are the rows of m16n8k16: all heads of a KV head and all rows of the tile share one sweep over keys and values. Rounding of
// queries and weights is the CPU engine's; the sum of the weights is of what they were before it.
//
// Order     a score is a sum over the head by sixteens, a column of out one over the page's positions by sixteens, each from the first
//           up; the sum of the weights is a tree over 64. A query is a row of the tensor core's first operand: what other rows hold
//           cannot reach it.
// Masking   the weight of a position that a query does not see is 0 and multiplies a finite value: pages hold no other (epilogues.cu).
//           Positions behind the last that any query sees are not fetched; those that a multiplication takes in are zeros.
// Room      35 to 52 KiB with Dh = 128, by the number of queries
#pragma once

#include "backend/cuda/kernels/attention_tile.cuh"
#include "backend/cuda/ptx.cuh"

namespace paceline::cuda {

constexpr int kMmaRows = 16;   // queries of a multiplication
constexpr int kMmaDepth = 16;  // of the head, or positions, that one takes in

// Tile [16 x 16] of rows in shared memory, from column `column` on, as the first operand.
template <class Row>
__device__ __forceinline__ FragmentA fragment_of(Row row_at, int column) {
  FragmentA fragment;
  load_matrices<Matrices::straight>(row_at(lane_of() % 16) + (column + lane_of() / 16 * 8) * sizeof(bf16), fragment.a);
  return fragment;
}

// Of kTiles times 16 queries with the warp's 16 positions, not scaled yet.
template <int kTiles>
__device__ __forceinline__ void score_positions(const PageMemory& memory, int longest, int width) {
  const int first = warp_of() * kMmaDepth, g = lane_of() / 4, t = lane_of() % 4;
  if (first >= longest) return;
  FragmentC sum[kTiles][2] = {};
  const unsigned char* key_row = memory.key(first + lane_of() % 8 + lane_of() / 16 * 8);
  for (int column = 0; column < width; column += kMmaDepth) {
    uint32_t key[4];
    load_matrices<Matrices::straight>(key_row + (column + lane_of() / 8 % 2 * 8) * sizeof(bf16), key);
    PACELINE_UNROLL
    for (int m = 0; m < kTiles; ++m) {
      const FragmentA q = fragment_of([&](int row) { return memory.q(m * kMmaRows + row); }, column);
      multiply_add(sum[m][0], q, {{key[0], key[1]}});
      multiply_add(sum[m][1], q, {{key[2], key[3]}});
    }
  }
  PACELINE_UNROLL
  for (int m = 0; m < kTiles; ++m) {
    PACELINE_UNROLL
    for (int i = 0; i < 4; ++i) {  // two positions by two queries
      const float* from = sum[m][i / 2].c + i % 2 * 2;
      float* to = memory.scores(m * kMmaRows + g + i % 2 * 8) + first + i / 2 * 8 + 2 * t;
      *reinterpret_cast<float2*>(to) = make_float2(from[0], from[1]);
    }
  }
}

// Scores become weights, rounded to bf16, where the scores were; maximum and sum of each query that sees something of the page.
__device__ __forceinline__ void soften_to_bf16(const PageMemory& memory, int queries, int first_position, float scale) {
  for (int query = warp_of(); query < queries; query += kPageWarps) {
    const int visible = visible_of(memory.position()[query], first_position), low = 2 * lane_of(), high = low + 1;
    if (visible == 0) continue;
    float* scores = memory.scores(query);
    const float2 pair = *reinterpret_cast<const float2*>(scores + low);
    const float a = low < visible ? pair.x * scale : -INFINITY, b = high < visible ? pair.y * scale : -INFINITY;
    const float maximum = reduce_warp(fmaxf(a, b), [](float x, float y) { return fmaxf(x, y); });
    const float a_weight = low < visible ? exp2_of(a - maximum) : 0.0f, b_weight = high < visible ? exp2_of(b - maximum) : 0.0f;
    const float sum = reduce_warp(a_weight + b_weight, [](float x, float y) { return x + y; });
    __syncwarp();  // all scores are read
    reinterpret_cast<uint32_t*>(scores)[lane_of()] = uint32_t(to_bf16(a_weight)) | uint32_t(to_bf16(b_weight)) << 16;
    if (lane_of() == 0) memory.maximum()[query] = maximum, memory.sum()[query] = sum;
  }
}

// A warp holds every fourth 16 columns, kColumns of these at most, of kTiles times 16 queries; a lane two columns each of rows g and
// g + 8 of a tile (ptx.cuh).
template <int kTiles, int kColumns>
struct Bf16Work {
  struct States {
    FragmentC out[kTiles][kColumns][2];
    float maximum[kTiles][2], sum[kTiles][2];
  };
  const AttentionTask& task;
  const Tile& tile;
  const PageMemory& memory;
  int position[kTiles][2];  // of the lane's queries; one that is not there sees nothing

  __device__ __forceinline__ static int query(int m, int half) { return m * kMmaRows + half * 8 + lane_of() / 4; }
  __device__ __forceinline__ static int column(int c) { return (warp_of() + c * kPageWarps) * 16; }

  __device__ __forceinline__ Bf16Work(const AttentionTask& of, const Tile& on, const PageMemory& in) : task(of), tile(on), memory(in) {
    for (int m = 0; m < kTiles; ++m)
      for (int half = 0; half < 2; ++half) position[m][half] = query(m, half) < tile.queries ? memory.position()[query(m, half)] : -1;
  }

  __device__ __forceinline__ void take(int page, int longest, States& leaf) const {
    const size_t offset = offset_of(task, tile, page);
    const bf16 *keys = static_cast<const bf16*>(task.kv.keys) + offset, *values = static_cast<const bf16*>(task.kv.values) + offset;
    const int taken = (longest + kMmaDepth - 1) / kMmaDepth * kMmaDepth, words = task.room.width / 2;
    __syncthreads();  // the page before is no longer read
    load_rows<2>({keys, values}, {memory.key(0), memory.value(0)}, longest, task.head_dim, task.room);
    for (int at = int(threadIdx.x); at < (taken - longest) * words; at += kPageThreads)
      reinterpret_cast<uint32_t*>(memory.value(longest + at / words))[at % words] = 0;
    __syncthreads();
    score_positions<kTiles>(memory, longest, task.room.width);
    __syncthreads();
    soften_to_bf16(memory, tile.queries, page * kPagePositions, task.scale);
    __syncthreads();
    for (int first = 0; first < taken; first += kMmaDepth) weigh(first, leaf);
  }

  // Positions [first, first + 16) of the page.
  __device__ __forceinline__ void weigh(int first, States& leaf) const {
    FragmentA weight[kTiles];
    PACELINE_UNROLL
    for (int m = 0; m < kTiles; ++m)
      weight[m] = fragment_of([&](int row) { return reinterpret_cast<unsigned char*>(memory.scores(m * kMmaRows + row)); }, first);
    const unsigned char* value_row = memory.value(first + lane_of() % 16) + lane_of() / 16 * 8 * sizeof(bf16);
    PACELINE_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      if (column(c) >= task.room.width) break;
      uint32_t value[4];
      load_matrices<Matrices::transposed>(value_row + column(c) * sizeof(bf16), value);
      PACELINE_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        multiply_add(leaf.out[m][c][0], weight[m], {{value[0], value[1]}});
        multiply_add(leaf.out[m][c][1], weight[m], {{value[2], value[3]}});
      }
    }
  }

  __device__ __forceinline__ void merge(int page, bool begins, const States& leaf, States& total) const {
    PACELINE_UNROLL
    for (int i = 0; i < 2 * kTiles; ++i) {
      const int m = i / 2, half = i % 2;
      if (visible_of(position[m][half], page * kPagePositions) == 0) continue;
      const float maximum = memory.maximum()[query(m, half)], sum = memory.sum()[query(m, half)];
      const Merge by = merge_of(total.maximum[m][half], maximum);
      total.maximum[m][half] = begins ? maximum : by.maximum;
      total.sum[m][half] = begins ? sum : merged(total.sum[m][half], sum, by);
      PACELINE_UNROLL
      for (int j = 0; j < 4 * kColumns; ++j) {
        const float value = leaf.out[m][j / 4][j / 2 % 2].c[2 * half + j % 2];
        float& out = total.out[m][j / 4][j / 2 % 2].c[2 * half + j % 2];
        out = begins ? value : merged(out, value, by);
      }
    }
  }

  __device__ __forceinline__ void store(int node, const States& states) const {
    const AttentionNodes& nodes = task.nodes;
    PACELINE_UNROLL
    for (int i = 0; i < 2 * kTiles; ++i) {
      const int m = i / 2, half = i % 2;
      if (position[m][half] < node * nodes.pages * kPagePositions) continue;
      const Query to = query_of(task, tile, query(m, half));
      const size_t at = (size_t(to.row) * task.num_heads + to.head) * nodes.count + node;
      PACELINE_UNROLL
      for (int j = 0; j < 2 * kColumns; ++j) {
        const int to_column = column(j / 2) + j % 2 * 8 + lane_of() % 4 * 2;
        const float* from = states.out[m][j / 2][j % 2].c + 2 * half;
        if (to_column < task.head_dim) *reinterpret_cast<float2*>(nodes.out + at * task.head_dim + to_column) = make_float2(from[0], from[1]);
      }
      if (warp_of() == 0 && lane_of() % 4 == 0) nodes.maximum[at] = states.maximum[m][half], nodes.sum[at] = states.sum[m][half];
    }
  }
};

}  // namespace paceline::cuda
