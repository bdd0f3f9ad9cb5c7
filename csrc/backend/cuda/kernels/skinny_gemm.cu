// Products of weights and few rows, on tensor cores, and what becomes of them.
//
//   s[t, n] = sum_k W[n, k] x[t, k], t < 64       bf16 products, fp32 sums
//   int4: W = scale[n, group] q, so s is the chain fma(sum of the group, scale, s) over the groups of a warp; int8: s = scale[n] sum
//
//   skinny_sums      out[t, n] = s                        skinny_residual  x[t, n] += s + bias[n]
//   skinny_gate_up   out[t, n] = silu(s[gate n]) s[up n]; blocks of 16 gates and of 16 ups alternate
//
// Shapes   weights in tiles of 16 x 16 (tiles.h), the A operand of mma.m16n8k16; rows in tiles of 8, the B operand, from pack_rows
// Traffic  weights once: N K times 2 bytes (bf16), 1 (int8), 0.53 or 0.56 (int4, int4_g32), past L1 and first to leave L2; rows from
//          L1 and L2, 16 K bytes per tile of 8 rows and block; out 4 bytes per value
// FLOPs    2 T N K; at 8 rows 8 per byte of bf16: memory-bound on any device with tensor cores
// Grid     a block of kWarps warps per 16 outputs and up to 64 rows (gate and up: 32 and 32). Warp w takes units w, w + kWarps, ... of K, with kDepth x 16 bytes
//          of each lane on their way: 32 KiB per block, so that one block per multiprocessor covers the 26 KB that latency times
//          bandwidth asks of an H200 (4.8 TB/s, 0.7 us, 132 multiprocessors)
// Exact?   a row's bits depend on (N, K) and on the row alone: the warps split K by K, add in ascending units, and their sums meet in
//          ascending warps. The number of tiles of rows is a template, which no sum looks at; columns of an mma do not meet.
//          Rows that do not live are computed with garbage and written nowhere.
// Oracle   tests/simt/skinny_gemm_test.cc. Not measured.
#include "backend/cuda/exp.cuh"
#include "backend/cuda/kernels/fragments.cuh"
#include "backend/cuda/kernels/kernels.h"

namespace paceline::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kRingUnits = 8;     // of a warp on their way
constexpr int kMostSums = 8;      // tiles of sums that registers have room for
constexpr int kLine = kTile + 4;  // of a row of partial sums: lanes of one store meet different banks

struct Task {
  const unsigned char* weights;
  const bf16* operand;
  int k, first_row;
};

// kBlocks blocks of 16 outputs by kTiles tiles of 8 rows, in the registers of a warp.
template <int kBlocks, int kTiles>
struct Sums {
  FragmentC c[kBlocks][kTiles];
};

// sums += unit x rows. `rows` points to the lane's part of the unit's first tile; `tiles` are those of a row.
template <DType kDType, int kBlocks, int kTiles>
__device__ __forceinline__ void multiply_unit(Sums<kBlocks, kTiles>& sums, const Unit<kDType> (&units)[kBlocks], const bf16* rows, int tiles) {
  using Format = Unit<kDType>;
  constexpr int kPieces = Format::kGroups ? Format::kGroups : 1, kPiece = Format::kFormat.tiles / kPieces;
  PACELINE_UNROLL
  for (int piece = 0; piece < kPieces; ++piece) {
    Sums<kBlocks, kTiles> grouped{};
    Sums<kBlocks, kTiles>& into = Format::kGroups ? grouped : sums;
    PACELINE_UNROLL
    for (int j = piece * kPiece; j < (piece + 1) * kPiece; ++j) {
      FragmentB b[kTiles];
      PACELINE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint2 lane = *reinterpret_cast<const uint2*>(rows + (size_t(tile) * tiles + j) * 128);
        b[tile].b[0] = lane.x, b[tile].b[1] = lane.y;
      }
      PACELINE_UNROLL
      for (int block = 0; block < kBlocks; ++block) {
        const FragmentA a = units[block].fragment(j);
        PACELINE_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) multiply_add(into.c[block][tile], a, b[tile]);
      }
    }
    if constexpr (Format::kGroups) {
      PACELINE_UNROLL
      for (int block = 0; block < kBlocks; ++block) {
        const LaneScales scales = units[block].scales_of(piece);
        PACELINE_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          float(&total)[4] = sums.c[block][tile].c;
          const float(&part)[4] = grouped.c[block][tile].c;
          PACELINE_UNROLL
          for (int i = 0; i < 4; ++i) total[i] = fmaf(part[i], i < 2 ? scales.low : scales.high, total[i]);
        }
      }
    }
  }
}

// The warp's part of K. Each unit is loaded kDepth turns before its own.
template <DType kDType, int kBlocks, int kTiles>
__device__ __forceinline__ void multiply_part(Sums<kBlocks, kTiles>& sums, const Task& task) {
  constexpr TileFormat kFormat = tile_format(kDType);
  constexpr int kDepth = kTiles < 8 ? kRingUnits / kBlocks : kRingUnits / 2;  // 64 rows need the registers for their sums
  const int num_units = kFormat.units(task.k), tiles = num_units * kFormat.tiles;
  const size_t block_bytes = kFormat.block_bytes(task.k);
  const unsigned char* blocks = task.weights + size_t(blockIdx.x) * kBlocks * block_bytes;
  const bf16* lane_rows = task.operand + size_t(blockIdx.y) * kTiles * tiles * 128 + lane_of() * 4;
  const StreamPolicy policy = stream_policy();
  Unit<kDType> ring[kDepth][kBlocks] = {};
  const auto load = [&](Unit<kDType>(&units)[kBlocks], int unit) {
    PACELINE_UNROLL
    for (int block = 0; block < kBlocks; ++block) units[block].load(blocks + block * block_bytes + unsigned(unit * kFormat.unit_bytes()), policy);
  };
  const auto multiply = [&](const Unit<kDType>(&units)[kBlocks], int unit) {
    multiply_unit<kDType>(sums, units, lane_rows + unsigned(unit * kFormat.tiles * 128), tiles);
  };
  PACELINE_UNROLL
  for (int slot = 0; slot < kDepth; ++slot)
    if (warp_of() + slot * kWarps < num_units) load(ring[slot], warp_of() + slot * kWarps);
  int unit = warp_of();
  for (; unit + (kDepth - 1) * kWarps < num_units; unit += kDepth * kWarps) {  // whole turns do not branch: loads of rows go ahead
    PACELINE_UNROLL
    for (int slot = 0; slot < kDepth; ++slot) {
      multiply(ring[slot], unit + slot * kWarps);
      if (unit + (slot + kDepth) * kWarps < num_units) load(ring[slot], unit + (slot + kDepth) * kWarps);
    }
  }
  PACELINE_UNROLL
  for (int slot = 0; slot < kDepth; ++slot)
    if (unit + slot * kWarps < num_units) multiply(ring[slot], unit + slot * kWarps);
}

// In shared memory: [kWarps][kBlocks][8 kTiles rows][kLine]
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
  const int left = *rows.live - task.first_row - first, live = left < 8 * kTiles ? left : 8 * kTiles;
  if (live <= 0) return;
  Sums<kBlocks, kTiles> sums{};
  multiply_part<kDType>(sums, task);
  float* parts = shared_memory<float>();
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
  constexpr size_t kShared = kWarps * kPartSize<kBlocks, kTiles> * sizeof(float);
  const int most = rows.capacity - task.first_row, covered = most < kRowBlock ? most : kRowBlock;
  const dim3 blocks(unsigned(num_blocks / kBlocks), unsigned((covered + 8 * kTiles - 1) / (8 * kTiles)));
  launch(skinny_kernel<kDType, kBlocks, kTiles, Finish>, blocks, kThreads, kShared, stream, rows, task, finish);
}

template <DType kDType, int kBlocks, class Finish>
void launch_rows(cudaStream_t stream, const Rows& rows, const Task& task, int num_blocks, const Finish& finish) {
  const int most = rows.capacity - task.first_row;
  if (most <= 8) launch_tiles<kDType, kBlocks, 1>(stream, rows, task, num_blocks, finish);
  else if (most <= 16) launch_tiles<kDType, kBlocks, 2>(stream, rows, task, num_blocks, finish);
  else if (most <= 32) launch_tiles<kDType, kBlocks, 4>(stream, rows, task, num_blocks, finish);
  else launch_tiles<kDType, kBlocks, kMostSums / kBlocks>(stream, rows, task, num_blocks, finish);
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

void skinny_sums(cudaStream_t stream, const Rows& rows, int first_row, const DeviceMatrix& w, const void* operand, float* out, int stride, int n) {
  launch_format<1>(stream, rows, first_row, w, operand, Write{out + size_t(first_row) * stride, stride, n});
}

void skinny_residual(cudaStream_t stream, const Rows& rows, int first_row, const DeviceMatrix& w, const void* operand, const float* bias, float* x,
                     int d) {
  launch_format<1>(stream, rows, first_row, w, operand, AddResidual{bias, x + size_t(first_row) * d, d});
}

void skinny_gate_up(cudaStream_t stream, const Rows& rows, int first_row, const DeviceMatrix& w, const void* operand, int f, float* out) {
  launch_format<2>(stream, rows, first_row, w, operand, Gate{out + size_t(first_row) * f, f});
}

}  // namespace paceline::cuda
