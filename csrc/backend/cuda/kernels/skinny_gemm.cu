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
#include "backend/cuda/kernels/fragments.cuh"
#include "backend/cuda/kernels/kernels.h"

namespace paceline::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kLine = kTile + 4;  // of a row of partial sums: lanes of one store meet different banks
constexpr int kFragment = 128;    // values of a tile of 8 rows

struct Task {
  const unsigned char* weights;
  const bf16* operand;
  int k, first_row;
};

// What a warp has on its way: kRooms of its own in shared memory, each with a unit of every block and, where a unit needs so few
// fragments of rows that waiting for them would show, those too. One room is in use, the others are on their way. Registers would be
// the plainer rooms, but the compiler puts off loads into them to the end of a turn: so it was seen in the machine code.
template <DType kDType, int kBlocks, int kTiles>
struct Ring {
  static constexpr int kRooms = 8 / kBlocks, kFragments = tile_format(kDType).tiles * kTiles;
  static constexpr bool kHoldsRows = kFragments < 4;
  static constexpr int kRowsBytes = kFragments * 32 * int(sizeof(uint2));
  static constexpr int kRoomBytes = kBlocks * Unit<kDType>::kRoomBytes + (kHoldsRows ? kRowsBytes : 0);
};

// kBlocks blocks of 16 outputs by kTiles tiles of 8 rows, in the registers of a warp.
template <int kBlocks, int kTiles>
struct Sums {
  FragmentC c[kBlocks][kTiles];
};

// The warp's part of K: units warp, warp + kWarps, ...
template <DType kDType, int kBlocks, int kTiles>
class Part {
 public:
  using Rooms = Ring<kDType, kBlocks, kTiles>;
  using Format = Unit<kDType>;

  __device__ __forceinline__ Part(const Task& task, unsigned char* rooms)
      : num_units_(tile_format(kDType).units(task.k)), block_bytes_(tile_format(kDType).block_bytes(task.k)),
        blocks_(task.weights + size_t(blockIdx.x) * kBlocks * block_bytes_),
        rows_(task.operand + size_t(blockIdx.y) * kTiles * num_units_ * kFormat.tiles * kFragment + lane_of() * 4), rooms_(rooms + warp_of() * Rooms::kRooms * Rooms::kRoomBytes), policy_(stream_policy()) {}

  // sums += weights x rows. A room is filled again one turn after it was read.
  __device__ __forceinline__ void multiply(Sums<kBlocks, kTiles>& sums) const {
    for (int i = 0; i < Rooms::kRooms - 1; ++i) send(i);
    for (int i = 0; warp_of() + i * kWarps < num_units_; ++i) {
      wait_for_copies<Rooms::kRooms - 2>();
      send(i + Rooms::kRooms - 1);
      multiply_unit(sums, i);
    }
    wait_for_copies<0>();
  }

 private:
  static constexpr TileFormat kFormat = tile_format(kDType);

  __device__ __forceinline__ unsigned char* room_of(int i) const { return rooms_ + i % Rooms::kRooms * Rooms::kRoomBytes; }
  static __device__ __forceinline__ uint2* rows_in(unsigned char* room, int fragment) {
    return reinterpret_cast<uint2*>(room + kBlocks * Format::kRoomBytes) + fragment * 32 + lane_of();
  }
  // The lane's values of fragment (tile j of the unit, tile of rows).
  __device__ __forceinline__ const uint2* rows_at(int unit, int j, int tile) const {
    return reinterpret_cast<const uint2*>(rows_ + unsigned(((tile * num_units_ + unit) * kFormat.tiles + j) * kFragment));
  }

  // The i-th unit of the warp; behind the last one an empty group, so that all waits are alike.
  __device__ __forceinline__ void send(int i) const {
    const int unit = warp_of() + i * kWarps;
    if (unit < num_units_) {
      PACELINE_UNROLL
      for (int block = 0; block < kBlocks; ++block)
        Format::copy(room_of(i) + block * Format::kRoomBytes, blocks_ + block * block_bytes_ + unsigned(unit * kFormat.unit_bytes()), policy_);
      if constexpr (Rooms::kHoldsRows) {
        PACELINE_UNROLL
        for (int f = 0; f < Rooms::kFragments; ++f) copy_small<8>(rows_in(room_of(i), f), rows_at(unit, f / kTiles, f % kTiles));
      }
    }
    commit_copies();
  }

  __device__ __forceinline__ FragmentB rows_of(int i, int j, int tile) const {
    uint2 lane;
    if constexpr (Rooms::kHoldsRows) lane = *rows_in(room_of(i), j * kTiles + tile);
    else lane = *rows_at(warp_of() + i * kWarps, j, tile);
    return {{lane.x, lane.y}};
  }

  // Tiles [first, first + count) of the i-th unit.
  __device__ __forceinline__ void multiply_tiles(Sums<kBlocks, kTiles>& sums, int i, int first, int count) const {
    PACELINE_UNROLL
    for (int j = first; j < first + count; ++j) {
      FragmentB b[kTiles];
      PACELINE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) b[tile] = rows_of(i, j, tile);
      PACELINE_UNROLL
      for (int block = 0; block < kBlocks; ++block) {
        const FragmentA a = Format(room_of(i) + block * Format::kRoomBytes).fragment(j);
        PACELINE_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) multiply_add(sums.c[block][tile], a, b[tile]);
      }
    }
  }

  __device__ __forceinline__ void multiply_unit(Sums<kBlocks, kTiles>& sums, int i) const {
    if constexpr (Format::kGroups == 0) {
      multiply_tiles(sums, i, 0, kFormat.tiles);
    } else {
      constexpr int kGroupTiles = kFormat.tiles / Format::kGroups;
      PACELINE_UNROLL
      for (int group = 0; group < Format::kGroups; ++group) {
        Sums<kBlocks, kTiles> of_group{};
        multiply_tiles(of_group, i, group * kGroupTiles, kGroupTiles);
        add_scaled(sums, of_group, i, group);
      }
    }
  }

  __device__ __forceinline__ void add_scaled(Sums<kBlocks, kTiles>& sums, const Sums<kBlocks, kTiles>& of_group, int i, int group) const {
    PACELINE_UNROLL
    for (int block = 0; block < kBlocks; ++block) {
      const LaneScales scales = Format(room_of(i) + block * Format::kRoomBytes).scales_of(group);
      PACELINE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        float(&total)[4] = sums.c[block][tile].c;
        PACELINE_UNROLL
        for (int e = 0; e < 4; ++e) total[e] = fmaf(of_group.c[block][tile].c[e], e < 2 ? scales.low : scales.high, total[e]);
      }
    }
  }

  int num_units_;
  size_t block_bytes_;
  const unsigned char* blocks_;
  const bf16* rows_;  // the lane's part of the first fragment
  unsigned char* rooms_;
  StreamPolicy policy_;
};

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
  const int left = *rows.live - task.first_row - first, live = left < 8 * kTiles ? left : 8 * kTiles;
  if (live <= 0) return;
  Sums<kBlocks, kTiles> sums{};
  unsigned char* shared = shared_memory<unsigned char>();
  Part<kDType, kBlocks, kTiles>(task, shared).multiply(sums);
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
  static_assert(kShared <= 99 << 10, "the least that a block may have on any device from 8.0 on");
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
