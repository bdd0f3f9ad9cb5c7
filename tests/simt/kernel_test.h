// What tests of single kernels share: device memory with values in it, the rows of a pass, every order of threads. The tests are built
// twice: on the host over simt.h, and for a device with nvcc; what differs is in the two halves below.
#pragma once

#include <cmath>
#include <random>

#include "backend/cuda/check.h"
#include "backend/cuda/kernels/kernels.h"

#ifdef PACELINE_HOST_SIMT
#include "simt/simt.h"

namespace paceline::test {

inline void poison(void*, size_t, cudaStream_t) {}  // the stub's memory starts as garbage

template <class Body>
void for_each_order(Body body) {
  simt::schedule() = {simt::Order::forward, 1};
  body("forward");
  simt::schedule() = {simt::Order::reverse, 1};
  body("reverse");
  for (unsigned seed : {1u, 2u}) {
    simt::schedule() = {simt::Order::shuffled, seed};
    body("shuffled " + std::to_string(seed));
  }
  simt::schedule() = {};
}

}  // namespace paceline::test
#else
#include "backend/cuda/launch.cuh"

namespace paceline::test {

// A device's memory is zero at first, too often.
inline void poison(void* memory, size_t bytes, cudaStream_t stream) {
  cuda::check(cudaMemsetAsync(memory, 0xCB, bytes, stream), "cudaMemsetAsync");
}

// A device has one order, which is never quite the same: as many runs, so that tests which draw their cases draw as many.
template <class Body>
void for_each_order(Body body) {
  for (int run = 1; run <= 4; ++run) body("on the device, run " + std::to_string(run));
}

}  // namespace paceline::test
#endif

namespace paceline::test {

inline cudaStream_t stream() {
  static cudaStream_t the = [] {
    cudaStream_t made;
    cuda::check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return made;
  }();
  return the;
}

// An array in device memory; it starts as garbage.
template <class T>
class Device {
 public:
  explicit Device(size_t count) : count_(count) {
    cuda::check(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T) + 1), "cudaMalloc");
    poison(data_, count * sizeof(T), stream());
  }
  explicit Device(const std::vector<T>& values) : Device(values.size()) { write(values); }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* data() const { return data_; }
  size_t size() const { return count_; }
  void write(const std::vector<T>& values) {
    if (values.empty()) return;
    cuda::check(cudaMemcpyAsync(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice, stream()), "cudaMemcpyAsync");
  }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    cuda::check(cudaMemcpyAsync(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost, stream()), "cudaMemcpyAsync");
    cuda::check(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};

// Rows of a pass, `spare` of them not alive.
class DeviceRows {
 public:
  DeviceRows(const std::vector<int32_t>& slot, const std::vector<int32_t>& position, const std::vector<int32_t>& token, int spare = 3)
      : capacity_(int(slot.size()) + spare), live_(std::vector<int32_t>{int32_t(slot.size())}), slot_(padded(slot)), position_(padded(position)),
        token_(padded(token)) {}
  Rows rows() const { return {capacity_, live_.data(), slot_.data(), position_.data(), token_.data()}; }

 private:
  std::vector<int32_t> padded(std::vector<int32_t> values) const {
    values.resize(size_t(capacity_), 0x7fffffff);  // whoever looks at a row that does not live meets this
    return values;
  }
  int capacity_;
  Device<int32_t> live_, slot_, position_, token_;
};

inline std::vector<float> random_floats(size_t count, unsigned seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> values(count);
  for (float& v : values) v = scale * normal(random);
  return values;
}

}  // namespace paceline::test
