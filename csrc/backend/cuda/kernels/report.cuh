// What the caller hears of emitted tokens besides their ids: report.cu.
#pragma once

#include "backend/cuda/kernels/choosing.cuh"

namespace paceline::cuda {

// Raw logprobs, top ids and hashes of the rows that the walks committed.
void report_rows(cudaStream_t, const ChoosingRows& targets, const Scratch&, const CycleResults&);

// l_max comes from a key and has lost the sign of a zero; + 0.0 keeps it out of the difference.
__device__ __forceinline__ float logprob_of(float logit, double l_max, double log_sum) { return float(((double(logit) - l_max) + 0.0) - log_sum); }

// By the whole block: adds what its threads have to *total. `room` holds one value per warp.
__device__ __forceinline__ void add_sum(uint64_t sum, uint64_t* room, uint64_t* total) {
  sum = reduce_block(sum, room, [](uint64_t a, uint64_t b) { return a + b; });
  if (threadIdx.x == 0 && sum) atomicAdd(reinterpret_cast<unsigned long long*>(total), static_cast<unsigned long long>(sum));
}

}  // namespace paceline::cuda
