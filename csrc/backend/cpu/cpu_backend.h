// The CPU backend: splits each operation over the pool's threads and hands the pieces to the kernels of the machine's level.
#pragma once

#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/float_mode.h"
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/sampling.h"
#include "backend/cpu/shared_pool.h"

namespace paceline::cpu {

// A kernel table and its sampling kernels, of one instruction level.
struct Level {
  const Kernels* forward;
  const SamplingKernels* sampling;
};
// name "": the best this machine has. Throws std::invalid_argument that says what it has.
Level level_of(const std::string& name);

class CpuMatrix final : public PackedMatrix {
 public:
  CpuMatrix(Buffer memory, int num_blocks, int k, DType dtype)
      : memory_(std::move(memory)), matrix_{memory_.as<void>(), num_blocks, k, dtype} {}
  size_t bytes() const override { return memory_.bytes(); }
  const Matrix& matrix() const { return matrix_; }

 private:
  Buffer memory_;
  Matrix matrix_;
};

inline const Matrix& matrix_of(const PackedMatrix& packed) { return static_cast<const CpuMatrix&>(packed).matrix(); }

// Bytes of one KV head in a page, and of a page, of keys and of values alike.
inline size_t head_bytes(const AttentionShape& shape, DType dtype) { return size_t(kPagePositions) * shape.head_dim * size_of(dtype); }
inline size_t page_bytes(const AttentionShape& shape, DType dtype) { return shape.num_kv_heads * head_bytes(shape, dtype); }
// Columns of a packed matrix that has `columns` outputs.
inline int padded(int columns) { return (columns + 15) / 16 * 16; }

// What attention has to do in one call, cut into tasks of rows and heads that share a sweep over pages.
struct AttentionWork {
  const Rows& rows;
  const float* qkv;
  const AttentionShape& shape;
  const KvLayer& kv;
  float* out;

  // body(task, index) for each in a fixed order.
  template <class Body>
  void for_each_task(Body body) const;
};

class CpuBackend : public Backend {
 public:
  CpuBackend(int num_threads, const std::string& level);

  std::string description() const override;
  Buffer allocate(size_t bytes) override;
  Buffer allocate_shared(size_t bytes) override { return allocate(bytes); }
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  void synchronize() override {}
  int cycles_in_flight() const override { return 1; }
  size_t free_bytes() override { return 0; }
  size_t scratch_bytes() const override;
  std::unique_ptr<Backend> dry() const override;
  void begin_turn() override { pool_->take_turn(); }
  void end_turn() override { pool_->give_turn(); }
  std::unique_ptr<Graph> capture(std::function<void()> line) override;

  size_t matrix_bytes(int num_blocks, int k, DType dtype) const override;
  std::unique_ptr<PackedMatrix> matrix_in(Buffer memory, int num_blocks, int k, DType dtype) override;
  void pack_weights(PackedMatrix& matrix, const TensorView& part, int first_block, int block_stride) override;
  Buffer adopt(Buffer host) override { return host; }

  void embed(const Rows&, const PackedMatrix& table, int d, float* x) override;
  void norm_qkv_rope_write(const Rows&, const float* x, int d, const QkvWeights&, const AttentionShape&, const KvLayer&, float* qkv) override;
  void attention(const Rows&, const float* qkv, const AttentionShape&, const KvLayer&, float* out) override;
  void linear_residual(const Rows&, const float* in, int k, const PackedMatrix&, const float* bias, float* x, int d) override;
  void norm_gate_up(const Rows&, const float* x, int d, const float* norm, float eps, const PackedMatrix&, int f, float* out) override;
  void norm_head(const Rows&, const float* x, int d, const float* norm, float eps, const PackedMatrix&, int v, float* logits) override;
  void log_softmax(const Rows&, const float* logits, int v, float* out) override;

  void prepare_attention(int, int, const AttentionShape&) override {}
  void prepare_sampling(int num_slots, int tau_max, Acceptance, int vocab_size) override;
  void begin_cycle(const CycleState&) override;
  void plan_draft(const CycleState&, int step, const Rows&) override;
  void sample_draft(const CycleState&, int step) override;
  void plan_verify(const CycleState&, const Rows&) override;
  void accept(const CycleState&, const float* logits, int vocab_size, const CycleResults&) override;
  void record_catch_up(const CycleState&, const CycleEvidence&) override;
  void record_cycle(const CycleState&, const Rows&, const float* logits, int vocab_size, const CycleResults&, const CycleEvidence&) override;
  void timestamp(int64_t* nanoseconds) override;
  void count_up(int64_t* counter) override { ++*counter; }
  void wait_for(const int64_t*, int64_t) override {}
  void copy_pages(const KvLayer&, const AttentionShape&, const int32_t* from, const int32_t* to, int count) override;
  void begin_span(Span, int64_t) override {}
  void end_span() override {}
  void mark(Span, int64_t) override {}
  void profile(bool) override {}
  uint64_t hash_kv(const KvLayer&, const AttentionShape&, int slot, int position) override;

 private:
  // out = W x for all live rows; called inside a parallel region, by every thread. norm may be null.
  void product(const Rows& rows, const float* x, int stride, const float* norm, float eps, const Matrix& w, const Epilogue& to, int thread,
               int num_threads);
  void accept_slot(const CycleState&, int slot, const float* logits, int vocab_size, const CycleResults&, int thread);
  void report(const float* row, int vocab_size, int token, const CycleState&, int slot, int i, const CycleResults&);
  void record_row(const CycleState&, int slot, int i, const int32_t* fed, const float* logits, int vocab_size, const CycleResults&,
                  const CycleEvidence&, int thread);
  SamplingScratch scratch(int thread) const { return scratch_at(2 * thread); }
  SamplingScratch draft_scratch(int thread) const { return scratch_at(2 * thread + 1); }
  SamplingScratch scratch_at(int index) const;
  void reserve_rows(int k, DType dtype);
  void attention_by_groups(const AttentionWork& work, int num_tasks, int thread, int num_threads);

  CpuBackend(std::shared_ptr<ThreadPool> pool, const Level& level, bool is_dry);

  std::shared_ptr<ThreadPool> pool_;  // shared with other engines of this process
  Level level_;
  const Kernels* kernels_;
  const SamplingKernels* sampling_;
  bool is_dry_;
  // Scratch, grown only while models are built: packed inputs, and what a row of logits needs while it is sampled.
  size_t row_bytes_ = 0;                 // of the widest input
  Buffer shared_rows_, private_rows_;    // [kMaxRows] packed rows; [num_threads, kPrivateRows]
  Buffer attention_states_;              // [10 num_threads, kTaskQueries]
  int vocab_size_ = 0;
  Buffer logits_scratch_, counts_scratch_, histogram_scratch_;  // two per thread
};

// Rows of a pass at most; limits_of keeps every pass below it.
constexpr int kMaxRows = 512;

}  // namespace paceline::cpu
