// Weights on the device: tensors rounded or quantised on the host, and laid out in tiles (tiles.h), or row by row for cuBLASLt with
// inputs padded to whole lines.
#include <algorithm>
#include <cstring>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/tiles.h"
#include "math/quantised.h"

namespace paceline::cuda {
namespace {

// Rows [first, first + count) of a tensor, as fp32.
std::vector<float> rows_of(const TensorView& part, int first, int count) {
  const size_t k = size_t(part.shape[1]), from = first * k, n = count * k;
  std::vector<float> values(n);
  const auto* narrow = static_cast<const uint16_t*>(part.data) + from;
  if (part.dtype == DType::fp32) std::copy_n(static_cast<const float*>(part.data) + from, n, values.begin());
  else if (part.dtype == DType::bf16) std::transform(narrow, narrow + n, values.begin(), from_bf16);
  else std::transform(narrow, narrow + n, values.begin(), from_fp16);
  return values;
}

template <class T>
void store(unsigned char* to, T value) { std::memcpy(to, &value, sizeof value); }

// The first value of the largest magnitude; a NaN is larger than all.
float extreme_of(const float* values, int count) {
  float extreme = 0;
  for (int i = 0; i < count; ++i)
    if (bits_of(magnitude(values[i])) > bits_of(magnitude(extreme))) extreme = values[i];
  return extreme;
}

// ------------------------------------------------------------------------------------------------ tiles
// Each packs one output, values [k], into its block.

void pack_bf16(const float* values, int k, int output, unsigned char* block) {
  for (int i = 0; i < k; ++i) store(block + bf16_place(output, i), to_bf16(values[i]));
}

void pack_int8(const float* values, int k, int output, unsigned char* block) {
  const Scale scale = int8_scale(extreme_of(values, k));
  store(block + int8_scale_place(k, output), scale.scale);
  const TileFormat format = tile_format(DType::int8);
  for (int i = 0; i < format.units(k) * format.unit_inputs(); ++i) {
    const bool zero = i >= k || scale.inverse == 0;
    block[int8_place(output, i)] = static_cast<unsigned char>(128 + (zero ? 0 : int8_of(values[i], scale.inverse)));
  }
}

void pack_int4(const float* values, int k, int group, const TileFormat& format, int output, unsigned char* block) {
  for (int first = 0; first < format.units(k) * format.unit_inputs(); first += group) {
    const int count = std::clamp(k - first, 0, group);
    const Scale scale = int4_scale(extreme_of(values + std::min(first, k), count));
    store(block + int4_scale_place(format, output, first), to_bf16(scale.scale));
    for (int i = first; i < first + group; ++i) {
      const bool zero = i >= k || scale.inverse == 0;
      const uint32_t nibble = uint32_t(8 + (zero ? 0 : int4_of(values[i], scale.inverse)));
      unsigned char* at = block + int4_register(format, output, i);
      uint32_t tile;
      std::memcpy(&tile, at, sizeof tile);
      store(at, tile | nibble << int4_shift(output, i));
    }
  }
}

// Blocks of 16 outputs, of `count` rows of the tensor from `first` on; the last one may be short.
std::vector<unsigned char> tiles_of(const TensorView& part, int first, int count, DType dtype) {
  const int k = int(part.shape[1]);
  const TileFormat format = tile_format(dtype);
  std::vector<unsigned char> blocks(size_t((count + kTile - 1) / kTile) * format.block_bytes(k));
  for (int row = 0; row < count; ++row) {
    const std::vector<float> values = rows_of(part, first + row, 1);
    unsigned char* block = blocks.data() + row / kTile * format.block_bytes(k);
    if (dtype == DType::bf16) pack_bf16(values.data(), k, row % kTile, block);
    else if (dtype == DType::int8) pack_int8(values.data(), k, row % kTile, block);
    else pack_int4(values.data(), k, group_of(dtype), format, row % kTile, block);
  }
  return blocks;
}

// ------------------------------------------------------------------------------------------------ rows
// Each as long as padded_k.
std::vector<unsigned char> padded_rows(const TensorView& part, int first, int count, DType dtype) {
  const int k = int(part.shape[1]), width = padded_k(k);
  std::vector<unsigned char> rows(size_t(count) * width * size_of(dtype));
  const std::vector<float> values = rows_of(part, first, count);
  for (int row = 0; row < count; ++row)
    for (int i = 0; i < k; ++i) {
      const float value = values[size_t(row) * k + i];
      unsigned char* at = rows.data() + (size_t(row) * width + i) * size_of(dtype);
      if (dtype == DType::fp32) store(at, value);
      else store(at, to_bf16(value));
    }
  return rows;
}

}  // namespace

bool CudaBackend::is_tiled(DType dtype) const { return is_integer(dtype) || (dtype == DType::bf16 && !bf16_by_cublas_); }

size_t CudaBackend::matrix_bytes(int num_blocks, int k, DType dtype) const {
  return is_tiled(dtype) ? num_blocks * tile_format(dtype).block_bytes(k) : size_t(num_blocks) * kTile * padded_k(k) * size_of(dtype);
}

std::unique_ptr<PackedMatrix> CudaBackend::matrix_in(Buffer memory, int num_blocks, int k, DType dtype) {
  if (is_tiled(dtype)) {
    reserve(operand_, size_t(kRowBlock) * kTile * operand_tiles(k, dtype) * sizeof(bf16));
  } else {
    reserve(operand_, size_t(kRowBlock) * padded_k(k) * size_of(dtype));
    reserve(sums_, size_t(kRowBlock) * kTile * num_blocks * sizeof(float));
    if (!is_dry()) matmul_->prepare(kTile * num_blocks, padded_k(k), dtype);
  }
  return std::make_unique<CudaMatrix>(std::move(memory), num_blocks, k, dtype, is_tiled(dtype));
}

// Blocks that stay neighbours go in one copy.
void CudaBackend::pack_weights(PackedMatrix& packed, const TensorView& part, int first_block, int block_stride) {
  const DeviceMatrix w = static_cast<const CudaMatrix&>(packed).view();
  const int n = int(part.shape[0]), run = block_stride == 1 ? std::max(n, 1) : kTile;
  const size_t block_bytes = matrix_bytes(1, w.k, w.dtype);
  for (int row = 0; row < n; row += run) {
    const int count = std::min(run, n - row);
    const auto bytes = w.tiled ? tiles_of(part, row, count, w.dtype) : padded_rows(part, row, count, w.dtype);
    upload(static_cast<char*>(w.data) + size_t(first_block + row / kTile * block_stride) * block_bytes, bytes.data(), bytes.size());
  }
}

}  // namespace paceline::cuda
