// Numbers in memory, fp32 or bf16, as the floats that kernels compute with.
#pragma once

#include "backend/cuda/launch.cuh"
#include "math/bfloat16.h"

namespace paceline::cuda {

__device__ __forceinline__ float as_float(float value) { return value; }
__device__ __forceinline__ float as_float(bf16 value) { return from_bf16(value); }
__device__ __forceinline__ void put(float* to, float value) { *to = value; }
__device__ __forceinline__ void put(bf16* to, float value) { *to = to_bf16(value); }

}  // namespace paceline::cuda
