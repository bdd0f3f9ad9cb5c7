// Test-only: the four calls of NVIDIA's driver that are made before anything else of CUDA is loaded. What it answers is in
// $PACELINE_STUB_DRIVER: "version init devices", by default "13000 0 1".
#include <cstdio>
#include <cstdlib>

namespace {
struct Answers {
  int version = 13000, init = 0, devices = 1;
  Answers() {
    if (const char* given = std::getenv("PACELINE_STUB_DRIVER")) std::sscanf(given, "%d %d %d", &version, &init, &devices);
  }
};
}  // namespace

extern "C" {
__attribute__((visibility("default"))) int cuDriverGetVersion(int* version) { return *version = Answers().version, 0; }
__attribute__((visibility("default"))) int cuInit(unsigned) { return Answers().init; }
__attribute__((visibility("default"))) int cuDeviceGetCount(int* count) { return *count = Answers().devices, 0; }
__attribute__((visibility("default"))) int cuGetErrorName(int error, const char** name) {
  return *name = error == 100 ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_UNKNOWN", 0;
}
}
