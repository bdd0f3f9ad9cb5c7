// CUDA's error codes as exceptions. They stay inside the plugin: its boundary turns them into text.
#pragma once

#include <cuda_runtime_api.h>

#include "core/error.h"

namespace paceline::cuda {

inline void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  const std::string what = message("[cuda] ", call, ": ", cudaGetErrorName(error), " (", cudaGetErrorString(error), ")");
  if (error == cudaErrorMemoryAllocation) throw CapacityError(what);
  throw DeviceError(what);
}

}  // namespace paceline::cuda
