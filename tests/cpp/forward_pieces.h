// Pieces of a network for the tests of the forward operations: random matrices, rows, and KV pages read and written by the
// layout that kernels.h documents.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>

#include "backend/backend.h"
#include "decode/rows.h"
#include "math/bfloat16.h"
#include "reference/near.h"

namespace paceline::test {

// The instruction levels of this machine, lowest first.
inline const std::vector<std::string>& levels() {
  static const std::vector<std::string> here = [] {
    std::vector<std::string> found;
    for (const char* level : {"avx2", "avx512", "avx512_bf16"}) {
      try {
        make_cpu_backend(1, level);
        found.push_back(level);
      } catch (const std::invalid_argument&) {
      }
    }
    return found;
  }();
  return here;
}

inline std::shared_ptr<Backend> backend_of(const std::string& level, int threads) {
  static std::map<std::pair<std::string, int>, std::shared_ptr<Backend>> made;
  std::shared_ptr<Backend>& backend = made[{level, threads}];
  if (!backend) backend = make_cpu_backend(threads, level);
  return backend;
}

// What weights can be, and the KV cache beside them.
inline const std::vector<DType> kFormats = {DType::fp32, DType::bf16, DType::int8, DType::int4, DType::int4_g32};
inline DType kv_dtype_of(DType weights) { return weights == DType::fp32 ? DType::fp32 : DType::bf16; }

inline std::vector<float> random_values(size_t count, unsigned seed, float scale = 1, float mean = 0) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> values(count);
  for (float& v : values) v = mean + scale * normal(random);
  return values;
}

// A value as memory of this dtype holds it.
inline double held(float value, DType dtype) { return dtype == DType::bf16 ? reference::nearest_bf16(double(value)) : value; }

struct RandomMatrix {
  int n, k;
  std::vector<float> values;

  RandomMatrix(int n, int k, unsigned seed) : n(n), k(k), values(random_values(size_t(n) * k, seed, 1 / std::sqrt(float(k)))) {}
  TensorView view() const { return {"random", DType::fp32, {n, k}, values.data()}; }
  int blocks() const { return (n + 15) / 16; }
  std::vector<double> held_as(DType dtype) const {
    std::vector<double> all;
    for (float v : values) all.push_back(held(v, dtype));
    return all;
  }
};

inline std::unique_ptr<PackedMatrix> packed(Backend& backend, DType dtype, const RandomMatrix& matrix) {
  auto to = backend.new_matrix(matrix.blocks(), matrix.k, dtype);
  backend.pack_weights(*to, matrix.view(), 0, 1);
  return to;
}

// Gate and up, alternating by blocks.
inline std::unique_ptr<PackedMatrix> packed_in_turns(Backend& backend, DType dtype, const RandomMatrix& a, const RandomMatrix& b) {
  auto to = backend.new_matrix(a.blocks() + b.blocks(), a.k, dtype);
  backend.pack_weights(*to, a.view(), 0, 2);
  backend.pack_weights(*to, b.view(), 1, 2);
  return to;
}

// One after the other, each padded to whole blocks.
inline std::unique_ptr<PackedMatrix> packed_in_line(Backend& backend, DType dtype, const std::vector<const RandomMatrix*>& parts) {
  int blocks = 0;
  for (const RandomMatrix* part : parts) blocks += part->blocks();
  auto to = backend.new_matrix(blocks, parts[0]->k, dtype);
  blocks = 0;
  for (const RandomMatrix* part : parts) {
    backend.pack_weights(*to, part->view(), blocks, 1);
    blocks += part->blocks();
  }
  return to;
}

struct RopeTables {
  std::vector<float> cosines, sines;

  RopeTables(int positions, int head_dim) {
    for (int position = 0; position < positions; ++position)
      for (int i = 0; i < head_dim / 2; ++i) {
        const double angle = position * std::pow(10000.0, -2.0 * i / head_dim);
        cosines.push_back(float(std::cos(angle)));
        sines.push_back(float(std::sin(angle)));
      }
  }
};

// One layer's pages of several slots; `placement` shuffles which page holds what.
struct Pages {
  int slots, per_slot, heads, head_dim;
  DType dtype;
  Buffer keys, values;
  std::vector<int32_t> table;

  Pages(Backend& backend, int slots, int positions, int heads, int head_dim, DType dtype, unsigned placement)
      : slots(slots), per_slot((positions + 63) / 64), heads(heads), head_dim(head_dim), dtype(dtype),
        keys(backend.allocate(size_t(slots) * per_slot * heads * 64 * head_dim * size_of(dtype))), values(backend.allocate(keys.bytes())),
        table(size_t(slots) * per_slot) {
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(placement));
  }

  void fill_with_nan() {
    std::memset(keys.as<char>(), 0xff, keys.bytes());
    std::memset(values.as<char>(), 0xff, values.bytes());
  }
  KvLayer layer() const { return {keys.as<void>(), values.as<void>(), table.data(), per_slot, dtype}; }

  void write(int slot, int position, int head, const float* k, const float* v) {
    for (int i = 0; i < head_dim; ++i) {
      put(keys, key_at(slot, position, head, i), k[i]);
      put(values, value_at(slot, position, head, i), v[i]);
    }
  }
  double key(int slot, int position, int head, int i) const { return get(keys, key_at(slot, position, head, i)); }
  double value(int slot, int position, int head, int i) const { return get(values, value_at(slot, position, head, i)); }

 private:
  size_t plane(int slot, int position, int head) const {
    return (size_t(table[size_t(slot) * per_slot + position / 64]) * heads + head) * 64 * head_dim;
  }
  size_t key_at(int slot, int position, int head, int i) const {
    const size_t offset = position % 64;
    return plane(slot, position, head) + (dtype == DType::fp32 ? size_t(i) * 64 + offset : (size_t(i / 2) * 64 + offset) * 2 + i % 2);
  }
  size_t value_at(int slot, int position, int head, int i) const {
    const size_t offset = position % 64, pair = offset / 2 * head_dim + i;
    return plane(slot, position, head) + (dtype == DType::fp32 ? offset * head_dim + i : 2 * pair + offset % 2);
  }
  void put(const Buffer& to, size_t at, float value) {
    if (dtype == DType::fp32) to.as<float>()[at] = value;
    else to.as<bf16>()[at] = to_bf16(value);
  }
  double get(const Buffer& from, size_t at) const {
    return dtype == DType::fp32 ? from.as<float>()[at] : from_bf16(from.as<bf16>()[at]);
  }
};

inline int padded(int columns) { return (columns + 15) / 16 * 16; }

}  // namespace paceline::test
