// Test-only: runs CUDA kernels on the host. The very .cu and .cuh files are compiled as C++ with this header in the place of the
// CUDA half of launch.cuh; each CUDA thread is a fiber, blocks run one after the other on one thread of the machine.
//
// What it proves is logic, not speed, and not what a weaker memory order than this machine's would allow. What it does find: missing
// barriers (threads run in forward, reverse or shuffled order, one at a time, from barrier to barrier), divergent barriers and
// warp operations (an error, not a hang), memory used before it is written (shared memory starts as garbage) and, under
// AddressSanitizer, accesses out of bounds. Kernels enqueued right behind each other start before the first of them runs, as they
// may on a device: the threads of one block of each run up to where they wait for the kernels before, so that what they read or write
// too early shows. And a thread that ends without having waited, or while copies are on their way, is an error.
#pragma once

#include <cuda_runtime.h>

#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#include "backend/cuda/check.h"

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace simt {

enum class Order { forward, reverse, shuffled };

struct Schedule {
  Order order = Order::forward;
  unsigned seed = 1;
};
Schedule& schedule();  // of all launches from now on

// Enqueues a grid that runs body once per thread. It throws std::runtime_error when threads wait for each other in vain.
cudaError_t launch_grid(cudaStream_t stream, dim3 blocks, int threads, size_t shared_bytes, std::function<void()> body);
// Hands work to a stream of the stub runtime: runtime.h.
cudaError_t enqueue(cudaStream_t stream, const char* what, std::function<void()> work);

unsigned char* block_shared_memory();
void block_barrier();
// Every lane of mask gives a value; each gets the array of all 32. The array is good until the lane's next call.
const unsigned long long* exchange(unsigned mask, unsigned long long value);
int lane();
void wait_for_grids_before();
// The thread's copies to shared memory, up to 16 bytes each: ptx.cuh.
void send_copy(void* to, const void* from, size_t bytes);
void commit_copies();
void wait_for_copies(int newest);

template <class T>
unsigned long long bits_from(T value) {
  static_assert(sizeof(T) <= 8);
  unsigned long long bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T value_from(unsigned long long bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace simt

// ------------------------------------------------------------------------------------------------ CUDA's words
#undef __shared__
#define __shared__ static_assert(false, "shared memory is dynamic here: shared_memory<T>()")

#undef __launch_bounds__
#define __launch_bounds__(...)

inline void __syncthreads() { simt::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { simt::exchange(mask, 0); }
inline void __threadfence() {}
inline void __threadfence_system() {}
template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return simt::value_from<T>(simt::exchange(mask, simt::bits_from(value))[source & 31]);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with) {
  return simt::value_from<T>(simt::exchange(mask, simt::bits_from(value))[simt::lane() ^ with]);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  const int from = simt::lane() + int(by);
  return simt::value_from<T>(simt::exchange(mask, simt::bits_from(value))[from < 32 ? from : simt::lane()]);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  const int from = simt::lane() - int(by);
  return simt::value_from<T>(simt::exchange(mask, simt::bits_from(value))[from >= 0 ? from : simt::lane()]);
}
inline unsigned __ballot_sync(unsigned mask, bool condition) {
  const unsigned long long* all = simt::exchange(mask, condition);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1 && all[i]) bits |= 1u << i;
  return bits;
}
inline bool __any_sync(unsigned mask, bool condition) { return __ballot_sync(mask, condition) != 0; }
inline bool __all_sync(unsigned mask, bool condition) { return __ballot_sync(mask, condition) == mask; }

// One thread runs at a time: plain reads and writes are atomic.
template <class T>
T atomicAdd(T* at, T value) { T before = *at; *at = T(before + value); return before; }
template <class T>
T atomicMax(T* at, T value) { T before = *at; if (value > before) *at = value; return before; }
template <class T>
T atomicMin(T* at, T value) { T before = *at; if (value < before) *at = value; return before; }
template <class T>
T atomicOr(T* at, T value) { T before = *at; *at = before | value; return before; }
template <class T>
T atomicExch(T* at, T value) { T before = *at; *at = value; return before; }
template <class T>
T atomicCAS(T* at, T expected, T value) { T before = *at; if (before == expected) *at = value; return before; }
template <class T>
T __ldg(const T* at) { return *at; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

namespace paceline::cuda {

template <class T>
T* shared_memory() { return reinterpret_cast<T*>(simt::block_shared_memory()); }

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, int threads, size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  check(simt::launch_grid(stream, blocks, threads, shared_bytes,
                          [=, values = std::tuple<Parameters...>(static_cast<Parameters>(arguments)...)] { std::apply(kernel, values); }),
        "launch");
}

}  // namespace paceline::cuda
