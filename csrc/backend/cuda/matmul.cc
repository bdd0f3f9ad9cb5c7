#include "backend/cuda/matmul.h"

#include "backend/cuda/check.h"
#include "backend/cuda/kernels/kernels.h"

namespace paceline::cuda {
namespace {

constexpr uint32_t kWeightAlignment = 64;      // matrices lie in one allocation (backend.h); unasked, cuBLASLt takes 256 for granted

void check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw CapacityError(message("[cuda] ", call, ": ", cublasLtGetStatusName(status)));
  throw DeviceError(message("[cuda] ", call, ": ", cublasLtGetStatusName(status)));
}
using cuda::check;

template <class T>
void set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, T value) {
  check(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
}

// What a heuristic may return, dropped when it has answered.
class Preference {
 public:
  Preference() { check(cublasLtMatmulPreferenceCreate(&preference_), "cublasLtMatmulPreferenceCreate"); }
  ~Preference() { cublasLtMatmulPreferenceDestroy(preference_); }
  template <class T>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof value), "cublasLtMatmulPreferenceSetAttribute");
  }
  cublasLtMatmulPreference_t get() const { return preference_; }

 private:
  cublasLtMatmulPreference_t preference_ = nullptr;
};

}  // namespace

Matmul::Matmul(cudaStream_t stream) : stream_(stream) {
  check(cublasLtCreate(&handle_), "cublasLtCreate");
  const cudaError_t error = cudaMalloc(&workspace_, kWorkspaceBytes);
  if (error != cudaSuccess) cublasLtDestroy(handle_);
  check(error, "cudaMalloc");
}

Matmul::~Matmul() {
  for (auto& [shape, plan] : plans_) drop(plan);
  cudaFree(workspace_);
  cublasLtDestroy(handle_);
}

void Matmul::drop(Plan& plan) {
  for (cublasLtMatrixLayout_t layout : {plan.weights, plan.operand, plan.sums})
    if (layout) cublasLtMatrixLayoutDestroy(layout);
  if (plan.operation) cublasLtMatmulDescDestroy(plan.operation);
  plan = {};
}

void Matmul::prepare(int outputs, int k, DType dtype) {
  const auto shape = std::make_tuple(outputs, k, dtype);
  if (!plans_.count(shape)) plans_[shape] = make_plan(outputs, k, dtype);
}

// In cuBLASLt's column-major words: sums [outputs x rows] = weights [k x outputs]^T operand [k x rows].
Matmul::Plan Matmul::make_plan(int outputs, int k, DType dtype) {
  const cudaDataType type = dtype == DType::fp32 ? CUDA_R_32F : CUDA_R_16BF;
  Plan plan;
  try {
    check(cublasLtMatmulDescCreate(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
    check(cublasLtMatrixLayoutCreate(&plan.weights, type, k, outputs, k), "cublasLtMatrixLayoutCreate");
    check(cublasLtMatrixLayoutCreate(&plan.operand, type, k, kRowBlock, k), "cublasLtMatrixLayoutCreate");
    check(cublasLtMatrixLayoutCreate(&plan.sums, CUDA_R_32F, outputs, kRowBlock, outputs), "cublasLtMatrixLayoutCreate");
    Preference preference;
    preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
    preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t(CUBLASLT_REDUCTION_SCHEME_NONE));
    preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, kWeightAlignment);
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    check(cublasLtMatmulAlgoGetHeuristic(handle_, plan.operation, plan.weights, plan.operand, plan.sums, plan.sums, preference.get(), 1, &found, &count),
          "cublasLtMatmulAlgoGetHeuristic");
    if (count == 0 || found.state != CUBLAS_STATUS_SUCCESS) throw DeviceError(message("[cuda] cuBLASLt has no algorithm for ", kRowBlock, " rows, ", k, " inputs, ", outputs, " outputs"));
    plan.algorithm = found.algo;
  } catch (...) {
    drop(plan);
    throw;
  }
  return plan;
}

void Matmul::multiply(const void* weights, int outputs, int k, DType dtype, const void* operand, float* sums) {
  const Plan& plan = plans_.at(std::make_tuple(outputs, k, dtype));
  const float one = 1, zero = 0;
  check(cublasLtMatmul(handle_, plan.operation, &one, weights, plan.weights, operand, plan.operand, &zero, sums, plan.sums, sums, plan.sums,
                       &plan.algorithm, workspace_, kWorkspaceBytes, stream_),
        "cublasLtMatmul");
}

}  // namespace paceline::cuda
