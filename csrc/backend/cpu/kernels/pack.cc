// Rows on their way into a product: normalised, rounded and laid out as its matrix wants them; and the way back, a row of an
// embedding read from the packed table.
#include "backend/cpu/kernels/kernels.h"

#include "backend/cpu/kernels/simd.h"
#include "core/bfloat16.h"
#include "core/quantised.h"

namespace paceline::cpu::PACELINE_ISA {

// 1 / sqrt(mean(x^2) + eps). One vector of sums walks the row from the left; its lanes are added in the fixed tree.
float inverse_rms(const float* x, int n, float eps) {
  F32 sum = splat(0.0f);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) sum = fma(load(x + i), load(x + i), sum);
  if (i < n) sum = fma(load_first(x + i, n - i), load_first(x + i, n - i), sum);
  return 1.0f / __builtin_sqrtf(sum_of(sum) / float(n) + eps);
}

namespace {

// to[i] = store(x[i] * inverse * norm[i]); two loops, so that each vectorises.
template <class Value, class Store>
void pack_as(const float* x, int k, const float* norm, float inverse, Value* to, Store store) {
  if (norm) {
    for (int i = 0; i < k; ++i) to[i] = store(x[i] * inverse * norm[i]);
  } else {
    for (int i = 0; i < k; ++i) to[i] = store(x[i]);
  }
}

// The largest magnitude, NaN above all: as bits, magnitudes are in order.
uint32_t largest_bits(const float* x, int k, const float* norm, float inverse) {
  uint32_t largest = 0;
  const auto take = [&largest](float v) {
    const uint32_t bits = bits_of(v) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  };
  if (norm) {
    for (int i = 0; i < k; ++i) take(x[i] * inverse * norm[i]);
  } else {
    for (int i = 0; i < k; ++i) take(x[i]);
  }
  return largest;
}

int32_t sum_of(const int8_t* values, int count) {
  int32_t sum = 0;
  for (int i = 0; i < count; ++i) sum += values[i];
  return sum;
}

void pack_integers(const float* x, int k, const float* norm, float inverse, DType dtype, char* packed) {
  const Scale scale = int8_scale(float_from_bits(largest_bits(x, k, norm, inverse)));
  int8_t* values = reinterpret_cast<int8_t*>(packed + kRowHead);
  const int group = group_of(dtype), groups = groups_of(k, group), width = dtype == DType::int8 ? (k + 3) / 4 * 4 : groups * group;
  if (scale.inverse == 0.0f) memset(values, 0, k);
  else pack_as(x, k, norm, inverse, values, [scale](float v) { return int8_t(int8_of(v, scale.inverse)); });
  memset(values + k, 0, width - k);
  RowHead* head = reinterpret_cast<RowHead*>(packed);
  *head = {scale.scale, 0};
  if (dtype == DType::int8) {
    head->correction = -128 * sum_of(values, k);
  } else {
    int32_t* corrections = reinterpret_cast<int32_t*>(values + width);
    for (int i = 0; i < groups; ++i) corrections[i] = -8 * sum_of(values + i * group, group);
  }
}

}  // namespace

size_t packed_row_bytes(int k, DType dtype) {
#if defined(PACELINE_ISA_avx512_bf16)
  size_t bytes = size_t(k + 1) * size_of(dtype);
#else
  size_t bytes = size_t(k + 1) * sizeof(float);
#endif
  if (dtype == DType::int8) bytes = kRowHead + size_t(k) + 3;
  else if (is_integer(dtype)) bytes = kRowHead + size_t(groups_of(k, group_of(dtype))) * (group_of(dtype) + sizeof(int32_t));
  return (bytes + 127) / 128 * 128 + 64;
}

void pack(const float* x, int k, const float* norm, float eps, DType dtype, char* packed) {
  const float inverse = norm ? inverse_rms(x, k, eps) : 1.0f;
  if (is_integer(dtype)) return pack_integers(x, k, norm, inverse, dtype, packed);
  if (dtype == DType::fp32) return pack_as(x, k, norm, inverse, reinterpret_cast<float*>(packed), [](float v) { return v; });
#if defined(PACELINE_ISA_avx512_bf16)
  bf16* values = reinterpret_cast<bf16*>(packed);
  pack_as(x, k, norm, inverse, values, [](float v) { return to_bf16(v); });
#else
  float* values = reinterpret_cast<float*>(packed);
  pack_as(x, k, norm, inverse, values, [](float v) { return from_bf16(to_bf16(v)); });
#endif
  if (k % 2) values[k] = 0;  // the other half of the last pair
}

void embed(const Matrix& table, int token, int d, float* out) {
  const char* block = static_cast<const char*>(table.data) + token / kLanes * table.block_bytes();
  const int lane = token % kLanes;
  const auto line = [&](size_t index) { return block + index * 64; };
  const int group = group_of(table.dtype);
  switch (table.dtype) {
    case DType::bf16:
      for (int i = 0; i < d; ++i) out[i] = from_bf16(reinterpret_cast<const bf16*>(line(i / 2))[2 * lane + i % 2]);
      return;
    case DType::int8: {
      const float scale = reinterpret_cast<const float*>(block)[lane];
      for (int i = 0; i < d; ++i) out[i] = scale * float(int(uint8_t(line(1 + i / 4)[4 * lane + i % 4])) - 128);
      return;
    }
    case DType::int4: case DType::int4_g32:
      for (int i = 0; i < d; ++i) {
        const char* two_groups = line(size_t(i / (2 * group)) * (1 + group / 4));
        const float scale = from_bf16(reinterpret_cast<const bf16*>(two_groups)[i / group % 2 * kLanes + lane]);
        const uint8_t byte = uint8_t(two_groups[64 * (1 + i % (2 * group) / 8) + 4 * lane + i % 4]);
        out[i] = scale * float((i % 8 < 4 ? byte & 15 : byte >> 4) - 8);
      }
      return;
    default:
      for (int i = 0; i < d; ++i) out[i] = reinterpret_cast<const float*>(line(i))[lane];
  }
}

}  // namespace paceline::cpu::PACELINE_ISA
