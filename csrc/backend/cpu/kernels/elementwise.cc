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

// to[i] = store(x[i] * inverse * norm[i]); two loops, so that each vectorises.
template <class Value, class Store>
void pack_as(const float* x, int k, const float* norm, float inverse, Value* to, Store store) {
  if (norm) {
    for (int i = 0; i < k; ++i) to[i] = store(x[i] * inverse * norm[i]);
  } else {
    for (int i = 0; i < k; ++i) to[i] = store(x[i]);
  }
  if (k % 2) to[k] = Value(0);  // the other half of the last pair
}

}  // namespace

size_t packed_row_bytes(int k, DType dtype) {
#if defined(PACELINE_ISA_avx512_bf16)
  const size_t bytes = size_t(k + 1) * size_of(dtype);
#else
  (void)dtype;
  const size_t bytes = size_t(k + 1) * sizeof(float);
#endif
  return (bytes + 127) / 128 * 128 + 64;
}

void pack(const float* x, int k, const float* norm, float eps, DType dtype, char* packed) {
  const float inverse = norm ? inverse_rms(x, k, eps) : 1.0f;
  if (dtype == DType::fp32) return pack_as(x, k, norm, inverse, reinterpret_cast<float*>(packed), [](float v) { return v; });
#if defined(PACELINE_ISA_avx512_bf16)
  pack_as(x, k, norm, inverse, reinterpret_cast<bf16*>(packed), [](float v) { return to_bf16(v); });
#else
  pack_as(x, k, norm, inverse, reinterpret_cast<float*>(packed), [](float v) { return from_bf16(to_bf16(v)); });
#endif
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
