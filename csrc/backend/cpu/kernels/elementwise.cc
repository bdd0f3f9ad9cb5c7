// What is done to single rows besides packing: rotary positions, and writing K and V.
#include "backend/cpu/kernels/kernels.h"

#include "backend/cpu/kernels/simd.h"
#include "math/bfloat16.h"

namespace paceline::cpu::PACELINE_ISA {

void norm_rope(float* head, int head_dim, const float* norm, float eps, const float* cosines, const float* sines) {
  if (norm) {
    const float inverse = inverse_rms(head, head_dim, eps);
    for (int i = 0; i < head_dim; ++i) head[i] = head[i] * inverse * norm[i];
  }
  const int half = head_dim / 2;
  for (int i = 0; i < half; ++i) {
    const float a = head[i], b = head[half + i];
    head[i] = a * cosines[i] - b * sines[i];
    head[half + i] = b * cosines[i] + a * sines[i];
  }
}

void write_kv(const float* k, const float* v, int head_dim, int offset, DType dtype, char* keys, char* values) {
  if (dtype == DType::fp32) {
    for (int i = 0; i < head_dim; ++i) reinterpret_cast<float*>(keys)[i * 64 + offset] = k[i];
    for (int i = 0; i < head_dim; ++i) reinterpret_cast<float*>(values)[offset * head_dim + i] = v[i];
  } else {
    for (int i = 0; i < head_dim; ++i) reinterpret_cast<bf16*>(keys)[(i / 2 * 64 + offset) * 2 + i % 2] = to_bf16(k[i]);
    for (int i = 0; i < head_dim; ++i) reinterpret_cast<bf16*>(values)[(offset / 2 * head_dim + i) * 2 + offset % 2] = to_bf16(v[i]);
  }
}

}  // namespace paceline::cpu::PACELINE_ISA
