// The stub runtime's devices: how many there are, whose context a thread has, what a build has code for. runtime.h.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <set>
#include <string>

#include "simt/runtime.h"

struct CUctx_st {
  int device;
};

namespace simt {
namespace {

constexpr int kMostDevices = 4;
CUctx_st contexts[kMostDevices] = {{0}, {1}, {2}, {3}};
thread_local CUctx_st* current = nullptr;
int devices = 1;
bool code_is_missing = false;
std::set<int>& used() {
  static auto* the = new std::set<int>;
  return *the;
}

CUresult get_current(CUcontext* context) { return *context = current, CUDA_SUCCESS; }
CUresult set_current(CUcontext context) { return current = context, CUDA_SUCCESS; }

}  // namespace

int current_device() { return current ? current->device : 0; }
void use_device() { used().insert(current_device()); }
bool device_was_used(int device) { return used().count(device) > 0; }
void set_device_count(int count) { devices = count; }
void set_code_is_missing(bool missing) { code_is_missing = missing; }

}  // namespace simt

using simt::called;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = simt::devices;
  if (const cudaError_t error = called("cudaGetDeviceCount")) return error;
  return *count ? cudaSuccess : cudaErrorNoDevice;
}
// Since CUDA 12 this makes the device's context.
cudaError_t cudaSetDevice(int device) {
  if (const cudaError_t error = called("cudaSetDevice")) return error;
  if (device < 0 || device >= simt::devices) return cudaErrorInvalidDevice;
  simt::current = &simt::contexts[device];
  simt::use_device();
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  const std::string wanted = name;
  *function = wanted == "cuCtxGetCurrent"   ? reinterpret_cast<void*>(simt::get_current)
              : wanted == "cuCtxSetCurrent" ? reinterpret_cast<void*>(simt::set_current)
                                            : nullptr;
  *found = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return called("cudaGetDriverEntryPointByVersion");
}
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, called("cudaRuntimeGetVersion"); }
cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, called("cudaDriverGetVersion"); }
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = size_t(8) << 30;
  *free = *total - simt::device_bytes_in_use();
  return called("cudaMemGetInfo");
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "stub");
  properties->major = 9;
  return called("cudaGetDeviceProperties");
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  if (simt::code_is_missing) return cudaErrorNoKernelImageForDevice;
  return called("cudaFuncGetAttributes");
}
