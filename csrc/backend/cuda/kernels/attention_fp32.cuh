// The leaf of attention over pages of fp32: some queries against one page, which the block holds in shared memory.
//
//   score[i, j] = q[i] . K[j] scale,   weight[i, j] = 2^(score - maximum[i]),   out[i] = sum_j weight[i, j] V[j]
//
// Order     a score is one sum over the head from element 0 up, a column of out one sum over the positions from the page's first up, the
//           sum of the weights a tree over 64. How many queries a thread holds never touches it.
// Masking   positions behind the last that any of the queries sees are not fetched; those that a query does not see are dropped before
//           they are used: their weight is 0, and their value is not multiplied with it.
// Room      at most 92 KiB (Dh = 128)
#pragma once

#include "backend/cuda/kernels/attention_tile.cuh"

namespace paceline::cuda {

__device__ __forceinline__ void load_four(const void* at, float (&to)[4]) {
  const float4 line = *static_cast<const float4*>(at);
  to[0] = line.x, to[1] = line.y, to[2] = line.z, to[3] = line.w;
}

// Scores, not scaled yet. A thread holds Q queries, 2 P apart, times P positions, 64 / P apart: up to 2 P Q queries in all.
template <int Q, int P>
__device__ __forceinline__ void score_tile(const PageMemory& memory, int queries, int longest, int lines) {
  constexpr int kPositionLanes = kPagePositions / P, kQueryLanes = kPageThreads / kPositionLanes;
  const int place = int(threadIdx.x) % kPositionLanes, first = int(threadIdx.x) / kPositionLanes;
  if (first >= queries || place >= longest) return;
  const float* q[Q];
  const unsigned char* keys[P];
  float sum[Q][P] = {};
  for (int i = 0; i < Q; ++i) q[i] = reinterpret_cast<const float*>(memory.q(first + i * kQueryLanes < queries ? first + i * kQueryLanes : first));
  for (int p = 0; p < P; ++p) keys[p] = memory.key(place + p * kPositionLanes);
  for (int line = 0; line < lines; ++line) {
    float key[P][4];
    for (int p = 0; p < P; ++p) load_four(keys[p] + line * 16, key[p]);
    PACELINE_UNROLL
    for (int i = 0; i < Q; ++i) {
      const float4 part = *reinterpret_cast<const float4*>(q[i] + line * 4);
      for (int p = 0; p < P; ++p) {
        sum[i][p] = fmaf(part.x, key[p][0], sum[i][p]);
        sum[i][p] = fmaf(part.y, key[p][1], sum[i][p]);
        sum[i][p] = fmaf(part.z, key[p][2], sum[i][p]);
        sum[i][p] = fmaf(part.w, key[p][3], sum[i][p]);
      }
    }
  }
  for (int i = 0; i < Q; ++i)
    for (int p = 0; p < P; ++p)
      if (first + i * kQueryLanes < queries) memory.scores(first + i * kQueryLanes)[place + p * kPositionLanes] = sum[i][p];
}

template <bool IsFew>
__device__ __forceinline__ void score(const PageMemory& memory, int queries, int longest, int lines) {
  if (queries <= 2) score_tile<1, 1>(memory, queries, longest, lines);
  else if (queries <= 4) score_tile<2, 1>(memory, queries, longest, lines);
  else if (IsFew || queries <= 8) score_tile<4, 1>(memory, queries, longest, lines);
  else if constexpr (!IsFew) {
    if (queries <= 16) score_tile<2, 4>(memory, queries, longest, lines);
    else if (queries <= 24) score_tile<3, 4>(memory, queries, longest, lines);
    else score_tile<4, 4>(memory, queries, longest, lines);
  }
}

// Scores become weights, in place; maximum and sum of each query that sees something of the page. One warp per query.
__device__ __forceinline__ void soften(const PageMemory& memory, int queries, int first_position, float scale) {
  for (int query = warp_of(); query < queries; query += kPageWarps) {
    const int visible = visible_of(memory.position()[query], first_position), low = lane_of(), high = lane_of() + kWarp;
    if (visible == 0) continue;
    float* scores = memory.scores(query);
    const float a = low < visible ? scores[low] * scale : -INFINITY, b = high < visible ? scores[high] * scale : -INFINITY;
    const float maximum = reduce_warp(fmaxf(a, b), [](float x, float y) { return fmaxf(x, y); });
    const float a_weight = low < visible ? exp2_of(a - maximum) : 0.0f, b_weight = high < visible ? exp2_of(b - maximum) : 0.0f;
    const float sum = reduce_warp(a_weight + b_weight, [](float x, float y) { return x + y; });
    scores[low] = a_weight, scores[high] = b_weight;
    if (low == 0) memory.maximum()[query] = maximum, memory.sum()[query] = sum;
  }
}

// Four columns of N queries. Positions below `common` are visible to all queries of the block, those from `longest` on to none.
template <int N>
__device__ __forceinline__ void weigh(const PageMemory& memory, const int (&query)[N], const int (&visible)[N], int column, int common,
                                      int longest, float (&out)[N][4]) {
  float value[4][4];
  int j = 0;
  for (; j + 4 <= common; j += 4) {
    for (int k = 0; k < 4; ++k) load_four(memory.value(j + k) + column * sizeof(float), value[k]);
    PACELINE_UNROLL
    for (int i = 0; i < N; ++i) {
      const float4 weight = *reinterpret_cast<const float4*>(memory.scores(query[i]) + j);
      for (int c = 0; c < 4; ++c) {
        out[i][c] = fmaf(weight.x, value[0][c], out[i][c]);
        out[i][c] = fmaf(weight.y, value[1][c], out[i][c]);
        out[i][c] = fmaf(weight.z, value[2][c], out[i][c]);
        out[i][c] = fmaf(weight.w, value[3][c], out[i][c]);
      }
    }
  }
  for (; j < longest; ++j) {
    load_four(memory.value(j) + column * sizeof(float), value[0]);
    PACELINE_UNROLL
    for (int i = 0; i < N; ++i) {
      const float weight = memory.scores(query[i])[j];
      for (int c = 0; c < 4; ++c) out[i][c] = j < visible[i] ? fmaf(weight, value[0][c], out[i][c]) : out[i][c];
    }
  }
}

// A thread holds four columns of N queries: threads side by side have the columns of one query.
template <bool IsFew, int N>
struct Fp32Work {
  struct States {
    float out[N][4], maximum[N], sum[N];
  };
  const AttentionTask& task;
  const Tile& tile;
  const PageMemory& memory;
  int column, query[N], position[N];  // a query that is not there sees nothing, and reads what query 0 has

  __device__ __forceinline__ Fp32Work(const AttentionTask& of, const Tile& on, const PageMemory& in) : task(of), tile(on), memory(in) {
    const int column_lanes = (task.head_dim + 3) / 4, query_lanes = kPageThreads / column_lanes;
    column = int(threadIdx.x) % column_lanes * 4;
    const int lane = int(threadIdx.x) / column_lanes;
    for (int i = 0; i < N; ++i) {
      const bool exists = lane < query_lanes && lane + i * query_lanes < tile.queries;
      query[i] = exists ? lane + i * query_lanes : 0;
      position[i] = exists ? memory.position()[query[i]] : -1;
    }
  }

  __device__ __forceinline__ void take(int page, int longest, States& leaf) const {
    const size_t offset = offset_of(task, tile, page);
    const float *keys = static_cast<const float*>(task.kv.keys) + offset, *values = static_cast<const float*>(task.kv.values) + offset;
    const int first = page * kPagePositions;
    __syncthreads();  // the page before is no longer read
    if (task.room.apart) load_rows<2>({keys, values}, {memory.key(0), memory.value(0)}, longest, task.head_dim, task.room);
    else load_rows<1>({keys}, {memory.key(0)}, longest, task.head_dim, task.room);
    __syncthreads();
    score<IsFew>(memory, tile.queries, longest, task.room.width / 4);
    __syncthreads();
    if (!task.room.apart) load_rows<1>({values}, {memory.value(0)}, longest, task.head_dim, task.room);
    soften(memory, tile.queries, first, task.scale);
    __syncthreads();
    int visible[N];
    for (int i = 0; i < N; ++i) visible[i] = visible_of(position[i], first);
    weigh<N>(memory, query, visible, column, visible_of(tile.least, first), longest, leaf.out);
  }

  __device__ __forceinline__ void merge(int page, bool begins, States& leaf, States& total) const {
    PACELINE_UNROLL
    for (int i = 0; i < N; ++i) {
      if (visible_of(position[i], page * kPagePositions) == 0) continue;
      const float maximum = memory.maximum()[query[i]], sum = memory.sum()[query[i]];
      const Merge by = merge_of(total.maximum[i], maximum);
      total.maximum[i] = begins ? maximum : by.maximum;
      total.sum[i] = begins ? sum : merged(total.sum[i], sum, by);
      for (int c = 0; c < 4; ++c) total.out[i][c] = begins ? leaf.out[i][c] : merged(total.out[i][c], leaf.out[i][c], by);
    }
  }

  __device__ __forceinline__ void store(int node, const States& states) const {
    const AttentionNodes& nodes = task.nodes;
    for (int i = 0; i < N; ++i) {
      if (position[i] < node * nodes.pages * kPagePositions) continue;
      const Query to = query_of(task, tile, query[i]);
      const size_t at = (size_t(to.row) * task.num_heads + to.head) * nodes.count + node;
      float* out = nodes.out + at * task.head_dim + column;
      const float(&from)[4] = states.out[i];
      if (task.head_dim % 4 == 0) *reinterpret_cast<float4*>(out) = make_float4(from[0], from[1], from[2], from[3]);
      else
        for (int c = 0; c < 4; ++c)
          if (column + c < task.head_dim) out[c] = from[c];
      if (column == 0) nodes.maximum[at] = states.maximum[i], nodes.sum[at] = states.sum[i];
    }
  }
};

}  // namespace paceline::cuda
