#include "backend/cuda/staging.h"

#include <algorithm>
#include <cstring>

#include "backend/cuda/check.h"

namespace paceline::cuda {

Staging::Staging(cudaStream_t stream) : stream_(stream) {
  try {
    check(cudaHostAlloc(reinterpret_cast<void**>(&memory_), kBytes, cudaHostAllocDefault), "cudaHostAlloc");
    for (cudaEvent_t& event : copied_) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  } catch (...) {
    drop();
    throw;
  }
}

Staging::~Staging() { drop(); }

void Staging::drop() {
  for (cudaEvent_t event : copied_)
    if (event) cudaEventDestroy(event);
  if (memory_) cudaFreeHost(memory_);
}

void Staging::upload(void* device, const void* host, size_t bytes) {
  const auto* from = static_cast<const unsigned char*>(host);
  auto* to = static_cast<unsigned char*>(device);
  while (bytes) {
    if (used_ == kSegmentBytes) {
      check(cudaEventRecord(copied_[segment_], stream_), "cudaEventRecord");
      segment_ = (segment_ + 1) % kSegments;
      check(cudaEventSynchronize(copied_[segment_]), "cudaEventSynchronize");
      used_ = 0;
    }
    const size_t count = std::min(bytes, kSegmentBytes - used_);
    unsigned char* staged = memory_ + segment_ * kSegmentBytes + used_;
    std::memcpy(staged, from, count);
    check(cudaMemcpyAsync(to, staged, count, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync to the device");
    used_ += count, from += count, to += count, bytes -= count;
  }
}

}  // namespace paceline::cuda
