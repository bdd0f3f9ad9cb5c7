// What is done to single rows: normalising and packing them for a product, embedding, rotary positions, writing K and V.
#include "backend/cpu/kernels/kernels.h"

#include "backend/cpu/kernels/simd.h"
#include "core/bfloat16.h"

namespace paceline::cpu::PACELINE_ISA {
namespace {

// 1 / sqrt(mean(x^2) + eps). One vector of sums walks the row from the left; its lanes are added in the fixed tree.
float inverse_rms(const float* x, int n, float eps) {
  F32 sum = splat(0.0f);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) sum = fma(load(x + i), load(x + i), sum);
  if (i < n) sum = fma(load_first(x + i, n - i), load_first(x + i, n - i), sum);
  return 1.0f / __builtin_sqrtf(sum_of(sum) / float(n) + eps);
}

float normalised(const float* x, int i, const float* norm, float inverse) { return norm ? x[i] * inverse * norm[i] : x[i]; }

}  // namespace

size_t packed_row_bytes(int k, DType dtype) {
#if defined(PACELINE_ISA_avx512_bf16)
  if (dtype == DType::bf16) return size_t(k + 1) / 2 * 4;
#endif
  return size_t(dtype == DType::bf16 ? (k + 1) / 2 * 2 : k) * 4;
}

void pack(const float* x, int stride, int m, int k, const float* norm, float eps, DType dtype, void* packed) {
  for (int row = 0; row < m; ++row, x += stride) {
    const float inverse = norm ? inverse_rms(x, k, eps) : 1.0f;
    if (dtype == DType::fp32) {
      float* to = static_cast<float*>(packed) + row;
      for (int i = 0; i < k; ++i) to[size_t(i) * m] = normalised(x, i, norm, inverse);
      continue;
    }
    const int whole = k / 2;
#if defined(PACELINE_ISA_avx512_bf16)
    uint32_t* to = static_cast<uint32_t*>(packed) + row;
    const auto pair = [](float low, float high) { return uint32_t(to_bf16(low)) | uint32_t(to_bf16(high)) << 16; };
    for (int i = 0; i < whole; ++i)
      to[size_t(i) * m] = pair(normalised(x, 2 * i, norm, inverse), normalised(x, 2 * i + 1, norm, inverse));
    if (k % 2) to[size_t(whole) * m] = pair(normalised(x, k - 1, norm, inverse), 0.0f);
#else
    float* to = static_cast<float*>(packed) + row;
    for (int i = 0; i < k; ++i) to[size_t(i) * m] = from_bf16(to_bf16(normalised(x, i, norm, inverse)));
    if (k % 2) to[size_t(2 * whole + 1) * m] = 0.0f;
#endif
  }
}

void embed(const Matrix& table, int token, int d, float* out) {
  const size_t base = size_t(token / kLanes) * table.steps() * kLanes + token % kLanes;
  if (table.dtype == DType::fp32) {
    for (int i = 0; i < d; ++i) out[i] = static_cast<const float*>(table.data)[base + size_t(i) * kLanes];
  } else {
    for (int i = 0; i < d; ++i) out[i] = from_bf16(static_cast<const bf16*>(table.data)[(base + size_t(i / 2) * kLanes) * 2 + i % 2]);
  }
}

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
    for (int i = 0; i < head_dim; ++i) reinterpret_cast<bf16*>(values)[offset * head_dim + i] = to_bf16(v[i]);
  }
}

}  // namespace paceline::cpu::PACELINE_ISA
