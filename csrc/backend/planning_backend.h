// A backend that takes nothing and does nothing: the real constructors run over it, and what they ask for is what they would take.
#pragma once

#include "backend/backend.h"

namespace paceline {

class PlanningBackend final : public Backend {
 public:
  // Sizes of packed matrices and of scratch are those of `real`.
  explicit PlanningBackend(const Backend& real) : dry_(real.dry()) {}

  // Of all buffers that were asked for; scratch comes on top.
  size_t bytes_asked_for() const { return asked_for_; }

  std::string description() const override { return "a plan: " + dry_->description(); }
  Buffer allocate(size_t bytes) override {
    asked_for_ += bytes;
    return Buffer(nullptr, bytes, nullptr);
  }
  Buffer allocate_shared(size_t bytes) override { return allocate(bytes); }
  void upload(void*, const void*, size_t) override {}
  void download(void*, const void*, size_t) override {}
  void synchronize() override {}
  int cycles_in_flight() const override { return dry_->cycles_in_flight(); }
  size_t free_bytes() override { return 0; }
  size_t scratch_bytes() const override { return dry_->scratch_bytes(); }
  std::unique_ptr<Backend> dry() const override { return dry_->dry(); }
  std::unique_ptr<Graph> capture(std::function<void()>) override { return std::make_unique<NoGraph>(); }

  size_t matrix_bytes(int num_blocks, int k, DType dtype) const override { return dry_->matrix_bytes(num_blocks, k, dtype); }
  std::unique_ptr<PackedMatrix> matrix_in(Buffer memory, int num_blocks, int k, DType dtype) override {
    return dry_->matrix_in(std::move(memory), num_blocks, k, dtype);
  }
  void pack_weights(PackedMatrix&, const TensorView&, int, int) override {}

  void embed(const Rows&, const PackedMatrix&, int, float*) override {}
  void norm_qkv_rope_write(const Rows&, const float*, int, const QkvWeights&, const AttentionShape&, const KvLayer&, float*) override {}
  void attention(const Rows&, const float*, const AttentionShape&, const KvLayer&, float*) override {}
  void linear_residual(const Rows&, const float*, int, const PackedMatrix&, const float*, float*, int) override {}
  void norm_gate_up(const Rows&, const float*, int, const float*, float, const PackedMatrix&, int, float*) override {}
  void norm_head(const Rows&, const float*, int, const float*, float, const PackedMatrix&, int, float*) override {}
  void log_softmax(const Rows&, const float*, int, float*) override {}

  void prepare_attention(int rows, int pages_per_slot, const AttentionShape& shape) override { dry_->prepare_attention(rows, pages_per_slot, shape); }
  void prepare_sampling(int num_slots, int tau_max, Acceptance acceptance, int vocab_size) override {
    dry_->prepare_sampling(num_slots, tau_max, acceptance, vocab_size);
  }
  void begin_cycle(const CycleState&) override {}
  void plan_draft(const CycleState&, int, const Rows&) override {}
  void sample_draft(const CycleState&, int) override {}
  void plan_verify(const CycleState&, const Rows&) override {}
  void accept(const CycleState&, const float*, int, const CycleResults&) override {}
  void record_catch_up(const CycleState&, const CycleEvidence&) override {}
  void record_cycle(const CycleState&, const Rows&, const float*, int, const CycleResults&, const CycleEvidence&) override {}
  void timestamp(int64_t*) override {}
  void count_up(int64_t*) override {}
  void wait_for(const int64_t*, int64_t) override {}
  void copy_pages(const KvLayer&, const AttentionShape&, const int32_t*, const int32_t*, int) override {}
  void begin_span(Span, int64_t) override {}
  void end_span() override {}
  void mark(Span, int64_t) override {}
  void profile(bool) override {}
  uint64_t hash_kv(const KvLayer&, const AttentionShape&, int, int) override { return 0; }

 private:
  struct NoGraph final : Graph {
    void launch() override {}
  };

  std::unique_ptr<Backend> dry_;
  size_t asked_for_ = 0;
};

}  // namespace paceline
