// What every header of math/ needs to serve host, device and each CPU instruction level alike.
//
// Functions have internal linkage on purpose: the same header is compiled into objects of several instruction levels,
// and a linker that merged them could hand AVX-512 code to a machine without it.
// All of it is built with -ffp-contract=off (nvcc: --fmad=false): a fused multiply-add happens only where fma() is written.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define PACELINE_HD static __host__ __device__ __forceinline__
#else
#define PACELINE_HD static inline
#endif

namespace paceline {

PACELINE_HD double double_from_bits(uint64_t bits) {
  double value;
  memcpy(&value, &bits, 8);
  return value;
}

PACELINE_HD uint64_t bits_of(double value) {
  uint64_t bits;
  memcpy(&bits, &value, 8);
  return bits;
}

}  // namespace paceline
