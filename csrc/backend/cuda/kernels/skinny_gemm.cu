// Products of weights and few rows, on tensor cores, and what becomes of them.
//
//   s[t, n] = sum_k W[n, k] x[t, k], t < 64       bf16 products, fp32 sums
//   int4: W = scale[n, group] q, so s is the chain fma(sum of the group, scale, s) over the groups of a warp; int8: s = scale[n] sum
//
//   skinny_sums      out[t, n] = s                        skinny_residual  x[t, n] += s + bias[n]
//   skinny_gate_up   out[t, n] = silu(s[gate n]) s[up n]; blocks of 16 gates and of 16 ups alternate
//
// Shapes   weights in tiles of 16 x 16 (tiles.h), the A operand of mma.m16n8k16; rows in tiles of 8, the B operand, from pack_rows
// Traffic  weights once: N K times 2 bytes (bf16), 1 (int8), 0.53 or 0.56 (int4, int4_g32), past L1 and first to leave L2 (again from
//          there for each block of rows); rows from L1 and L2, 16 K bytes per tile of 8 rows and block; out 4 bytes per value
// FLOPs    2 T N K; at 8 rows 8 per byte of bf16: memory-bound on any device with tensor cores
// Grid     (blocks of 16 outputs, blocks of rows) of kWarps warps. A block of gates and one of ups go together, since they meet. Warp w
//          takes units w, w + kWarps, ... of K, and has 7 of them (of gate and up 3 of each) on their way to shared memory: 28 KiB of
//          weights per block (24), so that one block per multiprocessor covers the 26 KB that latency times bandwidth asks of an H200
//          (4.8 TB/s, 0.7 us, 132 multiprocessors); registers and shared memory (53 KiB at 8 rows of bf16) let four of them be there
// Exact?   a row's bits depend on (N, K) and on the row alone: the warps split K by K, add in ascending units, and their sums meet in
//          ascending warps. The number of tiles of rows is a template, which no sum looks at; columns of an mma do not meet.
//          Rows that do not live are computed from garbage and written nowhere.
// Oracle   tests/simt/skinny_gemm_test.cc. Not measured.
#include "backend/cuda/exp.cuh"
#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/kernels/skinny_part.cuh"

namespace paceline::cuda {
namespace {

constexpr int kLine = kTile + 4;  // of a row of partial sums: lanes of one store meet different banks

template <DType kDType, int kBlocks, int kTiles>
constexpr size_t kRingBytes = size_t(kWarps) * Ring<kDType, kBlocks, kTiles>::kRooms * Ring<kDType, kBlocks, kTiles>::kRoomBytes;
// Behind the rings: [kWarps][kBlocks][8 kTiles rows][kLine]
template <int kBlocks, int kTiles>
constexpr size_t kPartSize = size_t(kBlocks) * 8 * kTiles * kLine;

template <int kBlocks, int kTiles>
__device__ __forceinline__ void put_part(const Sums<kBlocks, kTiles>& sums, float* part) {
  PACELINE_UNROLL
  for (int block = 0; block < kBlocks; ++block)
    PACELINE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile)
      PACELINE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int row = tile * 8 + lane_of() % 4 * 2 + i % 2, output = lane_of() / 4 + i / 2 * 8;
        part[(block * 8 * kTiles + row) * kLine + output] = sums.c[block][tile].c[i];
      }
}

template <DType kDType, int kBlocks, int kTiles, class Finish>
__global__ void __launch_bounds__(kThreads) skinny_kernel(Rows rows, Task task, Finish finish) {
  const int first = int(blockIdx.y) * 8 * kTiles;  // among the rows of the product
  unsigned char* shared = shared_memory<unsigned char>();
  const Part<kDType, kBlocks, kTiles> part(task, shared);
  // Weights are on their way before the rows exist, but only for the first rows of a pass, which always live: for others it may be in vain.
  const bool is_ahead = task.first_row + first == 0;
  let_next_start();
  if (is_ahead) part.send_first();
  wait_for_kernels_before();
  const int left = *rows.live - task.first_row - first, live = left < 8 * kTiles ? left : 8 * kTiles;
  if (live <= 0) {
    wait_for_copies<0>();
    return;
  }
  if (!is_ahead) part.send_first();
  Sums<kBlocks, kTiles> sums{};
  part.multiply(sums);
  float* parts = reinterpret_cast<float*>(shared + kRingBytes<kDType, kBlocks, kTiles>);
  put_part(sums, parts + warp_of() * kPartSize<kBlocks, kTiles>);
  __syncthreads();  // all parts are there

  constexpr TileFormat kFormat = tile_format(kDType);
  for (int i = int(threadIdx.x); i < live * kTile; i += kThreads) {
    const int row = i / kTile, output = i % kTile;
    float total[kBlocks];
    PACELINE_UNROLL
    for (int block = 0; block < kBlocks; ++block) {
      const float* part = parts + (block * 8 * kTiles + row) * kLine + output;
      total[block] = part[0];
      for (int warp = 1; warp < kWarps; ++warp) total[block] += part[warp * kPartSize<kBlocks, kTiles>];
      if constexpr (kDType == DType::int8) {
        const unsigned char* weights = task.weights + (size_t(blockIdx.x) * kBlocks + block) * kFormat.block_bytes(task.k);
        total[block] *= *reinterpret_cast<const float*>(weights + int8_scale_place(task.k, output));
      }
    }
    finish(first + row, int(blockIdx.x) * kTile + output, total);
  }
}

// ------------------------------------------------------------------------------------------------ what becomes of the sums
// (row of the product, column, sums); `to` is the row's place in a pass, columns beyond n do not exist.

struct Write {
  float* to;
  int stride, n;
  __device__ __forceinline__ void operator()(int row, int column, const float (&sums)[1]) const {
    if (column < n) to[size_t(row) * stride + column] = sums[0];
  }
};

struct AddResidual {
  const float* bias;
  float* x;
  int d;
  __device__ __forceinline__ void operator()(int row, int column, const float (&sums)[1]) const {
    if (column < d) x[size_t(row) * d + column] += bias ? sums[0] + bias[column] : sums[0];
  }
};

struct Gate {
  float* out;
  int f;
  __device__ __forceinline__ void operator()(int row, int column, const float (&sums)[2]) const {
    if (column < f) out[size_t(row) * f + column] = gated(sums[0], sums[1]);
  }
};

// ------------------------------------------------------------------------------------------------ launching

template <DType kDType, int kBlocks, int kTiles, class Finish>
void launch_tiles(cudaStream_t stream, const Rows& rows, const Task& task, int num_blocks, const Finish& finish) {
  constexpr size_t kShared = kRingBytes<kDType, kBlocks, kTiles> + kWarps * kPartSize<kBlocks, kTiles> * sizeof(float);
  static_assert(kShared <= kMostSharedBytes);
  const int most = rows.capacity - task.first_row, covered = most < kRowBlock ? most : kRowBlock;
  const dim3 blocks(unsigned(num_blocks / kBlocks), unsigned((covered + 8 * kTiles - 1) / (8 * kTiles)));
  launch(skinny_kernel<kDType, kBlocks, kTiles, Finish>, blocks, kThreads, kShared, stream, rows, task, finish);
}

template <DType kDType, int kBlocks, class Finish>
void launch_rows(cudaStream_t stream, const Rows& rows, const Task& task, int num_blocks, const Finish& finish) {
  constexpr int kMostTiles = kBlocks == 2 || tile_format(kDType).groups ? 4 : 8;  // that registers have room for
  const int most = rows.capacity - task.first_row;
  if (most <= 8) launch_tiles<kDType, kBlocks, 1>(stream, rows, task, num_blocks, finish);
  else if (most <= 16) launch_tiles<kDType, kBlocks, 2>(stream, rows, task, num_blocks, finish);
  else if (most <= 32) launch_tiles<kDType, kBlocks, 4>(stream, rows, task, num_blocks, finish);
  else launch_tiles<kDType, kBlocks, kMostTiles>(stream, rows, task, num_blocks, finish);
}

template <int kBlocks, class Finish>
void launch_format(cudaStream_t stream, const Rows& rows, int first_row, const DeviceMatrix& w, const void* operand, const Finish& finish) {
  const Task task{static_cast<const unsigned char*>(w.data), static_cast<const bf16*>(operand), w.k, first_row};
  switch (w.dtype) {
    case DType::int8: return launch_rows<DType::int8, kBlocks>(stream, rows, task, w.num_blocks, finish);
    case DType::int4: return launch_rows<DType::int4, kBlocks>(stream, rows, task, w.num_blocks, finish);
    case DType::int4_g32: return launch_rows<DType::int4_g32, kBlocks>(stream, rows, task, w.num_blocks, finish);
    default: return launch_rows<DType::bf16, kBlocks>(stream, rows, task, w.num_blocks, finish);
  }
}

}  // namespace

void skinny_sums(cudaStream_t stream, const Rows& rows, int first_row, const DeviceMatrix& w, const void* operand, float* out, int stride,
                 int n) {
  launch_format<1>(stream, rows, first_row, w, operand, Write{out + size_t(first_row) * stride, stride, n});
}

void skinny_residual(cudaStream_t stream, const Rows& rows, int first_row, const DeviceMatrix& w, const void* operand, const float* bias,
                     float* x, int d) {
  launch_format<1>(stream, rows, first_row, w, operand, AddResidual{bias, x + size_t(first_row) * d, d});
}

void skinny_gate_up(cudaStream_t stream, const Rows& rows, int first_row, const DeviceMatrix& w, const void* operand, int f, float* out) {
  launch_format<2>(stream, rows, first_row, w, operand, Gate{out + size_t(first_row) * f, f});
}

}  // namespace paceline::cuda
