// How kernels are launched and where their shared memory is: the one place that knows whether a device or the host runs them.
//
// Kernels are written in CUDA's own words, with three rules that let tests run them on the host (tests/simt):
//   * launch(kernel, blocks, threads, shared_bytes, stream, arguments...) instead of <<<>>>
//   * shared memory is dynamic, a struct or an array of the kernel's own: shared_memory<T>()
//   * PTX only behind ptx.cuh, and of it first of all take_turn() or what it is made of: kernels overlap
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace paceline::cuda {
// Shared memory that a block may have on every device from compute capability 8.0 on: 8.6, 8.9 and 12.0 have no more.
constexpr size_t kMostSharedBytes = 99 << 10;
}  // namespace paceline::cuda

// Before a loop over an array that must stay in registers, and before one that must stay a loop. A host compiler would refuse the pragmas.
#ifdef PACELINE_HOST_SIMT
#define PACELINE_UNROLL
#define PACELINE_LOOP
#include <simt/simt.h>
#else
#define PACELINE_UNROLL _Pragma("unroll")
#define PACELINE_LOOP _Pragma("unroll 1")

#include <atomic>
#include <cstdint>

#include "backend/cuda/check.h"

namespace paceline::cuda {

// The block's dynamic shared memory. 16-byte aligned; holds garbage at first.
template <class T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

// Whether kernels may start before the one ahead of them has ended. They may where they were compiled to wait for it, which is for
// compute capability 9.0 and later; that older devices take the attribute at all is documented nowhere. All kernels are compiled alike,
// so that any of them answers for a device.
inline bool kernels_overlap(const void* kernel) {
  static std::atomic<int8_t> known[64];  // by device; 0: not asked yet
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  std::atomic<int8_t>& answer = known[device % 64];
  if (answer == 0) {
    cudaFuncAttributes compiled{};
    check(cudaFuncGetAttributes(&compiled, kernel), "cudaFuncGetAttributes");
    answer = compiled.ptxVersion >= 90 ? 1 : -1;
  }
  return answer > 0;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, int threads, size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  constexpr size_t kGranted = 48 << 10;  // more must be asked for
  // Whatever this launch needs, the same: the kernel's limit holds for the graphs that were captured before, too.
  if (shared_bytes > kGranted)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kMostSharedBytes)), "cudaFuncSetAttribute");
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap;
  config.numAttrs = kernels_overlap(reinterpret_cast<const void*>(kernel)) ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "cudaLaunchKernelEx");
}

}  // namespace paceline::cuda
#endif
