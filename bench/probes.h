// What the machine itself can do, measured: read bandwidth, and the rate of the instruction that a weight format multiplies with.
#pragma once

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "core/dtype.h"

namespace paceline::bench {

inline double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

// Each thread of a probe gets a core of its own: left to itself the scheduler may start two on one, for as long as a probe lasts.
inline void pin(int thread) {
  cpu_set_t all, one;
  CPU_ZERO(&one);
  if (sched_getaffinity(0, sizeof all, &all) != 0) return;
  for (int cpu = 0, left = thread % std::max(1, CPU_COUNT(&all)); cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &all) && left-- == 0) CPU_SET(cpu, &one);
  sched_setaffinity(0, sizeof one, &one);
}

// body(thread) on every thread at once; seconds from the common start to the last end.
template <class Body>
double on_all_threads(int num_threads, Body body) {
  std::atomic<int> ready{0};
  std::vector<double> begin(num_threads), end(num_threads);
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i)
    threads.emplace_back([&, i] {
      pin(i);
      for (ready.fetch_add(1); ready.load() < num_threads;) _mm_pause();
      begin[i] = now();
      body(i);
      end[i] = now();
    });
  for (auto& thread : threads) thread.join();
  return *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
}

// GB/s of reading an array larger than every cache: four streams per thread with prefetch, the fastest pattern found.
class Bandwidth {
 public:
  explicit Bandwidth(int num_threads, size_t bytes = size_t(512) << 20) : num_threads_(num_threads), data_(bytes, 1) {}

  __attribute__((target("avx2"))) static void read(const char* data, size_t bytes) {
    __m256i seen[4] = {};
    const size_t stream = bytes / 4 / 64 * 64;
    for (size_t at = 0; at < stream; at += 64)
      for (int s = 0; s < 4; ++s) {
        const char* line = data + s * stream + at;
        _mm_prefetch(line + 2048, _MM_HINT_T0);
        seen[s] = _mm256_or_si256(seen[s], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line)));
        seen[s] = _mm256_or_si256(seen[s], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line + 32)));
      }
    asm volatile("" ::"x"(seen[0]), "x"(seen[1]), "x"(seen[2]), "x"(seen[3]));
  }

  double measure() const {
    const size_t share = data_.size() / num_threads_;
    return double(data_.size()) / on_all_threads(num_threads_, [&](int i) { read(data_.data() + i * share, share); }) / 1e9;
  }

 private:
  int num_threads_;
  std::vector<char> data_;
};

// Twelve chains of an instruction on registers: enough to hide its latency. asm, since the compiler would fold plain arithmetic.
#define PACELINE_CHAIN(instruction)                                                                                                     \
  for (long i = 0; i < rounds; ++i)                                                                                                     \
    asm volatile(                                                                                                                       \
        instruction " %%zmm30, %%zmm31, %%zmm0\n" instruction " %%zmm30, %%zmm31, %%zmm1\n" instruction " %%zmm30, %%zmm31, %%zmm2\n"   \
        instruction " %%zmm30, %%zmm31, %%zmm3\n" instruction " %%zmm30, %%zmm31, %%zmm4\n" instruction " %%zmm30, %%zmm31, %%zmm5\n"   \
        instruction " %%zmm30, %%zmm31, %%zmm6\n" instruction " %%zmm30, %%zmm31, %%zmm7\n" instruction " %%zmm30, %%zmm31, %%zmm8\n"   \
        instruction " %%zmm30, %%zmm31, %%zmm9\n" instruction " %%zmm30, %%zmm31, %%zmm10\n" instruction " %%zmm30, %%zmm31, %%zmm11\n" \
        ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11")

// Multiplications and additions per second, in 10^9, of the AVX-512 instruction of a format; 0 where the machine lacks it.
inline double peak(DType dtype, int num_threads) {
  constexpr long rounds = 4'000'000;
  const bool is_bf16 = dtype == DType::bf16, is_int = is_integer(dtype);
  if (!(is_bf16 ? __builtin_cpu_supports("avx512bf16") : is_int ? __builtin_cpu_supports("avx512vnni") : __builtin_cpu_supports("avx512f")))
    return 0;
  const double seconds = on_all_threads(num_threads, [&](int) __attribute__((target("avx512f"))) {
    if (is_bf16) PACELINE_CHAIN("vdpbf16ps");
    else if (is_int) PACELINE_CHAIN("vpdpbusd");
    else PACELINE_CHAIN("vfmadd231ps");
  });
  const double per_instruction = is_bf16 ? 64 : is_int ? 128 : 32;
  return num_threads * 12.0 * rounds * per_instruction / seconds / 1e9;
}

}  // namespace paceline::bench
