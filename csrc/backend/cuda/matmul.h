// Products of weights and rows by cuBLASLt: the only place that knows it.
//
// Row invariance: every product has kRowBlock rows, the operand's unused ones included; each shape has one algorithm, asked for once,
// that adds along K in one piece (no split whose parts meet in an order of their own); the workspace is always the same.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <map>
#include <tuple>

#include "core/dtype.h"

namespace paceline::cuda {

class Matmul {
 public:
  static constexpr size_t kWorkspaceBytes = 32 << 20;  // what NVIDIA advises for Hopper

  explicit Matmul(cudaStream_t stream);
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  // Setup: chooses the algorithm of a shape. Throws DeviceError where cuBLASLt has none.
  void prepare(int outputs, int k, DType dtype);
  // sums [kRowBlock, outputs] fp32 = operand [kRowBlock, k] weights^T; weights [outputs, k], both of dtype (fp32 or bf16) and k a
  // multiple of 16. The shape must have been prepared.
  void multiply(const void* weights, int outputs, int k, DType dtype, const void* operand, float* sums);

 private:
  struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t weights = nullptr, operand = nullptr, sums = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
  };
  Plan make_plan(int outputs, int k, DType dtype);
  void drop(Plan& plan);

  cudaStream_t stream_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  std::map<std::tuple<int, int, DType>, Plan> plans_;
};

}  // namespace paceline::cuda
