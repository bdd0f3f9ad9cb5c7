// The CUDA backend: one stream, on which every operation enqueues its kernels and products; nothing waits but what says so.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/matmul.h"
#include "backend/cuda/nvtx.h"
#include "backend/cuda/staging.h"

namespace paceline::cuda {

class CudaMatrix final : public PackedMatrix {
 public:
  CudaMatrix(Buffer memory, int num_blocks, int k, DType dtype, bool tiled)
      : memory_(std::move(memory)), view_{memory_.as<void>(), dtype, num_blocks, k, tiled} {}
  size_t bytes() const override { return memory_.bytes(); }
  const DeviceMatrix& view() const { return view_; }

 private:
  Buffer memory_;
  DeviceMatrix view_;
};

class CudaBackend final : public Backend {
 public:
  // Makes the device the thread's. PACELINE_CUDA_MATMUL=cublas gives products in bf16 to cuBLAS: an oracle for tests.
  explicit CudaBackend(int device);
  ~CudaBackend() override;

  std::string description() const override { return description_; }
  cudaStream_t stream() const { return stream_; }  // benches record events on it
  Buffer allocate(size_t bytes) override;
  Buffer allocate_shared(size_t bytes) override;
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  void synchronize() override;
  int cycles_in_flight() const override { return 2; }  // one runs, one waits: the device never does
  size_t free_bytes() override;
  size_t scratch_bytes() const override;
  std::unique_ptr<Backend> dry() const override { return dry_backend(); }
  std::unique_ptr<CudaBackend> dry_backend() const { return std::unique_ptr<CudaBackend>(new CudaBackend(*this, Dry{})); }
  std::unique_ptr<Graph> capture(std::function<void()> line) override;

  size_t matrix_bytes(int num_blocks, int k, DType dtype) const override;
  std::unique_ptr<PackedMatrix> matrix_in(Buffer memory, int num_blocks, int k, DType dtype) override;
  void pack_weights(PackedMatrix& matrix, const TensorView& part, int first_block, int block_stride) override;

  void embed(const Rows&, const PackedMatrix& table, int d, float* x) override;
  void norm_qkv_rope_write(const Rows&, const float* x, int d, const QkvWeights&, const AttentionShape&, const KvLayer&, float* qkv) override;
  void attention(const Rows&, const float* qkv, const AttentionShape&, const KvLayer&, float* out) override;
  void linear_residual(const Rows&, const float* in, int k, const PackedMatrix&, const float* bias, float* x, int d) override;
  void norm_gate_up(const Rows&, const float* x, int d, const float* norm, float eps, const PackedMatrix&, int f, float* out) override;
  void norm_head(const Rows&, const float* x, int d, const float* norm, float eps, const PackedMatrix&, int v, float* logits) override;
  void log_softmax(const Rows&, const float* logits, int v, float* out) override;

  void prepare_attention(int rows, int pages_per_slot, const AttentionShape&) override;
  void prepare_sampling(int num_slots, int tau_max, Acceptance, int vocab_size) override;
  void begin_cycle(const CycleState&) override;
  void plan_draft(const CycleState&, int step, const Rows&) override;
  void sample_draft(const CycleState&, int step) override;
  void plan_verify(const CycleState&, const Rows&) override;
  void accept(const CycleState&, const float* logits, int vocab_size, const CycleResults&) override;
  void record_catch_up(const CycleState&, const CycleEvidence&) override;
  void record_cycle(const CycleState&, const Rows&, const float* logits, int vocab_size, const CycleResults&, const CycleEvidence&) override;
  void timestamp(int64_t* nanoseconds) override;
  void count_up(int64_t* counter) override;
  void wait_for(const int64_t* counter, int64_t value) override;
  void copy_pages(const KvLayer&, const AttentionShape&, const int32_t* from, const int32_t* to, int count) override;
  void begin_span(Span span, int64_t payload) override { nvtx_.begin(span, payload); }
  void end_span() override { nvtx_.end(); }
  void mark(Span span, int64_t payload) override { nvtx_.mark(span, payload); }
  void profile(bool on) override;
  uint64_t hash_kv(const KvLayer&, const AttentionShape&, int slot, int position) override;

 private:
  struct Dry {};
  CudaBackend(const CudaBackend& real, Dry) : description_(real.description_), bf16_by_cublas_(real.bf16_by_cublas_) {}
  bool is_dry() const { return !stream_; }  // nothing was taken, nothing runs
  bool is_tiled(DType) const;  // and thereby multiplied by our own kernel
  // each(first_row, operand) for each block of rows of a product.
  template <class Each>
  void for_each_block(const Rows& rows, const float* x, const float* norm, float eps, const DeviceMatrix& w, Each each);
  // By cuBLAS: sums [kRowBlock, outputs].
  const float* multiplied(const DeviceMatrix& w, const void* operand);
  void reserve(Buffer& buffer, size_t bytes);
  SamplingScratch sampling() const { return {sampling_scratch_.as<void>(), sampling_vocab_size_}; }

  Nvtx nvtx_;
  std::string description_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Staging> staging_;
  std::unique_ptr<Matmul> matmul_;
  bool bf16_by_cublas_ = false;
  // Scratch, grown while models are built. A graph keeps what it was captured with, so nothing of it goes before the backend does.
  Buffer operand_, sums_, attention_scratch_, sampling_scratch_;
  int sampling_vocab_size_ = 0;
  std::vector<Buffer> outgrown_;
};

}  // namespace paceline::cuda
