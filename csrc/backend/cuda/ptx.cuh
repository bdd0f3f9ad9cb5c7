// Every line of PTX, each with a half for the host that means the same.
#pragma once

#include "backend/cuda/launch.cuh"

#ifdef PACELINE_HOST_SIMT
#include <chrono>
#endif

namespace paceline::cuda {

// Nanoseconds by the clock that all multiprocessors share; only differences mean anything.
__device__ __forceinline__ int64_t global_timer() {
#ifdef PACELINE_HOST_SIMT
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
#else
  int64_t nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  return nanoseconds;
#endif
}

}  // namespace paceline::cuda
