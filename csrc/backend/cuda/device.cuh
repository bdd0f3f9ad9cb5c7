// What kernels share: indices, and reductions over a block in one fixed tree.
#pragma once

#include "backend/cuda/ptx.cuh"

namespace paceline::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kWarp = 32;

__device__ __forceinline__ int lane_of() { return int(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_of() { return int(threadIdx.x) / kWarp; }

// Of all 32 values of a warp, to every lane; combine(a, b) must not care which is which.
template <class T, class Combine>
__device__ __forceinline__ T reduce_warp(T value, Combine combine) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value = combine(value, __shfl_xor_sync(kWholeWarp, value, distance));
  return value;
}

// Of all values of a block of whole warps, to every thread. `room` holds one T per warp, in shared memory; it may be used again after
// the call. The tree is that of warps, then of their results: it depends on the number of threads alone.
template <class T, class Combine>
__device__ T reduce_block(T value, T* room, Combine combine) {
  value = reduce_warp(value, combine);
  if (lane_of() == 0) room[warp_of()] = value;
  __syncthreads();
  value = room[0];
  for (int warp = 1; warp < int(blockDim.x) / kWarp; ++warp) value = combine(value, room[warp]);
  __syncthreads();
  return value;
}

}  // namespace paceline::cuda
