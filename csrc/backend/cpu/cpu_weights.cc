// Weights on the CPU: tensors rounded or quantised, and laid out in the blocks that kernels.h describes.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "math/bfloat16.h"
#include "math/quantised.h"

namespace paceline::cpu {
namespace {

// Up to sixteen rows of a tensor, as fp32.
struct BlockRows {
  int count, k;
  std::vector<float> values;  // [16, k]

  const float* row(int lane) const { return values.data() + size_t(lane) * k; }

  void read(const TensorView& part, int first, int rows) {
    count = rows;
    const size_t from = size_t(first) * k, n = size_t(rows) * k;
    const auto* narrow = static_cast<const uint16_t*>(part.data) + from;
    if (part.dtype == DType::fp32) std::memcpy(values.data(), static_cast<const float*>(part.data) + from, n * sizeof(float));
    else if (part.dtype == DType::bf16) std::transform(narrow, narrow + n, values.begin(), from_bf16);
    else std::transform(narrow, narrow + n, values.begin(), from_fp16);
  }
};

// place(lane, i, value) for all of k, a stretch of each row at a time: rows a power of two apart would push each other out of the
// first-level cache.
template <class Place>
void for_each(const BlockRows& rows, Place place) {
  constexpr int kStretch = 32;
  for (int first = 0; first < rows.k; first += kStretch)
    for (int lane = 0; lane < rows.count; ++lane)
      for (int i = first; i < std::min(rows.k, first + kStretch); ++i) place(lane, i, rows.row(lane)[i]);
}

// The first value of the largest magnitude; a NaN is larger than all.
float extreme_of(const float* values, int count) {
  float extreme = 0;
  for (int i = 0; i < count; ++i)
    if ((bits_of(values[i]) & 0x7fffffffu) > (bits_of(extreme) & 0x7fffffffu)) extreme = values[i];
  return extreme;
}

void pack_int8(const BlockRows& rows, size_t block_bytes, char* block) {
  Scale scale[16];
  for (int lane = 0; lane < 16; ++lane) {
    scale[lane] = int8_scale(lane < rows.count ? extreme_of(rows.row(lane), rows.k) : 0);
    reinterpret_cast<float*>(block)[lane] = scale[lane].scale;
  }
  char* bytes = block + 64;
  std::memset(bytes, 128, block_bytes - 64);
  for_each(rows, [&](int lane, int i, float value) {
    if (scale[lane].inverse != 0) bytes[size_t(i / 4) * 64 + lane * 4 + i % 4] = char(int8_of(value, scale[lane].inverse) + 128);
  });
}

// Groups two by two: their scales, then their values.
void pack_int4(const BlockRows& rows, int group, char* block) {
  const int groups = groups_of(rows.k, group);
  for (int g = 0; g < groups; g += 2, block += 64 * (1 + group / 4)) {
    char* bytes = block + 64;
    std::memset(bytes, 0x88, 16 * size_t(group));
    for (int half = 0; half < 2; ++half)
      for (int lane = 0; lane < 16; ++lane) {
        const int first = std::min((g + half) * group, rows.k), count = lane < rows.count ? std::min(rows.k - first, group) : 0;
        const float* values = rows.row(lane) + first;
        const Scale scale = int4_scale(extreme_of(values, count));
        reinterpret_cast<bf16*>(block)[half * 16 + lane] = to_bf16(scale.scale);
        for (int i = 0; i < count && scale.inverse != 0; ++i) {
          char& byte = bytes[size_t(half * group + i) / 8 * 64 + lane * 4 + i % 4];
          const int q = int4_of(values[i], scale.inverse) + 8;
          byte = char(i % 8 < 4 ? (byte & 0xf0) | q : (byte & 0x0f) | q << 4);
        }
      }
  }
}

void pack_block(const BlockRows& rows, const Matrix& w, char* block) {
  switch (w.dtype) {
    case DType::int8: return pack_int8(rows, w.block_bytes(), block);
    case DType::int4: case DType::int4_g32: return pack_int4(rows, group_of(w.dtype), block);
    case DType::bf16:
      return for_each(rows, [to = reinterpret_cast<bf16*>(block)](int lane, int i, float value) {
        to[(size_t(i / 2) * 16 + lane) * 2 + i % 2] = to_bf16(value);
      });
    default:
      for_each(rows, [to = reinterpret_cast<float*>(block)](int lane, int i, float value) { to[size_t(i) * 16 + lane] = value; });
  }
}

}  // namespace

size_t CpuBackend::matrix_bytes(int num_blocks, int k, DType dtype) const { return num_blocks * Matrix{nullptr, num_blocks, k, dtype}.block_bytes(); }

std::unique_ptr<PackedMatrix> CpuBackend::matrix_in(Buffer memory, int num_blocks, int k, DType dtype) {
  reserve_rows(k, dtype);
  return std::make_unique<CpuMatrix>(std::move(memory), num_blocks, k, dtype);
}

void CpuBackend::pack_weights(PackedMatrix& packed, const TensorView& part, int first_block, int block_stride) {
  const Matrix& w = matrix_of(packed);
  const int n = int(part.shape[0]), k = int(part.shape[1]);
  std::vector<BlockRows> rows(pool_->num_threads(), {0, k, std::vector<float>(16 * size_t(k))});
  char* data = static_cast<char*>(const_cast<void*>(w.data));
  pool_->run([&](int thread, int num_threads) {
    for (int row = 16 * thread; row < n; row += 16 * num_threads) {
      rows[thread].read(part, row, std::min(16, n - row));
      pack_block(rows[thread], w, data + (first_block + row / 16 * block_stride) * w.block_bytes());
    }
  });
}

}  // namespace paceline::cpu
