// Weights on the device: tensors rounded on the host, rows in the order of the packed outputs, inputs padded to whole lines.
#include <algorithm>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/kernels/kernels.h"
#include "math/bfloat16.h"

namespace paceline::cuda {
namespace {

void require_supported(DType dtype) {
  require(dtype == DType::fp32 || dtype == DType::bf16, "[Engine] dtype must be fp32 or bf16 on device cuda, got ", name_of(dtype));
}

float value_at(const TensorView& part, size_t i) {
  if (part.dtype == DType::fp32) return static_cast<const float*>(part.data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(part.data)[i];
  return part.dtype == DType::bf16 ? from_bf16(bits) : from_fp16(bits);
}

// Rows [first, first + count) of the tensor, each padded_k long.
template <class T, class Round>
std::vector<T> rounded(const TensorView& part, int first, int count, Round round) {
  const int k = int(part.shape[1]), width = padded_k(k);
  std::vector<T> rows(size_t(count) * width, T(0));
  for (int row = 0; row < count; ++row)
    for (int i = 0; i < k; ++i) rows[size_t(row) * width + i] = round(value_at(part, size_t(first + row) * k + i));
  return rows;
}

}  // namespace

size_t CudaBackend::matrix_bytes(int num_blocks, int k, DType dtype) const {
  require_supported(dtype);
  return size_t(num_blocks) * 16 * padded_k(k) * size_of(dtype);
}

std::unique_ptr<PackedMatrix> CudaBackend::matrix_in(Buffer memory, int num_blocks, int k, DType dtype) {
  reserve(operand_, size_t(kRowBlock) * padded_k(k) * size_of(dtype));
  reserve(sums_, size_t(kRowBlock) * 16 * num_blocks * sizeof(float));
  matmul_->prepare(16 * num_blocks, padded_k(k), dtype);
  return std::make_unique<CudaMatrix>(std::move(memory), num_blocks, k, dtype);
}

// Runs of blocks that stay neighbours go in one copy.
void CudaBackend::pack_weights(PackedMatrix& packed, const TensorView& part, int first_block, int block_stride) {
  const CudaMatrix& w = static_cast<const CudaMatrix&>(packed);
  const int n = int(part.shape[0]), run = block_stride == 1 ? std::max(n, 1) : 16;
  const size_t row_bytes = size_t(padded_k(w.k())) * size_of(w.dtype());
  for (int row = 0; row < n; row += run) {
    const int count = std::min(run, n - row);
    char* to = static_cast<char*>(w.data()) + 16 * size_t(first_block + row / 16 * block_stride) * row_bytes;
    if (w.dtype() == DType::fp32) upload(to, rounded<float>(part, row, count, [](float x) { return x; }).data(), count * row_bytes);
    else upload(to, rounded<bf16>(part, row, count, [](float x) { return to_bf16(x); }).data(), count * row_bytes);
  }
}

Buffer CudaBackend::adopt(Buffer host) {
  Buffer memory = allocate(host.bytes());
  upload(memory.as<void>(), host.as<void>(), host.bytes());
  synchronize();
  return memory;
}

}  // namespace paceline::cuda
