// The way from pageable memory of the host to the device: through pinned memory of ours, so that a copy never waits for the stream
// and never reads what the caller has dropped meanwhile. (What a copy straight from pageable memory does is the driver's choice: it may
// wait for the stream, and where the device reads the host's page tables it may read late.)
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace paceline::cuda {

class Staging {
 public:
  static constexpr size_t kBytes = 4 << 20;  // of pinned memory

  explicit Staging(cudaStream_t stream);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Enqueues the copy; host may go when this returns.
  void upload(void* device, const void* host, size_t bytes);

 private:
  // Segments are filled in turn, each after the copies of its last turn: a wait only for who uploads faster than the device copies.
  static constexpr int kSegments = 4;
  static constexpr size_t kSegmentBytes = kBytes / kSegments;  // two copies of 1 MB overlap as well as larger ones
  void drop();

  cudaStream_t stream_;
  unsigned char* memory_ = nullptr;
  cudaEvent_t copied_[kSegments] = {};
  int segment_ = 0;
  size_t used_ = 0;  // of the segment
};

}  // namespace paceline::cuda
