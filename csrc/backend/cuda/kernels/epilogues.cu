// What becomes of the sums of a product, for up to kRowBlock rows. s[t] is the row's sums, fp32. All but finish_qkv follow products of
// cuBLAS alone.
//
//   finish_residual  x[t] += s[t] + bias                      bytes 12 d per row           grid (d / kThreads, kRowLanes)
//   finish_gate_up   out[t] = silu(gate) up                   bytes 12 f per row           grid (f / kThreads, kRowLanes)
//   finish_logits    logits[t] = s[t]                         bytes 8 v per row            grid (v / kThreads, kRowLanes)
//   finish_qkv       q, k = rotated(norm(s + bias)), v = s + bias; K and V to their pages
//                    bytes 8 columns, 2 or 4 (k + v) per row; one warp per head of q or k  grid (heads / kWarps, kRowBlock)
//
// Blocks of gate and up columns alternate, 16 wide. Every value is computed alone but for the norm of a head, whose sum is a tree that
// depends on Dh alone. Rows that do not live are neither read nor written.
// Oracle: tests/simt/epilogues_test.cc. Not measured.
#include <algorithm>

#include "backend/cuda/device.cuh"
#include "backend/cuda/exp.cuh"
#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/values.cuh"

namespace paceline::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kRowLanes = 8;  // blocks side by side over rows: most passes of a cycle have no more rows, and those that have loop

__device__ __forceinline__ int end_of_rows(const Rows& rows, int first_row) {
  const int live = *rows.live;
  return live < first_row + kRowBlock ? live : first_row + kRowBlock;
}

// each(row, index of the row in the product, column) for every column of [0, n).
template <class Each>
__device__ __forceinline__ void for_each_value(const Rows& rows, int first_row, int n, Each each) {
  const int column = int(blockIdx.x) * kThreads + int(threadIdx.x), end = end_of_rows(rows, first_row);
  if (column >= n) return;
  for (int row = first_row + int(blockIdx.y); row < end; row += kRowLanes) each(row, row - first_row, column);
}

__global__ void residual_kernel(Rows rows, int first_row, const float* sums, int columns, const float* bias, float* x, int d) {
  take_turn();
  for_each_value(rows, first_row, d, [=](int row, int index, int column) {
    const float sum = sums[size_t(index) * columns + column];
    x[size_t(row) * d + column] += bias ? sum + bias[column] : sum;
  });
}

__global__ void gate_up_kernel(Rows rows, int first_row, const float* sums, int columns, int f, float* out) {
  take_turn();
  for_each_value(rows, first_row, f, [=](int row, int index, int column) {
    const float* pair = sums + size_t(index) * columns + column / 16 * 32 + column % 16;
    out[size_t(row) * f + column] = gated(pair[0], pair[16]);
  });
}

__global__ void logits_kernel(Rows rows, int first_row, const float* sums, int columns, int v, float* logits) {
  take_turn();
  for_each_value(rows, first_row, v, [=](int row, int index, int column) {
    logits[size_t(row) * v + column] = sums[size_t(index) * columns + column];
  });
}

// ------------------------------------------------------------------------------------------------ q, k and v

constexpr int kPairs = kMaxHeadDim / 2 / kWarp;  // of a head, to a lane: (lane + 32 j, that + Dh / 2)

// One head in the registers of a warp.
struct Head {
  float low[kPairs], high[kPairs];
};

// each(j, column of the first of the pair) for the lane's pairs.
template <class Each>
__device__ __forceinline__ void for_each_pair(int half, Each each) {
  PACELINE_UNROLL
  for (int j = 0; j < kPairs; ++j)
    if (lane_of() + j * kWarp < half) each(j, lane_of() + j * kWarp);
}

__device__ __forceinline__ void normalise(Head& head, int half, const float* norm, float eps) {
  float sum = 0;
  for_each_pair(half, [&](int j, int) { sum = fmaf(head.high[j], head.high[j], fmaf(head.low[j], head.low[j], sum)); });
  sum = reduce_warp(sum, [](float a, float b) { return a + b; });
  const float scale = 1.0f / sqrtf(sum / float(2 * half) + eps);
  for_each_pair(half, [&](int j, int i) {
    head.low[j] = head.low[j] * scale * norm[i];
    head.high[j] = head.high[j] * scale * norm[half + i];
  });
}

__device__ __forceinline__ void rotate(Head& head, int half, const float* cosines, const float* sines) {
  for_each_pair(half, [&](int j, int i) {
    const float a = head.low[j], b = head.high[j];
    head.low[j] = a * cosines[i] - b * sines[i];
    head.high[j] = b * cosines[i] + a * sines[i];
  });
}

// Sums of a head, and the bias if there is one.
__device__ __forceinline__ Head load(const float* sums, const float* bias, int half) {
  Head head;
  for_each_pair(half, [&](int j, int i) {
    head.low[j] = bias ? sums[i] + bias[i] : sums[i];
    head.high[j] = bias ? sums[half + i] + bias[half + i] : sums[half + i];
  });
  return head;
}

template <class T>
__device__ __forceinline__ void store(const Head& head, int half, T* to) {
  for_each_pair(half, [&](int j, int i) {
    put(to + i, head.low[j]);
    put(to + half + i, head.high[j]);
  });
}

template <class T>
__device__ __forceinline__ void fill(float value, int half, T* to) {
  for_each_pair(half, [&](int, int i) { put(to + i, value), put(to + half + i, value); });
}

// Whether a T holds all of it.
template <class T>
__device__ __forceinline__ bool is_finite(const Head& head, int half) {
  bool finite = true;
  const auto fits = [](float value) {
    T held;
    put(&held, value);
    return fabsf(as_float(held)) < INFINITY;
  };
  for_each_pair(half, [&](int j, int) { finite = finite && fits(head.low[j]) && fits(head.high[j]); });
  return __all_sync(kWholeWarp, finite);
}

struct QkvTask {
  const float *sums, *bias, *q_norm, *k_norm;
  float eps;
  int columns;
  AttentionShape shape;
  KvLayer kv;
  float* qkv;
};

// A row of K and V into its page. Values in pages are finite, since attention multiplies those of later rows with weights of 0. Where they
// are not, the key says so instead: its scores are NaN, and so is all that sees it.
template <class T>
__device__ __forceinline__ void store_kv(const QkvTask& task, const Head& key, const Head& value, int slot, int position, int head) {
  const int half = task.shape.head_dim / 2, page = task.kv.page_table[size_t(slot) * task.kv.pages_per_slot + position / kPagePositions];
  const size_t line = (size_t(page) * task.shape.num_kv_heads + head) * kPagePositions + position % kPagePositions;
  T *keys = static_cast<T*>(task.kv.keys) + line * task.shape.head_dim, *values = static_cast<T*>(task.kv.values) + line * task.shape.head_dim;
  if (is_finite<T>(value, half)) {
    store(key, half, keys);
    store(value, half, values);
  } else {
    fill(NAN, half, keys);
    fill(0.0f, half, values);
  }
}

template <class T>
__global__ void qkv_kernel(Rows rows, int first_row, QkvTask task) {
  take_turn();
  const AttentionShape& shape = task.shape;
  const int row = first_row + int(blockIdx.y), q_heads = shape.num_heads, kv_heads = shape.num_kv_heads, half = shape.head_dim / 2;
  const int index = int(blockIdx.x) * kWarps + warp_of();  // of the head, among those of q and k
  if (row >= end_of_rows(rows, first_row) || index >= q_heads + kv_heads) return;
  const bool is_q = index < q_heads;
  const int k_column = padded_columns(q_heads * shape.head_dim), v_column = k_column + padded_columns(kv_heads * shape.head_dim);
  const int head = is_q ? index : index - q_heads, column = (is_q ? 0 : k_column) + head * shape.head_dim;

  const float* sums = task.sums + size_t(row - first_row) * task.columns;
  float* out = task.qkv + size_t(row) * task.columns;
  Head values = load(sums + column, task.bias ? task.bias + column : nullptr, half);
  const int position = rows.position[row];
  const float* norm = is_q ? task.q_norm : task.k_norm;
  if (norm) normalise(values, half, norm, task.eps);
  rotate(values, half, shape.rope_cos + size_t(position) * half, shape.rope_sin + size_t(position) * half);
  store(values, half, out + column);
  if (is_q) return;
  const int value_column = v_column + head * shape.head_dim;
  const Head value = load(sums + value_column, task.bias ? task.bias + value_column : nullptr, half);
  store(value, half, out + value_column);
  store_kv<T>(task, values, value, rows.slot[row], position, head);
}

dim3 value_blocks(int n) { return dim3(unsigned((n + kThreads - 1) / kThreads), kRowLanes); }

}  // namespace

void finish_residual(cudaStream_t stream, const Rows& rows, int first_row, const float* sums, int columns, const float* bias, float* x,
                     int d) {
  launch(residual_kernel, value_blocks(d), kThreads, 0, stream, rows, first_row, sums, columns, bias, x, d);
}

void finish_gate_up(cudaStream_t stream, const Rows& rows, int first_row, const float* sums, int columns, int f, float* out) {
  launch(gate_up_kernel, value_blocks(f), kThreads, 0, stream, rows, first_row, sums, columns, f, out);
}

void finish_logits(cudaStream_t stream, const Rows& rows, int first_row, const float* sums, int columns, int v, float* logits) {
  launch(logits_kernel, value_blocks(v), kThreads, 0, stream, rows, first_row, sums, columns, v, logits);
}

void finish_qkv(cudaStream_t stream, const Rows& rows, int first_row, const float* sums, int columns, const QkvWeights& weights,
                const AttentionShape& shape, const KvLayer& kv, float* qkv) {
  const QkvTask task{sums, weights.bias, weights.q_norm, weights.k_norm, weights.eps, columns, shape, kv, qkv};
  const int heads = shape.num_heads + shape.num_kv_heads, most_rows = std::min(kRowBlock, rows.capacity - first_row);
  const dim3 blocks(unsigned((heads + kWarps - 1) / kWarps), unsigned(most_rows));
  if (kv.dtype == DType::fp32) launch(qkv_kernel<float>, blocks, kThreads, 0, stream, rows, first_row, task);
  else launch(qkv_kernel<bf16>, blocks, kThreads, 0, stream, rows, first_row, task);
}

}  // namespace paceline::cuda
