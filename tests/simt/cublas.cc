// cuBLASLt for tests. Its sums are right to fp32 rounding and as treacherous as the library's: the order in which they are added
// depends on the number of rows, the algorithm and the workspace. Products run as work of the stream.
#include <cublasLt.h>

#include <vector>

#include "math/bfloat16.h"
#include "simt/runtime.h"
#include "simt/simt.h"

struct cublasLtContext {};
struct cublasLtMatmulDescOpaque {
  cublasOperation_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
};
struct cublasLtMatrixLayoutOpaque {
  cudaDataType type;
  uint64_t rows, columns;
  int64_t stride;
};
struct cublasLtMatmulPreferenceOpaque {
  uint64_t workspace_bytes = 0;
  uint32_t reduction_schemes = ~0u, weight_alignment = 256;
};

namespace {

cublasStatus_t status_of(const char* name) { return simt::called(name) ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS; }

template <class T, class... Parts>
cublasStatus_t made(const char* name, T** object, Parts... parts) {
  const cublasStatus_t status = status_of(name);
  if (status == CUBLAS_STATUS_SUCCESS) *object = new T{parts...};
  return status;
}
template <class T>
cublasStatus_t dropped(const char* name, T* object) {
  delete object;
  return status_of(name);
}

float element(const void* data, cudaDataType type, size_t at) {
  return type == CUDA_R_32F ? static_cast<const float*>(data)[at] : paceline::from_bf16(static_cast<const uint16_t*>(data)[at]);
}

// The sums of one output for all rows, over K in `strides` interleaved parts: as many orders as there are values of it. operand [K, rows].
void multiply(const void* weights, const cublasLtMatrixLayoutOpaque& layout, uint64_t output, const std::vector<float>& operand, size_t rows,
              unsigned strides, std::vector<float>& total) {
  std::vector<float> sum(rows);
  total.assign(rows, 0.0f);
  for (unsigned part = 0; part < strides; ++part) {
    sum.assign(rows, 0.0f);
    for (uint64_t i = part; i < layout.rows; i += strides) {
      const float weight = element(weights, layout.type, size_t(output) * layout.stride + i);
      for (size_t row = 0; row < rows; ++row) sum[row] += weight * operand[i * rows + row];
    }
    for (size_t row = 0; row < rows; ++row) total[row] += sum[row];
  }
}

}  // namespace

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
  }
  return "?";
}
cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) { return made("cublasLtCreate", handle); }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return dropped("cublasLtDestroy", handle); }
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* operation, cublasComputeType_t, cudaDataType_t) {
  return made("cublasLtMatmulDescCreate", operation);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) { return dropped("cublasLtMatmulDescDestroy", operation); }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const void* value, size_t) {
  auto& to = attribute == CUBLASLT_MATMUL_DESC_TRANSA ? operation->transpose_a : operation->transpose_b;
  to = *static_cast<const cublasOperation_t*>(value);
  return status_of("cublasLtMatmulDescSetAttribute");
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows, uint64_t columns, int64_t stride) {
  return made("cublasLtMatrixLayoutCreate", layout, type, rows, columns, stride);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return dropped("cublasLtMatrixLayoutDestroy", layout); }
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) { return made("cublasLtMatmulPreferenceCreate", preference); }
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return dropped("cublasLtMatmulPreferenceDestroy", preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: std::memcpy(&preference->workspace_bytes, value, bytes); break;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: std::memcpy(&preference->reduction_schemes, value, bytes); break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: std::memcpy(&preference->weight_alignment, value, bytes); break;
    default: return CUBLAS_STATUS_INVALID_VALUE;
  }
  return status_of("cublasLtMatmulPreferenceSetAttribute");
}

// As the library's, its answer depends on the shape, rows included.
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t* results, int* found) {
  *found = wanted > 0;
  if (*found) {
    results[0] = {};
    results[0].algo.data[0] = 1 + (a->columns / 16 + b->columns) % 5;
    results[0].algo.data[1] = preference->weight_alignment;
    results[0].workspaceSize = preference->reduction_schemes == 0 ? 0 : preference->workspace_bytes;
  }
  return status_of("cublasLtMatmulAlgoGetHeuristic");
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t operation, const void*, const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void*, const void*, cublasLtMatrixLayout_t, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void*, size_t workspace_bytes,
                              cudaStream_t stream) {
  if (operation->transpose_a != CUBLAS_OP_T || operation->transpose_b != CUBLAS_OP_N) return CUBLAS_STATUS_EXECUTION_FAILED;
  if (reinterpret_cast<uintptr_t>(a) % algorithm->data[1]) return CUBLAS_STATUS_INVALID_VALUE;
  const auto left = *a_layout, right = *b_layout, out = *d_layout;
  const unsigned strides = unsigned(1 + (algorithm->data[0] * 7 + right.columns * 3 + workspace_bytes / 4096) % 11);
  const cudaError_t error = simt::enqueue(stream, "cublasLtMatmul", [=] {
    const size_t rows = right.columns;
    std::vector<float> operand(right.rows * rows), total;
    for (size_t row = 0; row < rows; ++row)
      for (uint64_t i = 0; i < right.rows; ++i) operand[i * rows + row] = element(b, right.type, row * right.stride + i);
    for (uint64_t output = 0; output < left.columns; ++output) {
      multiply(a, left, output, operand, rows, strides, total);
      for (size_t row = 0; row < rows; ++row) static_cast<float*>(d)[row * out.stride + output] = total[row];
    }
  });
  return error ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}
