// What a lane holds of a unit of weights (tiles.h), and how it becomes the A fragments of its tiles: integers exactly, as bf16, in
// registers. The scales of groups stay apart.
#pragma once

#include "backend/cuda/device.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/tiles.h"

namespace paceline::cuda {

// Scales of outputs g and g + 8 of a lane (g = lane / 4).
struct LaneScales {
  float low, high;
};

template <DType kDType>
struct Unit {
  static constexpr TileFormat kFormat = tile_format(kDType);
  static constexpr int kGroups = kFormat.groups;
  static constexpr int kRoomBytes = kValuesBytes + kGroups * 32 * int(sizeof(uint32_t));  // of a unit on its way
  uint4 values;
  uint32_t scales[kGroups ? kGroups : 1];  // of outputs g and g + 8, bf16

  // From the matrix to the lane's places in a room of the warp's own, in shared memory, and from there to registers.
  static __device__ __forceinline__ void copy(unsigned char* room, const unsigned char* unit, StreamPolicy policy) {
    copy_streaming(room + lane_of() * kLoadBytes, unit + lane_of() * kLoadBytes, policy);
    PACELINE_UNROLL
    for (int group = 0; group < kGroups; ++group)
      copy_small<4>(scales_in(room, group), unit + kValuesBytes + group * kTile * sizeof(bf16) + lane_of() / 4 * sizeof(uint32_t));
  }
  __device__ __forceinline__ explicit Unit(unsigned char* room) : values(*reinterpret_cast<const uint4*>(room + lane_of() * kLoadBytes)) {
    PACELINE_UNROLL
    for (int group = 0; group < kGroups; ++group) scales[group] = *scales_in(room, group);
  }

  __device__ __forceinline__ LaneScales scales_of(int group) const {
    return {from_bf16(bf16(scales[group])), from_bf16(bf16(scales[group] >> 16))};
  }

  // Of tile j of the unit.
  __device__ __forceinline__ FragmentA fragment(int j) const {
    const uint32_t all[4] = {values.x, values.y, values.z, values.w};
    if constexpr (kDType == DType::bf16) {
      return {{all[0], all[1], all[2], all[3]}};
    } else if constexpr (kDType == DType::int8) {
      const uint32_t first = all[2 * j], second = all[2 * j + 1];
      return {{bytes_as_bf16(first), bytes_as_bf16(first >> 16), bytes_as_bf16(second), bytes_as_bf16(second >> 16)}};
    } else {
      const uint32_t tile = all[j];
      return {{nibbles_as_bf16(tile), nibbles_as_bf16(tile >> 4), nibbles_as_bf16(tile >> 8), nibbles_as_bf16(tile >> 12)}};
    }
  }

 private:
  static __device__ __forceinline__ uint32_t* scales_in(unsigned char* room, int group) {
    return reinterpret_cast<uint32_t*>(room + kValuesBytes) + group * 32 + lane_of();
  }
  // Low nibbles of both halves, each q + 8: into the fractions of 128 + q + 8, which is exact as bf16.
  static __device__ __forceinline__ uint32_t nibbles_as_bf16(uint32_t bits) {
    return subtract_pairs((bits & 0x000f000fu) | 0x43004300u, 0x43084308u);
  }
  // The two low bytes, each q + 128: into the fractions of 2^23 + q + 128 in fp32; the upper half of q as fp32 is q as bf16.
  static __device__ __forceinline__ uint32_t bytes_as_bf16(uint32_t bits) {
    const float low = float_from_bits(0x4b000000u | (bits & 0xffu)) - 8388736.0f;
    const float high = float_from_bits(0x4b000000u | (bits >> 8 & 0xffu)) - 8388736.0f;
    return bits_of(low) >> 16 | (bits_of(high) & 0xffff0000u);
  }
};

}  // namespace paceline::cuda
