// Rows on their way into the network and into each product.
//
//   embed      x[t] = table[token_t]                      bytes d (int8), 2 d (bf16) or 4 d in, 4 d out, per row   grid (rows)
//   pack_rows  operand[t] = round(x[t] norm / rms(x[t]))  bytes 4 k in twice, 2 k out, per row                     grid (rows of the block)
//
// rms(x) = sqrt(mean(x^2) + eps), its sum in one tree that depends on k alone. Oracle: tests/simt/rows_test.cc. Not measured.
#include "backend/cuda/device.cuh"
#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/tiles.h"
#include "backend/cuda/values.cuh"

namespace paceline::cuda {
namespace {

constexpr int kThreads = 256;

// ------------------------------------------------------------------------------------------------ embed
// Tables: value(token, i).

template <class T>
struct RowTable {
  const T* data;
  int width;
  __device__ __forceinline__ float value(int token, int i) const { return as_float(data[size_t(token) * width + i]); }
};

struct Tiles {
  const unsigned char* data;
  size_t block_bytes;
  int k;
  template <class T>
  __device__ __forceinline__ T at(int token, size_t place) const {
    return *reinterpret_cast<const T*>(data + token / kTile * block_bytes + place);
  }
};

struct Bf16Tiles : Tiles {
  __device__ __forceinline__ float value(int token, int i) const { return from_bf16(at<bf16>(token, bf16_place(token % kTile, i))); }
};
struct Int8Tiles : Tiles {
  __device__ __forceinline__ float value(int token, int i) const {
    const int q = int(at<unsigned char>(token, int8_place(token % kTile, i))) - 128;
    return at<float>(token, int8_scale_place(k, token % kTile)) * float(q);
  }
};
template <DType kDType>
struct Int4Tiles : Tiles {
  __device__ __forceinline__ float value(int token, int i) const {
    constexpr TileFormat kFormat = tile_format(kDType);
    const int output = token % kTile;
    const uint32_t nibble = at<uint32_t>(token, int4_register(kFormat, output, i)) >> int4_shift(output, i) & 15u;
    return from_bf16(at<bf16>(token, int4_scale_place(kFormat, output, i))) * float(int(nibble) - 8);
  }
};

template <class Table>
__global__ void embed_kernel(Rows rows, Table table, int d, float* x) {
  take_turn();
  const int row = int(blockIdx.x);
  if (row >= *rows.live) return;
  const int token = rows.token[row];
  for (int i = int(threadIdx.x); i < d; i += kThreads) x[size_t(row) * d + i] = table.value(token, i);
}

// ------------------------------------------------------------------------------------------------ pack_rows
// Operands: put(row of the product, i, value).

template <class T>
struct RowOperand {
  T* data;
  int width;
  __device__ __forceinline__ void put(int row, int i, float value) const { cuda::put(data + size_t(row) * width + i, value); }
};

struct FragmentOperand {
  bf16* data;
  int tiles;
  __device__ __forceinline__ void put(int row, int i, float value) const { data[operand_place(tiles, row, i)] = to_bf16(value); }
};

// width: k and the zeros behind it.
template <class Operand>
__global__ void pack_rows_kernel(Rows rows, int first_row, const float* x, int k, int width, const float* norm, float eps,
                                 Operand operand) {
  take_turn();
  const int row = first_row + int(blockIdx.x);
  if (row >= *rows.live) return;
  const float* from = x + size_t(row) * k;
  float scale = 1.0f;
  if (norm) {
    float sum = 0;
    for (int i = int(threadIdx.x); i < k; i += kThreads) sum = fmaf(from[i], from[i], sum);
    sum = reduce_block(sum, shared_memory<float>(), [](float a, float b) { return a + b; });
    scale = 1.0f / sqrtf(sum / float(k) + eps);
  }
  for (int i = int(threadIdx.x); i < width; i += kThreads)
    operand.put(int(blockIdx.x), i, i >= k ? 0.0f : norm ? from[i] * scale * norm[i] : from[i]);
}

}  // namespace

void embed(cudaStream_t stream, const Rows& rows, const DeviceMatrix& table, int d, float* x) {
  const auto from = [&](auto values) {
    launch(embed_kernel<decltype(values)>, dim3(unsigned(rows.capacity)), kThreads, 0, stream, rows, values, d, x);
  };
  const Tiles tiles{static_cast<const unsigned char*>(table.data), tile_format(table.dtype).block_bytes(table.k), table.k};
  switch (table.dtype) {
    case DType::fp32: return from(RowTable<float>{static_cast<const float*>(table.data), padded_k(d)});
    case DType::int8: return from(Int8Tiles{tiles});
    case DType::int4: return from(Int4Tiles<DType::int4>{tiles});
    case DType::int4_g32: return from(Int4Tiles<DType::int4_g32>{tiles});
    default: return table.tiled ? from(Bf16Tiles{tiles}) : from(RowTable<bf16>{static_cast<const bf16*>(table.data), padded_k(d)});
  }
}

void pack_rows(cudaStream_t stream, const Rows& rows, int first_row, const float* x, const DeviceMatrix& w, const float* norm, float eps,
               void* operand) {
  constexpr size_t kShared = kThreads / kWarp * sizeof(float);
  const dim3 blocks(unsigned(rows.capacity - first_row < kRowBlock ? rows.capacity - first_row : kRowBlock));
  const auto into = [&](int width, auto to) {
    launch(pack_rows_kernel<decltype(to)>, blocks, kThreads, kShared, stream, rows, first_row, x, w.k, width, norm, eps, to);
  };
  const int tiles = operand_tiles(w.k, w.dtype), width = padded_k(w.k);
  if (w.tiled) into(tiles * kTile, FragmentOperand{static_cast<bf16*>(operand), tiles});
  else if (w.dtype == DType::fp32) into(width, RowOperand<float>{static_cast<float*>(operand), width});
  else into(width, RowOperand<bf16>{static_cast<bf16*>(operand), width});
}

}  // namespace paceline::cuda
