// Choosing a token from a row of logits, on the CPU: loops around the formulas of math/. Compiled once per instruction
// level; every level gives the same bits, because only IEEE operations and explicit fma in a fixed order decide.
#pragma once

#include "math/noise.h"
#include "math/processors.h"

namespace paceline::cpu {

// One row and what its processors need to know.
struct RowTask {
  const float* logits;  // [row_size] raw
  int32_t row_size;     // columns, padding included
  int32_t vocab_limit;  // ids that exist, <= row_size
  const SlotParams* params;
  const int32_t* history;  // [history_length] prompt, output, and the drafts before the row
  int32_t history_length;  // = position of the token being chosen
};

// One per thread. counts is all zero between calls.
struct SamplingScratch {
  float* logits;        // [V]
  int32_t* counts;      // [V]
  uint64_t* histogram;  // [2048]
};

struct SamplingKernels {
  // The row after its processors. Points into the raw row where nothing was changed, else into scratch.
  ProcessedRow (*process)(const RowTask& task, const SamplingScratch& scratch);
  // argmax of fma(T, Gumbel, l - l_max) over the survivors, ties to the lowest id; T = 0: argmax.
  int32_t (*choose)(const ProcessedRow& row, const NoiseAddress& at);
  // Sum of fixed weights of the survivors; 1 at T = 0, where only the argmax has weight.
  uint64_t (*mass)(const ProcessedRow& row);
  // The largest probability of the row; at T = 0, where the choice is certain, that at T = 1.
  double (*confidence)(const ProcessedRow& row);
  // Probability of one id, given the row's mass.
  double (*probability)(const ProcessedRow& row, uint64_t mass, int32_t id);
  // A draw from max(target - draft, 0), or from the target when that is empty (both rows sound).
  int32_t (*choose_residual)(const ProcessedRow& target, uint64_t target_mass, const ProcessedRow& draft, uint64_t draft_mass,
                             const NoiseAddress& at);
  // log-softmax of the raw row is (l - l_max) - log_sum.
  void (*normaliser)(const float* logits, int32_t n, double* l_max, double* log_sum);
  void (*log_softmax)(const float* logits, int32_t n, float* out);
  // The k largest of [0, n), largest first, ties by lowest id; 1 <= k <= n.
  void (*top)(const float* logits, int32_t n, int32_t k, int32_t* ids);
  uint64_t (*hash)(const float* logits, int32_t n);
};

namespace avx2 { const SamplingKernels& sampling_kernels(); }
namespace avx512 { const SamplingKernels& sampling_kernels(); }
namespace avx512_bf16 { const SamplingKernels& sampling_kernels(); }

}  // namespace paceline::cpu

#ifdef PACELINE_ISA
// Of the level being compiled: what the files that fill its table share.
namespace paceline::cpu::PACELINE_ISA {
ProcessedRow process(const RowTask& task, const SamplingScratch& scratch);
float max_of(const float* logits, int n);
}  // namespace paceline::cpu::PACELINE_ISA
#endif
