// Rows on their way into a product: normalised, rounded and laid out as its matrix wants them; and the way back, a row of an
// embedding read from the packed table.
#include "backend/cpu/kernels/kernels.h"

#include "backend/cpu/kernels/simd.h"
#include "math/bfloat16.h"
#include "math/quantised.h"

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

#if defined(PACELINE_ISA_avx512_bf16)
using StoredBf16 = bf16;
StoredBf16 stored(float x) { return to_bf16(x); }
#else
using StoredBf16 = float;
StoredBf16 stored(float x) { return from_bf16(to_bf16(x)); }
#endif

// Line by line, each ending in zeros where k does.
template <class Value, class Store>
void pack_floats(const float* x, int k, const float* norm, float inverse, char* packed, int row, int rows, Store store) {
  constexpr int kValues = 64 / sizeof(Value);
  for (int first = 0; first < k; first += kValues, packed += size_t(rows) * 64) {
    Value* line = reinterpret_cast<Value*>(packed + size_t(row) * 64);
    const int count = k - first < kValues ? k - first : kValues;
    pack_as(x + first, count, norm ? norm + first : nullptr, inverse, line, store);
    for (int i = count; i < kValues; ++i) line[i] = 0;
  }
}

// Sixteen of the values to be packed from x[i] on, zeros past the row's end.
F32 value_of(const float* x, int k, const float* norm, float inverse, int i) {
  const int left = k - i;
  if (left <= 0) return splat(0.0f);
  const F32 value = left >= kLanes ? load(x + i) : load_first(x + i, left);
  return norm ? value * splat(inverse) * (left >= kLanes ? load(norm + i) : load_first(norm + i, left)) : value;
}

// Magnitudes as bits, which are in order, NaN above all.
I32 magnitude_bits(F32 x) { return as_integers(x) & splat(0x7fffffff); }

void pack_integers(const float* x, int k, const float* norm, float inverse, DType dtype, char* packed, int row, int rows) {
  constexpr int kVectors = 64 / kLanes;  // of the longest group
  const int length = group_of(dtype), vectors = length / kLanes, groups = groups_of(k, length), offset = dtype == DType::int8 ? 128 : 8;
  RowGroup* group = reinterpret_cast<RowGroup*>(packed + size_t(groups) * rows * length);
  I32 largest = splat(0);
  if (dtype != DType::int8)
    for (int i = 0; i < k; i += kLanes) largest = max(largest, magnitude_bits(value_of(x, k, norm, inverse, i)));
  Scale scale = int8_scale(float_from_bits(uint32_t(max_of(largest))));
  for (int g = 0; g < groups; ++g) {
    F32 value[kVectors];
    for (int v = 0; v < vectors; ++v) value[v] = value_of(x, k, norm, inverse, g * length + v * kLanes);
    if (dtype == DType::int8) {
      largest = magnitude_bits(value[0]);
      for (int v = 1; v < vectors; ++v) largest = max(largest, magnitude_bits(value[v]));
      scale = int8_scale(float_from_bits(uint32_t(max_of(largest))));
    }
    int8_t* values = reinterpret_cast<int8_t*>(packed) + (size_t(g) * rows + row) * length;
    I32 sum = splat(0);
    for (int v = 0; v < vectors; ++v) {
      const I32 quantised = scale.inverse == 0 ? splat(0) : nearest(value[v] * splat(scale.inverse));
      store_bytes(values + v * kLanes, quantised);
      sum = sum + quantised;
    }
    group[size_t(g) * rows + row] = {scale.scale, -offset * sum_of(sum)};
  }
}

}  // namespace

int packed_lines(int k, DType dtype) {
  if (is_integer(dtype)) return groups_of(k, group_of(dtype));
  const int values = 64 / int(dtype == DType::bf16 ? sizeof(StoredBf16) : sizeof(float));
  return (k + values - 1) / values;
}

size_t packed_row_bytes(int k, DType dtype) {
  return size_t(packed_lines(k, dtype)) * (is_integer(dtype) ? group_of(dtype) + sizeof(RowGroup) : 64);
}

void pack(const float* x, int k, const float* norm, float eps, DType dtype, char* packed, int row, int rows) {
  const float inverse = norm ? inverse_rms(x, k, eps) : 1.0f;
  if (is_integer(dtype)) pack_integers(x, k, norm, inverse, dtype, packed, row, rows);
  else if (dtype == DType::bf16) pack_floats<StoredBf16>(x, k, norm, inverse, packed, row, rows, stored);
  else pack_floats<float>(x, k, norm, inverse, packed, row, rows, [](float v) { return v; });
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
