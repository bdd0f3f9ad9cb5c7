// How often the engine calls the CUDA runtime on a device: num_calls and reset_calls of runtime.h, for the calls that the linker
// brings here (--wrap in CMakeLists.txt). The engine launches kernels through cudaLaunchKernelExC alone, which counts as "launch".
#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>

#include "simt/runtime.h"

namespace simt {
namespace {

std::mutex guard;
std::map<std::string, int>& calls() {
  static std::map<std::string, int> all;
  return all;
}

}  // namespace

int num_calls(const std::string& name) {
  const std::lock_guard lock(guard);
  int sum = 0;
  for (const auto& [each, count] : calls())
    if (name.empty() || each == name) sum += count;
  return sum;
}

void reset_calls() {
  const std::lock_guard lock(guard);
  calls().clear();
}

}  // namespace simt

namespace {

template <class Function, class... Arguments>
auto counted(const char* name, Function function, Arguments... arguments) {
  {
    const std::lock_guard lock(simt::guard);
    ++simt::calls()[name];
  }
  return function(arguments...);
}

}  // namespace

// COUNT(name, shown, (parameters), (arguments)) for a call that returns cudaError_t.
#define COUNT(name, shown, parameters, ...)                     \
  extern "C" cudaError_t __real_##name parameters;              \
  extern "C" cudaError_t __wrap_##name parameters;              \
  cudaError_t __wrap_##name parameters { return counted(shown, __real_##name, __VA_ARGS__); }

COUNT(cudaMalloc, "cudaMalloc", (void** memory, size_t bytes), memory, bytes)
COUNT(cudaHostAlloc, "cudaHostAlloc", (void** memory, size_t bytes, unsigned flags), memory, bytes, flags)
COUNT(cudaFree, "cudaFree", (void* memory), memory)
COUNT(cudaFreeHost, "cudaFreeHost", (void* memory), memory)
COUNT(cudaStreamSynchronize, "cudaStreamSynchronize", (cudaStream_t stream), stream)
COUNT(cudaMemcpyAsync, "cudaMemcpyAsync", (void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream), to, from,
      bytes, kind, stream)
COUNT(cudaMemsetAsync, "cudaMemsetAsync", (void* to, int value, size_t bytes, cudaStream_t stream), to, value, bytes, stream)
COUNT(cudaGraphLaunch, "cudaGraphLaunch", (cudaGraphExec_t graph, cudaStream_t stream), graph, stream)
COUNT(cudaGraphInstantiate, "cudaGraphInstantiate", (cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long flags), made, graph,
      flags)
COUNT(cudaStreamBeginCapture, "cudaStreamBeginCapture", (cudaStream_t stream, cudaStreamCaptureMode mode), stream, mode)
COUNT(cudaLaunchKernelExC, "launch", (const cudaLaunchConfig_t* config, const void* kernel, void** arguments), config, kernel, arguments)

extern "C" decltype(cublasLtMatmul) __real_cublasLtMatmul, __wrap_cublasLtMatmul;
cublasStatus_t __wrap_cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
                                     cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                                     const void* c, cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                                     const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  return counted("cublasLtMatmul", __real_cublasLtMatmul, handle, operation, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d,
                 d_layout, algorithm, workspace, workspace_bytes, stream);
}
