// Every line of PTX, each with a half for the host that means the same.
#pragma once

#include "backend/cuda/launch.cuh"
#include "math/bfloat16.h"

#ifdef PACELINE_HOST_SIMT
#include <chrono>
#endif

namespace paceline::cuda {

// Nanoseconds by the clock that all multiprocessors share; only differences mean anything.
__device__ __forceinline__ int64_t global_timer() {
#ifdef PACELINE_HOST_SIMT
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
#else
  int64_t nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  return nanoseconds;
#endif
}

// ------------------------------------------------------------------------------------------------ kernels that overlap
// From compute capability 9.0 on a kernel may start while the one before it still runs (launch.cuh), and so may the one behind it. Two
// rules keep that as if they ran one after the other:
//   * Before it waits, a thread reads what no kernel of a cycle writes, weights, and writes shared memory alone.
//   * Every thread waits, on every path, even if all it does then is leave. What a kernel waits for is the end of the kernel right before
//     it; that the ones before that have ended too, whose results it reads and whose inputs it may overwrite, it knows only because that
//     one has waited for them.
// Copies and graphs know nothing of this: they come after the end of what was enqueued before, and before all that comes later.

// The next kernel may start as soon as every block of this one has said so, or has ended.
__device__ __forceinline__ void let_next_start() {
#if !defined(PACELINE_HOST_SIMT) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Until all kernels before have ended; what they wrote can be seen.
__device__ __forceinline__ void wait_for_kernels_before() {
#ifdef PACELINE_HOST_SIMT
  simt::wait_for_grids_before();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// How a kernel begins that has nothing to do before.
__device__ __forceinline__ void take_turn() {
  let_next_start();
  wait_for_kernels_before();
}

// ------------------------------------------------------------------------------------------------ copies on their way
// From global to shared memory while the thread goes on. Copies up to a commit are a group; a wait leaves the newest groups on their
// way, and what has arrived can be seen by the thread that copied it. Nobody else writes what they read while a kernel runs.

#ifndef PACELINE_HOST_SIMT
__device__ __forceinline__ unsigned shared_address(void* at) { return unsigned(__cvta_generic_to_shared(at)); }
#endif

// For what is read once: it leaves L2 before anything else does.
using StreamPolicy = uint64_t;
__device__ __forceinline__ StreamPolicy stream_policy() {
  StreamPolicy policy = 0;
#ifndef PACELINE_HOST_SIMT
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}

// 16 bytes, aligned, past L1.
__device__ __forceinline__ void copy_streaming(void* to, const void* from, [[maybe_unused]] StreamPolicy policy) {
#ifdef PACELINE_HOST_SIMT
  simt::send_copy(to, from, 16);
#else
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "l"(policy) : "memory");
#endif
}
// 4 or 8 bytes, aligned, through L1.
template <int kBytes>
__device__ __forceinline__ void copy_small(void* to, const void* from) {
#ifdef PACELINE_HOST_SIMT
  simt::send_copy(to, from, kBytes);
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from), "n"(kBytes) : "memory");
#endif
}
__device__ __forceinline__ void commit_copies() {
#ifdef PACELINE_HOST_SIMT
  simt::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until no more than kNewest committed groups are on their way.
template <int kNewest>
__device__ __forceinline__ void wait_for_copies() {
#ifdef PACELINE_HOST_SIMT
  simt::wait_for_copies(kNewest);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
#endif
}

// ------------------------------------------------------------------------------------------------ pairs of bf16
// Two bf16 in a register, the first in the low half. a - b, each half rounded to nearest.
__device__ __forceinline__ uint32_t subtract_pairs(uint32_t a, uint32_t b) {
#ifdef PACELINE_HOST_SIMT
  const float low = from_bf16(bf16(a)) - from_bf16(bf16(b)), high = from_bf16(bf16(a >> 16)) - from_bf16(bf16(b >> 16));
  return uint32_t(to_bf16(low)) | uint32_t(to_bf16(high)) << 16;
#else
  uint32_t difference;  // a * 1 - b: the subtraction itself is an instruction from compute capability 9.0 on
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(difference) : "r"(a), "r"(0x3f803f80u), "r"(b ^ 0x80008000u));
  return difference;
#endif
}

// ------------------------------------------------------------------------------------------------ tensor cores
// Four matrices of 8 x 8 16-bit values in shared memory, to the whole warp. Lane i names row i % 8 of matrix i / 8: 16 bytes, aligned.
// Register m of lane 4 g + t gets of matrix m the values 2t and 2t + 1 of row g; transposed, values g of rows 2t and 2t + 1.
enum class Matrices { straight, transposed };
template <Matrices kHow>
__device__ __forceinline__ void load_matrices(const void* row, uint32_t (&to)[4]) {
#ifdef PACELINE_HOST_SIMT
  const unsigned long long* rows = simt::exchange(0xffffffffu, simt::bits_from(row));
  const int g = simt::lane() / 4, t = simt::lane() % 4;
  const auto value = [&](int matrix, int at, int i) { return uint32_t(simt::value_from<const uint16_t*>(rows[8 * matrix + at])[i]); };
  for (int m = 0; m < 4; ++m) {
    const bool straight = kHow == Matrices::straight;
    to[m] = (straight ? value(m, g, 2 * t) : value(m, 2 * t, g)) | (straight ? value(m, g, 2 * t + 1) : value(m, 2 * t + 1, g)) << 16;
  }
  simt::exchange(0xffffffffu, 0);  // nobody goes on and writes while another lane still reads
#else
  const unsigned at = unsigned(__cvta_generic_to_shared(row));
  if constexpr (kHow == Matrices::straight)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
#endif
}

// Fragments of mma.m16n8k16, one per lane (PTX ISA, "Matrix fragments for mma.m16n8k16"). With g = lane / 4 and t = lane % 4:
//   A [16 x 16]  a[0]: row g, columns 2t, 2t + 1    a[1]: row g + 8    a[2]: row g, columns 2t + 8, 2t + 9    a[3]: row g + 8, those
//   B [16 x 8]   b[0]: rows 2t, 2t + 1 of column g                     b[1]: rows 2t + 8, 2t + 9
//   C [16 x 8]   c[0], c[1]: row g, columns 2t, 2t + 1                 c[2], c[3]: row g + 8
struct FragmentA {
  uint32_t a[4];
};
struct FragmentB {
  uint32_t b[2];
};
struct FragmentC {
  float c[4];
};

#ifdef PACELINE_HOST_SIMT
struct LaneFragments {
  const FragmentA* a;
  const FragmentB* b;
};
inline float half_of(const uint32_t* registers, int index) { return from_bf16(bf16(registers[index / 2] >> (index % 2 * 16))); }

// c + A B at (row, column), from the fragments of all lanes: products are exact, their sum is rounded once.
inline float multiplied(const LaneFragments* const* lanes, int row, int column, float c) {
  double sum = c;
  for (int k = 0; k < 16; ++k) {
    const float a = half_of(lanes[row % 8 * 4 + k % 8 / 2]->a->a, k / 8 * 4 + row / 8 * 2 + k % 2);
    const float b = half_of(lanes[column * 4 + k % 8 / 2]->b->b, k / 8 * 2 + k % 2);
    sum += double(a) * double(b);
  }
  return float(sum);
}
#endif

// c += A B. All 32 lanes of the warp call it. Columns do not meet: a NaN in one of B spoils that one of C.
__device__ __forceinline__ void multiply_add(FragmentC& c, const FragmentA& a, const FragmentB& b) {
#ifdef PACELINE_HOST_SIMT
  const LaneFragments mine{&a, &b};
  const LaneFragments* lanes[32];
  static_assert(sizeof lanes == 32 * sizeof(unsigned long long));
  std::memcpy(lanes, simt::exchange(0xffffffffu, simt::bits_from(&mine)), sizeof lanes);
  const int g = simt::lane() / 4, t = simt::lane() % 4;
  for (int i = 0; i < 4; ++i) c.c[i] = multiplied(lanes, g + i / 2 * 8, 2 * t + i % 2, c.c[i]);
  simt::exchange(0xffffffffu, 0);  // nobody changes a fragment that another lane still reads
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c.c[0]), "+f"(c.c[1]), "+f"(c.c[2]), "+f"(c.c[3])
               : "r"(a.a[0]), "r"(a.a[1]), "r"(a.a[2]), "r"(a.a[3]), "r"(b.b[0]), "r"(b.b[1]));
#endif
}

}  // namespace paceline::cuda
