// CUDA's error codes as exceptions. They stay inside the plugin: its boundary turns them into text.
#pragma once

#include <cuda_runtime_api.h>

#include "core/error.h"

namespace paceline::cuda {

// Errors after which a process can do nothing more on the device: what a kernel died of.
inline bool is_sticky(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
      return true;
    default:
      return false;
  }
}

inline void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  const std::string what = message("[cuda] ", call, ": ", cudaGetErrorName(error), " (", cudaGetErrorString(error), ")",
                                   is_sticky(error) ? ": this process has lost the device, start a new one" : "");
  if (error == cudaErrorMemoryAllocation) throw CapacityError(what);
  throw DeviceError(what);
}

}  // namespace paceline::cuda
