// Weights as the tensor cores take them: where each of them lies, on the host that packs them and in the kernels that read them.
//
// A tile is 16 outputs x 16 inputs, the A operand of one mma.m16n8k16; a lane holds 8 of its values (ptx.cuh). A unit is what a warp
// loads at once, 16 bytes to a lane, of one block of 16 outputs. The units of a block follow each other in ascending inputs, blocks
// follow each other in ascending outputs:
//
//   dtype      tiles of a unit    behind its 512 bytes of values             behind the units of a block
//   bf16       1
//   int8       2, as q + 128                                                 fp32 scales [16]
//   int4       4, as q + 8        bf16 scales [1 group][16]
//   int4_g32   4, as q + 8        bf16 scales [2 groups][16]
//
// Scales of outputs g and g + 8 are neighbours, since one lane needs both. Inputs beyond k are zeros, those of int4 to the end of a unit.
#pragma once

#include "core/dtype.h"
#include "math/bfloat16.h"

namespace paceline::cuda {

constexpr int kTile = 16;       // outputs, and inputs
constexpr int kLoadBytes = 16;  // of a lane
constexpr int kValuesBytes = 32 * kLoadBytes;

struct TileFormat {
  int tiles;       // of a unit
  int groups;      // of a unit that have scales of their own; 0: none
  int tail_bytes;  // behind the units of a block
  constexpr int unit_inputs() const { return tiles * kTile; }
  constexpr int unit_bytes() const { return kValuesBytes + groups * kTile * int(sizeof(bf16)); }
  constexpr int units(int k) const { return (k + unit_inputs() - 1) / unit_inputs(); }
  constexpr size_t block_bytes(int k) const { return size_t(units(k)) * unit_bytes() + tail_bytes; }
};

constexpr TileFormat tile_format(DType dtype) {
  switch (dtype) {
    case DType::int8: return {2, 0, kTile * int(sizeof(float))};
    case DType::int4: return {4, 1, 0};
    case DType::int4_g32: return {4, 2, 0};
    default: return {1, 0, 0};
  }
}

// Of value (output, input) of a tile: the lane that holds it, and which of its 8.
constexpr int lane_of_value(int output, int input) { return output % 8 * 4 + input % 8 / 2; }
constexpr int index_of_value(int output, int input) { return input / 8 * 4 + output / 8 * 2 + input % 2; }

// Of the values of an output, in a block: where input i is.
constexpr size_t unit_of(const TileFormat& format, int i) { return size_t(i / format.unit_inputs()) * format.unit_bytes(); }
constexpr size_t lane_place(const TileFormat& format, int output, int i) {
  return unit_of(format, i) + lane_of_value(output, i % kTile) * kLoadBytes;
}
constexpr size_t bf16_place(int output, int i) {
  return lane_place(tile_format(DType::bf16), output, i) + index_of_value(output, i % kTile) * sizeof(bf16);
}
constexpr size_t int8_place(int output, int i) {
  return lane_place(tile_format(DType::int8), output, i) + i / kTile % 2 * 8 + index_of_value(output, i % kTile);
}
// A tile is 4 bytes of a lane; its pairs lie so that shifting them by 0, 4, 8, 12 bits puts both halves where a pair of bf16 has its own.
constexpr size_t int4_register(const TileFormat& format, int output, int i) {
  return lane_place(format, output, i) + i / kTile % 4 * 4;
}
constexpr int int4_shift(int output, int i) {
  const int index = index_of_value(output, i % kTile);
  return index / 2 * 4 + index % 2 * 16;
}
// Of the scale of the group that input i is in.
constexpr int place_of_scale(int output) { return output % 8 * 2 + output / 8; }
constexpr size_t int4_scale_place(const TileFormat& format, int output, int i) {
  const int group = i % format.unit_inputs() / (format.unit_inputs() / format.groups);
  return unit_of(format, i) + kValuesBytes + (group * kTile + place_of_scale(output)) * sizeof(bf16);
}
constexpr size_t int8_scale_place(int k, int output) { return tile_format(DType::int8).block_bytes(k) - (kTile - output) * sizeof(float); }

// Rows enter as the B operand: [8 tiles of 8 rows][tiles of 16 inputs][32 lanes][4] bf16, in any format the same. Inputs go on to the
// end of a unit. A row has its 16 inputs of a tile in 32 bytes of their own.
constexpr int operand_tiles(int k, DType dtype) { return tile_format(dtype).units(k) * tile_format(dtype).tiles; }
constexpr size_t operand_place(int tiles, int row, int i) {
  return (size_t(row / 8) * tiles + i / kTile) * 128 + lane_of_value(row % 8, i % kTile) * 4 + i % kTile / 8 * 2 + i % 2;
}

}  // namespace paceline::cuda
