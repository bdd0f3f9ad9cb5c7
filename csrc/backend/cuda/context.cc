#include "backend/cuda/context.h"

#include <cuda.h>

#include "backend/cuda/check.h"

namespace paceline::cuda {
namespace {

// The plugin is not linked to the driver: where there is none it must load, and say so.
void* entry_point(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  constexpr unsigned kSince = 4000;  // CUDA 4.0 is when both took their present form
  check(cudaGetDriverEntryPointByVersion(name, &function, kSince, cudaEnableDefault, &found), "cudaGetDriverEntryPointByVersion");
  if (!function || found != cudaDriverEntryPointSuccess) throw DeviceError(message("[cuda] the driver has no ", name));
  return function;
}

struct Driver {
  CUresult (*get)(CUcontext*) = reinterpret_cast<CUresult (*)(CUcontext*)>(entry_point("cuCtxGetCurrent"));
  CUresult (*set)(CUcontext) = reinterpret_cast<CUresult (*)(CUcontext)>(entry_point("cuCtxSetCurrent"));
};
const Driver& driver() {
  static const Driver the;
  return the;
}

}  // namespace

Context current_context() {
  Context context = nullptr;
  const CUresult error = driver().get(&context);
  if (error != CUDA_SUCCESS) throw DeviceError(message("[cuda] cuCtxGetCurrent: error ", int(error)));
  return context;
}

ContextScope::ContextScope(Context wanted) : before_(current_context()) {
  const CUresult error = driver().set(wanted);
  if (error != CUDA_SUCCESS) throw DeviceError(message("[cuda] cuCtxSetCurrent: error ", int(error)));
}

ContextScope::~ContextScope() { driver().set(before_); }

}  // namespace paceline::cuda
