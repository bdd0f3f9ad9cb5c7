// The kernels of the CUDA engine as plain functions: each enqueues its work on the stream and returns. One family per file; the head
// of each .cu says what it computes, moves and costs. Built with --fmad=false and -ftz=true: the floating-point mode of the CPU engine.
//
// Products of weights and rows go in blocks of up to kRowBlock rows: pack_rows rounds them into an operand, then
//   * skinny_gemm.cu multiplies it with weights in tiles (tiles.h) and finishes the sums where they come up: every dtype but fp32;
//   * or cuBLAS (matmul.h) makes sums [kRowBlock, outputs] of it, always of all kRowBlock rows, so that its choice of kernel cannot
//     depend on them; a kernel of epilogues.cu takes those further. Sums of rows that do not live are garbage.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/backend.h"

namespace paceline::cuda {

constexpr int kRowBlock = 64;  // rows of one product: a pass of fewer is padded, one of more takes several

// Inputs along K lie in lines of 16 values: 32 or 64 bytes.
constexpr int padded_k(int k) { return (k + 15) / 16 * 16; }
// Outputs of a packed matrix come in blocks of 16.
constexpr int padded_columns(int n) { return (n + 15) / 16 * 16; }

// Packed weights: tiles, or rows [16 num_blocks, padded_k(k)] of fp32 or bf16.
struct DeviceMatrix {
  void* data;
  DType dtype;
  int num_blocks, k;
  bool tiled;
};

// ------------------------------------------------------------------------------------------------ rows.cu
void embed(cudaStream_t, const Rows&, const DeviceMatrix& table, int d, float* x);
// operand = rows [first_row, first_row + kRowBlock) of x [T, k], RMSNorm(x) * norm where norm is given, as products with w want them:
// fragments of bf16 (tiles.h), or [kRowBlock, padded_k(k)] of its dtype.
void pack_rows(cudaStream_t, const Rows&, int first_row, const float* x, const DeviceMatrix& w, const float* norm, float eps,
               void* operand);

// ------------------------------------------------------------------------------------------------ skinny_gemm.cu
// Of the rows that pack_rows made an operand of and tiles. out [T, stride], of which a row has n; x [T, d]; out [T, f].
void skinny_sums(cudaStream_t, const Rows&, int first_row, const DeviceMatrix&, const void* operand, float* out, int stride, int n);
void skinny_residual(cudaStream_t, const Rows&, int first_row, const DeviceMatrix&, const void* operand, const float* bias, float* x,
                     int d);
void skinny_gate_up(cudaStream_t, const Rows&, int first_row, const DeviceMatrix&, const void* operand, int f, float* out);

// ------------------------------------------------------------------------------------------------ epilogues.cu
// What becomes of the sums of rows [first_row, first_row + kRowBlock). `columns` is the distance between their rows.
void finish_residual(cudaStream_t, const Rows&, int first_row, const float* sums, int columns, const float* bias, float* x, int d);
void finish_gate_up(cudaStream_t, const Rows&, int first_row, const float* sums, int columns, int f, float* out);
void finish_logits(cudaStream_t, const Rows&, int first_row, const float* sums, int columns, int v, float* logits);
// Bias, norm of heads, rotation; K and V to their pages. qkv may be where the sums are.
void finish_qkv(cudaStream_t, const Rows&, int first_row, const float* sums, int columns, const QkvWeights&, const AttentionShape&,
                const KvLayer&, float* qkv);

// ------------------------------------------------------------------------------------------------ attention.cu
// Page of one layer: keys and values alike [Hkv, kPagePositions, Dh] of the KV dtype. The size of the scratch, which lies at a multiple
// of 16 bytes, chooses how the work is split: never a bit of it.
size_t attention_scratch_bytes(int rows, int pages_per_slot, const AttentionShape&);
void attention(cudaStream_t, const Rows&, const float* qkv, const AttentionShape&, const KvLayer&, void* scratch, size_t scratch_bytes,
               float* out);

// ------------------------------------------------------------------------------------------------ cycle.cu
void begin_cycle(cudaStream_t, const CycleState&);
void plan_draft(cudaStream_t, const CycleState&, int step, const Rows&);
void plan_verify(cudaStream_t, const CycleState&, const Rows&);
void timestamp(cudaStream_t, int64_t* nanoseconds);
void count_up(cudaStream_t, int64_t* counter);
cudaError_t code_for_device();  // cudaSuccess where this build has kernels for the current device

// ------------------------------------------------------------------------------------------------ processors, sampling, accept, report, trace
// What choosing tokens needs besides the rows of logits. One block of memory, zeroed once, for cycles of these sizes and rows of up to
// vocab_size logits of either model. Under `rejection` a cycle's draft rows are known to `accept` through it.
size_t sampling_scratch_bytes(int num_slots, int tau_max, Acceptance, int vocab_size);
struct SamplingScratch {
  void* memory;
  int vocab_size;  // as given above
};

void sample_draft(cudaStream_t, const CycleState&, int step, const SamplingScratch&);
void accept(cudaStream_t, const CycleState&, const float* logits, int vocab_size, const CycleResults&, const SamplingScratch&);
void record_catch_up(cudaStream_t, const CycleState&, const CycleEvidence&, const SamplingScratch&);
void record_cycle(cudaStream_t, const CycleState&, const Rows&, const float* logits, int vocab_size, const CycleEvidence&,
                  const SamplingScratch&);
void log_softmax(cudaStream_t, const Rows&, const float* logits, int v, float* out);

}  // namespace paceline::cuda
