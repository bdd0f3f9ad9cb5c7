// What one warp adds to a product of skinny_gemm.cu: its part of K, streamed through shared memory into tensor cores.
#pragma once

#include "backend/cuda/kernels/fragments.cuh"

namespace paceline::cuda {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
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
        rows_(task.operand + size_t(blockIdx.y) * kTiles * num_units_ * kFormat.tiles * kFragment + lane_of() * 4),
        rooms_(rooms + warp_of() * Rooms::kRooms * Rooms::kRoomBytes), policy_(stream_policy()) {}

  // The first weights, a group for each unit; the rows that belong to them may not be there yet.
  __device__ __forceinline__ void send_first() const {
    PACELINE_LOOP  // the addresses of all of them take registers that some devices lack
    for (int i = 0; i < kFirst; ++i) {
      send_weights(i);
      commit_copies();
    }
  }

  // sums += weights x rows, after send_first. A room is filled again one turn after it was read.
  __device__ __forceinline__ void multiply(Sums<kBlocks, kTiles>& sums) const {
    if constexpr (Rooms::kHoldsRows) put_first_rows();
    for (int i = 0; warp_of() + i * kWarps < num_units_; ++i) {
      wait_for_copies<kFirst - 1>();
      send_weights(i + kFirst);
      if constexpr (Rooms::kHoldsRows) send_rows(i + kFirst);
      commit_copies();
      multiply_unit(sums, i);
    }
    wait_for_copies<0>();
  }

 private:
  static constexpr TileFormat kFormat = tile_format(kDType);
  static constexpr int kFirst = Rooms::kRooms - 1;  // units on their way at a time

  __device__ __forceinline__ unsigned char* room_of(int i) const { return rooms_ + i % Rooms::kRooms * Rooms::kRoomBytes; }
  __device__ __forceinline__ unsigned char* block_in(int i, int block) const { return room_of(i) + block * Format::kRoomBytes; }
  static __device__ __forceinline__ uint2* rows_in(unsigned char* room, int fragment) {
    return reinterpret_cast<uint2*>(room + kBlocks * Format::kRoomBytes) + fragment * 32 + lane_of();
  }
  // The lane's values of fragment (tile j of the unit, tile of rows).
  __device__ __forceinline__ const uint2* rows_at(int unit, int j, int tile) const {
    return reinterpret_cast<const uint2*>(rows_ + unsigned(((tile * num_units_ + unit) * kFormat.tiles + j) * kFragment));
  }

  // Of the i-th unit of the warp; behind the last one nothing, and the group is empty, so that all waits are alike.
  __device__ __forceinline__ void send_weights(int i) const {
    const int unit = warp_of() + i * kWarps;
    if (unit >= num_units_) return;
    PACELINE_UNROLL
    for (int block = 0; block < kBlocks; ++block)
      Format::copy(block_in(i, block), blocks_ + block * block_bytes_ + unsigned(unit * kFormat.unit_bytes()), policy_);
  }
  __device__ __forceinline__ void send_rows(int i) const {
    const int unit = warp_of() + i * kWarps;
    if (unit >= num_units_) return;
    PACELINE_UNROLL
    for (int f = 0; f < Rooms::kFragments; ++f) copy_small<8>(rows_in(room_of(i), f), rows_at(unit, f / kTiles, f % kTiles));
  }
  // The rows of the first units, by way of registers: in a group behind those weights they would make the first turn wait for all of them.
  // A lane reads what it has written itself.
  __device__ __forceinline__ void put_first_rows() const {
    uint2 held[kFirst][Rooms::kFragments] = {};
    PACELINE_UNROLL
    for (int i = 0; i < kFirst; ++i) {
      PACELINE_UNROLL
      for (int f = 0; f < Rooms::kFragments; ++f)
        if (warp_of() + i * kWarps < num_units_) held[i][f] = *rows_at(warp_of() + i * kWarps, f / kTiles, f % kTiles);
    }
    PACELINE_UNROLL
    for (int i = 0; i < kFirst; ++i) {
      PACELINE_UNROLL
      for (int f = 0; f < Rooms::kFragments; ++f) *rows_in(room_of(i), f) = held[i][f];
    }
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
        const FragmentA a = Format(block_in(i, block)).fragment(j);
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
      const LaneScales scales = Format(block_in(i, block)).scales_of(group);
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

}  // namespace paceline::cuda
