// The tree that attention is reduced in, and how its nodes are kept and merged.
//
// The state of a range of positions is (maximum, sum, out): the largest score, the sum of 2^(score - maximum), and the values weighted
// so, not divided yet. A leaf is one page; the pages of a group of kPageGroup are merged in ascending order, then the groups in ascending
// order. That is fixed by absolute positions: which block computes which node, and whether it leaves pages or whole groups in memory,
// cannot change a bit.
//
// Source: online softmax, Milakov and Gimelshein 2018 (arXiv:1805.02867).
#pragma once

#include "backend/cuda/device.cuh"
#include "backend/cuda/exp.cuh"
#include "backend/cuda/kernels/kernels.h"

namespace paceline::cuda {

// States between the two kernels, those of query (row, head) at [(row H + head) count, ...).
struct AttentionNodes {
  int pages, count;  // pages per node: 1 or kPageGroup; nodes per query, for the longest sequence
  float* out;        // [T, H, count, Dh]
  float* maximum;    // [T, H, count]
  float* sum;        // [T, H, count]
};

__host__ __device__ constexpr int nodes_of(int count, int each) { return (count + each - 1) / each; }
__host__ __device__ constexpr size_t node_bytes(int head_dim) { return (size_t(head_dim) + 2) * sizeof(float); }

// What merging b, the later one, into a does to their sums and values: a keep + b take. One of the two factors is 2^0 = 1, exactly.
struct Merge {
  float maximum, keep, take;
};
__device__ __forceinline__ Merge merge_of(float a_maximum, float b_maximum) {
  const float difference = b_maximum - a_maximum;
  const bool rises = difference > 0.0f;
  const float factor = exp2_of(rises ? -difference : difference);
  return {rises ? b_maximum : a_maximum, rises ? factor : 1.0f, rises ? 1.0f : factor};
}
__device__ __forceinline__ float merged(float a, float b, const Merge& by) { return fmaf(b, by.take, a * by.keep); }

constexpr int kCombineThreads = 256, kCombineWarps = kCombineThreads / kWarp;
static_assert(kMaxHeadDim <= kCombineThreads);

// The state of one group into shared memory, as maximum, sum, out [Dh]. A lane holds every 32nd column.
__device__ __forceinline__ void fold_group(const AttentionNodes& nodes, size_t first, int count, int head_dim, float* to) {
  constexpr int kColumns = kMaxHeadDim / kWarp;
  float out[kColumns] = {}, maximum = nodes.maximum[first], sum = nodes.sum[first];
  PACELINE_UNROLL
  for (int c = 0; c < kColumns; ++c)
    if (lane_of() + c * kWarp < head_dim) out[c] = nodes.out[first * head_dim + lane_of() + c * kWarp];
  for (size_t node = first + 1; node < first + count; ++node) {
    const Merge by = merge_of(maximum, nodes.maximum[node]);
    maximum = by.maximum, sum = merged(sum, nodes.sum[node], by);
    PACELINE_UNROLL
    for (int c = 0; c < kColumns; ++c)
      if (lane_of() + c * kWarp < head_dim) out[c] = merged(out[c], nodes.out[node * head_dim + lane_of() + c * kWarp], by);
  }
  PACELINE_UNROLL
  for (int c = 0; c < kColumns; ++c)
    if (lane_of() + c * kWarp < head_dim) to[2 + lane_of() + c * kWarp] = out[c];
  if (lane_of() == 0) to[0] = maximum, to[1] = sum;
}

// One query to a block: its warps take a group each, then every thread merges its column of these groups, in ascending order.
static __global__ void __launch_bounds__(kCombineThreads) combine_kernel(Rows rows, AttentionNodes nodes, int num_heads, int head_dim,
                                                                         float* out) {
  take_turn();
  const int head = int(blockIdx.x), row = int(blockIdx.y), column = int(threadIdx.x);
  if (row >= *rows.live) return;
  const int last_page = rows.position[row] / kPagePositions, last_node = last_page / nodes.pages, per_group = kPageGroup / nodes.pages;
  const int num_groups = last_page / kPageGroup + 1;
  const size_t first_node = (size_t(row) * num_heads + head) * nodes.count;
  float* groups = shared_memory<float>();
  float total = 0, maximum = 0, sum = 0;
  for (int first = 0; first < num_groups; first += kCombineWarps) {
    const int mine = first + warp_of(), node = mine * per_group, left = last_node + 1 - node;
    if (mine < num_groups)
      fold_group(nodes, first_node + node, left < per_group ? left : per_group, head_dim, groups + warp_of() * (head_dim + 2));
    __syncthreads();
    for (int i = 0; i < kCombineWarps && first + i < num_groups && column < head_dim; ++i) {
      const float* group = groups + i * (head_dim + 2);
      const bool begins = first + i == 0;
      const Merge by = merge_of(maximum, group[0]);
      maximum = begins ? group[0] : by.maximum;
      sum = begins ? group[1] : merged(sum, group[1], by);
      total = begins ? group[2 + column] : merged(total, group[2 + column], by);
    }
    __syncthreads();
  }
  if (column < head_dim) out[(size_t(row) * num_heads + head) * head_dim + column] = total / sum;
}

}  // namespace paceline::cuda
