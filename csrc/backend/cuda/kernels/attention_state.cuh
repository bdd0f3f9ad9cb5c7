// The tree that attention is reduced in, and how its nodes are kept and merged.
//
// The state of a range of positions is (maximum, sum, out): the largest score, the sum of 2^(score - maximum), and the values weighted
// so, not divided yet. A leaf is one page; the pages of a group of kPageGroup are merged in ascending order, then the groups in ascending
// order. That is fixed by absolute positions: which block computes which node, and whether it leaves pages or whole groups in memory,
// cannot change a bit.
//
// Source: online softmax, Milakov and Gimelshein 2018 (arXiv:1805.02867).
#pragma once

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

__host__ __device__ constexpr int nodes_of(int pages_per_slot, int pages) { return (pages_per_slot + pages - 1) / pages; }
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

}  // namespace paceline::cuda
