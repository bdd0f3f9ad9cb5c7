// e^x and 2^x in fp32, of explicit multiply-adds: a device and the host give the same bits, which no libm and no fast intrinsic
// promises. The polynomials are those of the CPU engine.
#pragma once

#include "backend/cuda/launch.cuh"
#include "math/bfloat16.h"

namespace paceline::cuda {

// An integer n of small magnitude comes twice from one addition: `value` = n, and the low bits of `shifted` hold it for an exponent.
struct NearestInteger {
  float shifted, value;
};
__device__ __forceinline__ NearestInteger nearest_integer(float x) {
  const float shifted = x + 0x1.8p23f;  // the last place is 1 here: the sum is rounded to nearest, ties to even
  return {shifted, shifted - 0x1.8p23f};
}

// value 2^n, the result normal. A NaN is handed through by name: its bits are not the same everywhere, and an exponent added to some
// of them gives a number.
__device__ __forceinline__ float scaled(float value, NearestInteger n) {
  return value != value ? value : float_from_bits(bits_of(value) + (bits_of(n.shifted) << 23));
}

// e^x to about 1e-7 relative for x in [-87, 88], clamped there: what fp32 can hold without subnormals or infinity. NaN stays NaN.
__device__ __forceinline__ float exp_of(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const NearestInteger n = nearest_integer(x * 1.44269504f);
  const float r = fmaf(n.value, 2.12194440e-4f, fmaf(n.value, -0.693359375f, x));  // ln 2 = 0.693359375 - 2.1219444e-4
  float p = 1.0f / 5040;
  p = fmaf(p, r, 1.0f / 720);
  p = fmaf(p, r, 1.0f / 120);
  p = fmaf(p, r, 1.0f / 24);
  p = fmaf(p, r, 1.0f / 6);
  p = fmaf(p, r, 0.5f);
  p = fmaf(p, r, 1.0f);
  p = fmaf(p, r, 1.0f);
  return scaled(p, n);
}

// 2^x to about 2e-7 relative for x <= 0, from -126 on: below that 2^-126. NaN stays NaN.
__device__ __forceinline__ float exp2_of(float x) {
  x = x < -126.0f ? -126.0f : x;
  const NearestInteger n = nearest_integer(x);
  const float r = x - n.value;
  float p = 1.540353039e-4f;  // ln 2 to the k, over k!
  p = fmaf(p, r, 1.333355815e-3f);
  p = fmaf(p, r, 9.618129108e-3f);
  p = fmaf(p, r, 5.550410866e-2f);
  p = fmaf(p, r, 2.402265070e-1f);
  p = fmaf(p, r, 6.931471806e-1f);
  p = fmaf(p, r, 1.0f);
  return scaled(p, n);
}

// silu(gate) up
__device__ __forceinline__ float gated(float gate, float up) {
  const float sigmoid = 1.0f / (1.0f + exp_of(-gate));
  return gate * sigmoid * up;
}

}  // namespace paceline::cuda
