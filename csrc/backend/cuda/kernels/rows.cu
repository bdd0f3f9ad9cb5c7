// Rows on their way into the network and into each product.
//
//   embed      x[t] = table[token_t]                               bytes 2 d in (bf16), 4 d out, per row   grid (rows)
//   pack_rows  operand[t] = round(x[t] norm / rms(x[t]))           bytes 4 k in twice, 2 k out, per row    grid (rows of the block)
//
// rms(x) = sqrt(mean(x^2) + eps), its sum in one tree that depends on k alone. Oracle: tests/simt/rows_test.cc. Not measured.
#include "backend/cuda/device.cuh"
#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/values.cuh"

namespace paceline::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void embed_kernel(Rows rows, const T* table, int d, float* x) {
  const int row = int(blockIdx.x);
  if (row >= *rows.live) return;
  const T* from = table + size_t(rows.token[row]) * padded_k(d);
  for (int i = int(threadIdx.x); i < d; i += kThreads) x[size_t(row) * d + i] = as_float(from[i]);
}

template <class T>
__global__ void pack_rows_kernel(Rows rows, int first_row, const float* x, int k, const float* norm, float eps, T* operand) {
  const int row = first_row + int(blockIdx.x);
  if (row >= *rows.live) return;
  const float* from = x + size_t(row) * k;
  T* to = operand + size_t(blockIdx.x) * padded_k(k);
  float scale = 1.0f;
  if (norm) {
    float sum = 0;
    for (int i = int(threadIdx.x); i < k; i += kThreads) sum = fmaf(from[i], from[i], sum);
    sum = reduce_block(sum, shared_memory<float>(), [](float a, float b) { return a + b; });
    scale = 1.0f / sqrtf(sum / float(k) + eps);
  }
  for (int i = int(threadIdx.x); i < padded_k(k); i += kThreads)
    put(to + i, i >= k ? 0.0f : norm ? from[i] * scale * norm[i] : from[i]);
}

}  // namespace

void embed(cudaStream_t stream, const Rows& rows, const void* table, DType dtype, int d, float* x) {
  const dim3 blocks(unsigned(rows.capacity));
  if (dtype == DType::fp32) launch(embed_kernel<float>, blocks, kThreads, 0, stream, rows, static_cast<const float*>(table), d, x);
  else launch(embed_kernel<bf16>, blocks, kThreads, 0, stream, rows, static_cast<const bf16*>(table), d, x);
}

void pack_rows(cudaStream_t stream, const Rows& rows, int first_row, const float* x, int k, const float* norm, float eps, DType dtype,
               void* operand) {
  constexpr size_t kShared = kThreads / kWarp * sizeof(float);
  const dim3 blocks(unsigned(rows.capacity - first_row < kRowBlock ? rows.capacity - first_row : kRowBlock));
  if (dtype == DType::fp32)
    launch(pack_rows_kernel<float>, blocks, kThreads, kShared, stream, rows, first_row, x, k, norm, eps, static_cast<float*>(operand));
  else
    launch(pack_rows_kernel<bf16>, blocks, kThreads, kShared, stream, rows, first_row, x, k, norm, eps, static_cast<bf16*>(operand));
}

}  // namespace paceline::cuda
