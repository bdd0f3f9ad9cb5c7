// Test-only: the two declarations of this header, which comes with a toolkit and not with the wheel of the runtime.
#pragma once

#include <cuda_runtime_api.h>

extern "C" cudaError_t cudaProfilerStart();
extern "C" cudaError_t cudaProfilerStop();
