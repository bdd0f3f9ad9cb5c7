// What a device must be able to do: about fifteen operations over rows, in model words, fused as far as both the CPU and
// CUDA can honour. A backend may implement one operation by several kernels; the network never sees how.
//
// Calls are ordered and may be asynchronous; `download` and `synchronize` wait. All pointers that ops take are backend memory
// (on the CPU: host memory). Ops on the hot path allocate nothing.
//
// Shapes: T rows of the pass, D hidden_size, H heads, Hkv KV heads, Dh head_dim, F intermediate_size, V vocab_size,
// S slots, P positions per page.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/tensor.h"
#include "math/acceptance.h"
#include "math/noise.h"
#include "math/processors.h"

namespace paceline {

constexpr int kPagePositions = 64;  // positions per KV page, and leaves of the attention tree
constexpr int kPageGroup = 8;       // pages per inner node of the attention tree
constexpr int kMaxSlots = 256;      // sequences decoding at once, at most
constexpr int kMaxHeadDim = 256;    // largest head_dim a backend must serve

// Backend memory, owned. Zeroed when made; a dry backend's has a size and no memory.
class Buffer {
 public:
  Buffer() = default;
  Buffer(void* data, size_t bytes, std::function<void(void*)> release) : data_(data), bytes_(bytes), release_(std::move(release)) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(release_, other.release_);
    return *this;
  }
  ~Buffer() {
    if (data_) release_(data_);
  }
  size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const { return static_cast<T*>(data_); }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  std::function<void(void*)> release_;
};

// A weight matrix in the backend's own order: opaque to everyone else.
class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;
  virtual size_t bytes() const = 0;
};

// The rows of a pass. `plan` puts the live ones first; rows at or beyond *live do not exist and write nothing.
// One row = one token of one sequence: (slot, position, token).
struct Rows {
  int capacity;             // *live never exceeds it
  int32_t* live;            // [1]
  int32_t* slot;            // [capacity]
  int32_t* position;        // [capacity] index of `token` in its sequence
  int32_t* token;           // [capacity]
  int positions = 1 << 30;  // every live row's position is below it: what the host knows, for the size of launches
};

// One layer's K and V of every sequence, in pages. Layout inside a page belongs to the backend.
struct KvLayer {
  void* keys;                  // [num_pages, Hkv, P, Dh] values of dtype
  void* values;                // [num_pages, Hkv, P, Dh]
  const int32_t* page_table;   // [S, pages_per_slot]: page that holds positions [64 i, 64 i + 64) of the slot
  int pages_per_slot;
  DType dtype;                 // fp32 or bf16
};

// What attention needs to know of a model, the same for all layers.
struct AttentionShape {
  int num_heads, num_kv_heads, head_dim;
  const float* rope_cos;  // [positions, Dh / 2], attention scaling included
  const float* rope_sin;  // [positions, Dh / 2]
};

// Parameters of one projection group. Outputs of matrices packed together are consecutive, each part padded to 16 columns.
struct QkvWeights {
  const PackedMatrix* qkv;       // K = D, outputs q | k | v
  const float* norm;             // [D] RMSNorm before
  const float* bias;             // [padded outputs] or nullptr
  const float* q_norm;           // [Dh] RMSNorm of each q head, or nullptr (Qwen3)
  const float* k_norm;           // [Dh]
  float eps;
};

// Everything a cycle reads and writes on the device, one entry per slot. decode/ owns it; only the cycle's operations and,
// between cycles, the host change it. `tokens` holds the committed tokens and, behind them, the drafts of the running cycle.
struct CycleState {
  int num_slots, tau_max, tokens_stride;
  int vocab_limit;         // ids that exist: the target decides
  int draft_vocab_limit;   // ids the draft may propose
  int draft_vocab_size;    // columns of a draft row; a committed id at or above it is fed to the draft as id 0
  int draft_max_len;       // positions the draft can take
  Acceptance acceptance;
  int32_t* tokens;         // [S, tokens_stride]
  int32_t* length;         // [S] committed tokens; the last one is not fed yet
  int32_t* running;        // [S] 1 while the slot decodes
  int32_t* wanted_tau;     // [S] written by the host between cycles
  int32_t* offered;        // [S] shared: drafts that the host has for the next cycle; 0 = the draft proposes
  int32_t* offers;         // [S, tau_max] shared: those drafts
  int32_t* proposed;       // [S] of this cycle: `offered` as it began. Such drafts were drawn from nothing: each is a point mass
  int32_t* drafting;       // [S] drafts of this cycle: wanted_tau clamped, cut short at an unusable draft row
  int32_t* target_cached;  // [S]
  int32_t* draft_cached;   // [S]
  int32_t* draft_fed;      // [S] draft_cached during the cycle
  int32_t* first_row;      // [S] the slot's first row in the verify pass
  int32_t* draft_row;      // [tau_max + 1, S] rows of a draft pass: first the one that step 0 caught up with, -1 where there was none,
                           // then that which proposed draft `step`
  SlotParams* params;      // [S]
  int32_t* draft_fault;    // [S] 1 once a row of the draft was unusable in this cycle
  // Where drafts may end early, by what is known before a position's token is drawn: the largest processed probability of its row.
  bool may_stop_early;     // the next five are looked at
  float* stop_below;       // [S] no draft where that is less; 0 = off. Written by the host between cycles, as the next one
  int32_t* verify_budget;  // [1] rows of the verify pass at most, one per running slot at least; 0 = no limit
  double* confidence;      // [S] product of these probabilities over the cycle's drafts so far: who may go on under a budget
  int32_t* looked;         // [S] rows of this cycle at which the slot's probability was looked at: where it is bounded by either
  float* row_confidence;   // [S, tau_max] these probabilities
  float* draft_logits;     // [(tau_max + 1) S, draft V]: every draft pass keeps its rows, so that acceptance judges the very
                           // rows the drafts were drawn from. Step 0 may have two rows per slot.
  const double* uniforms;  // [S, tau_max] what `rejection` judges drafts by, given by an audit; nullptr: the noise of their address
  // First row of draft_logits that belongs to a step.
  constexpr int draft_logits_row(int step) const { return step <= 0 ? 0 : (step + 1) * num_slots; }
  // The row of its pass that proposed draft `step` of the slot; step kCatchUp: that it caught up with, or -1.
  constexpr int32_t& draft_row_of(int step, int slot) const { return draft_row[(step + 1) * num_slots + slot]; }
};
constexpr int kCatchUp = -1;  // the draft's row before that of step 0: it would have proposed the token at length - 1

// What the host reads after a cycle, one entry per slot.
struct CycleResult {
  int32_t first_position;  // of tokens[0]
  int32_t tau;             // drafts verified
  int32_t accepted;        // 0..tau: drafts among the emitted tokens
  int32_t emitted;         // 1..tau + 1, truncated at a stop or limit; 0 when the first row is unusable
  int32_t finish;          // 0 goes on, or a Finish
  int32_t fault;           // RowFault of the row that ended it
  int32_t draft_fault;     // 1: fewer drafts than there might have been, since the draft's row for the next one was unusable
  int32_t looked;          // places whose row said how sure the draft is: tau, and the one at which drafts ended early, if any
  int32_t target_cached, draft_cached;  // after the commit
};
enum Finish : int32_t { kRunning = 0, kStopToken = 1, kLengthLimit = 2, kNumericFault = 3 };

struct CycleResults {
  CycleResult* slot;       // [S]
  int32_t* tokens;         // [S, tau_max + 1]
  float* logprobs;         // [S, tau_max + 1] raw logprob of each emitted token
  int32_t* top_ids;        // [S, tau_max + 1, kMaxTopLogprobs]
  float* top_logprobs;     // [S, tau_max + 1, kMaxTopLogprobs]
  uint64_t* row_hashes;    // [S, tau_max + 1] debug: of the raw logits that chose each emitted token; nullptr = off
  float* confidence;       // [S, tau_max] the largest probability of the draft's row at each place that was looked at
};

// What the trace notes of a cycle beside its results, for drafts [0, tau) of a slot. m_j, the agreement: whether the draft, given the true
// prefix, would have proposed the token that was emitted; under `rejection` min(1, draft / target) of that token's probabilities.
struct CycleEvidence {
  int32_t* rows;              // [1] live rows of the verify pass
  int32_t* drafted;           // [S, tau_max]
  float* draft_logprob;       // [S, tau_max] of the drafted token, raw
  float* target_logprob;      // [S, tau_max] likewise, of rows that were reached
  float* agreement;           // [S, tau_max] of emitted tokens
  float* catch_up_agreement;  // [S] of the token at length - 1, where the draft had to catch up with it; NaN where not
  double* extra_probability;  // [S] not read by the host: what the target gave the last bonus token, NaN where there was none
};

// What a profiler shows of the host's work. Each has a number beside its name.
enum class Span : int32_t {
  load_weights,   // bytes of the tensor
  graph_capture,  // tau
  prefill,        // rows of the pass
  launch,         // tau of the cycle
  collect,        // requests that took part
  draft,          // step; while a line is captured, as the next two: its replays show as kernels
  verify,         // rows at most
  accept,         // a mark when results are read: drafts accepted of a slot's cycle
  kv_rollback,    // a mark: drafts of it rejected, whose KV is forgotten
};
constexpr int kNumSpans = int(Span::kv_rollback) + 1;
inline const char* name_of(Span span) {
  constexpr const char* names[kNumSpans] = {"load_weights", "graph_capture", "prefill", "launch", "collect", "draft", "verify", "accept", "kv_rollback"};
  return names[int(span)];
}

// A captured line of operations that can be run again and again.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual void launch() = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string description() const = 0;  // device, level, threads: for people

  // Memory.
  virtual Buffer allocate(size_t bytes) = 0;
  // Memory that operations write and the host reads (and the other way round) without a copy. Small things only.
  virtual Buffer allocate_shared(size_t bytes) = 0;
  virtual void upload(void* device, const void* host, size_t bytes) = 0;  // host may go when this returns
  virtual void download(void* host, const void* device, size_t bytes) = 0;
  virtual void synchronize() = 0;
  // Cycles worth launching before the first one's results are read: 1 where a launch is the work itself.
  virtual int cycles_in_flight() const = 0;
  virtual size_t free_bytes() = 0;  // of a memory of its own; 0: it lives in the host's
  virtual std::unique_ptr<Graph> capture(std::function<void()> line) = 0;
  // What it has taken for itself, beside what it was asked for.
  virtual size_t scratch_bytes() const = 0;
  // One of the same kind whose buffers have no memory, so that scratch_bytes tells what its setup would take: of its operations only
  // matrix_in and the prepare ones may be called (planning_backend.h).
  virtual std::unique_ptr<Backend> dry() const = 0;
  // Where engines share what computes (the CPU's threads), work between these comes in one piece, without any other engine's. They
  // nest. A launch is such a piece by itself.
  virtual void begin_turn() {}
  virtual void end_turn() {}

  // Weights. A matrix [N, K] is made empty and filled part by part: row r of `part` becomes output column
  // 16 (first_block + (r / 16) * block_stride) + r % 16. Gate and up alternate by blocks (stride 2), q, k, v follow each other.
  // dtype fixes where values are rounded: bf16 rounds weights and activations, fp32 neither.
  // Its memory is zeros, or what an equal matrix was packed to; matrices of 64-byte multiples may lie in one allocation.
  virtual size_t matrix_bytes(int num_blocks, int k, DType dtype) const = 0;
  virtual std::unique_ptr<PackedMatrix> matrix_in(Buffer memory, int num_blocks, int k, DType dtype) = 0;
  std::unique_ptr<PackedMatrix> new_matrix(int num_blocks, int k, DType dtype) {
    return matrix_in(allocate(matrix_bytes(num_blocks, k, dtype)), num_blocks, k, dtype);
  }
  virtual void pack_weights(PackedMatrix& matrix, const TensorView& part, int first_block, int block_stride) = 0;
  // Packed weights that are already in host memory (a mapped file): where they lie, or a copy on the device.
  virtual Buffer adopt(Buffer host) {
    Buffer buffer = allocate(host.bytes());
    upload(buffer.as<void>(), host.as<void>(), host.bytes());
    return buffer;
  }

  // The network. x is the residual stream, fp32 [T, D].
  virtual void embed(const Rows&, const PackedMatrix& table /* [V, D] packed */, int d, float* x) = 0;
  // qkv [T, padded q | k | v] = W norm(x) + b; heads of q and k are normalised where the model does so and rotated; K and V rows
  // also go to their page at the row's position.
  virtual void norm_qkv_rope_write(const Rows&, const float* x, int d, const QkvWeights&, const AttentionShape&, const KvLayer&,
                                   float* qkv) = 0;
  // out [T, H Dh]: row (slot, position) attends to positions [0, position] of its slot, softmax scaled by 1 / sqrt(Dh).
  virtual void attention(const Rows&, const float* qkv, const AttentionShape&, const KvLayer&, float* out) = 0;
  // x += W in + bias: the attention's output projection and the MLP's down projection.
  virtual void linear_residual(const Rows&, const float* in, int k, const PackedMatrix&, const float* bias, float* x, int d) = 0;
  // out [T, F] = silu(gate) * up of norm(x); gate and up blocks alternate in the matrix.
  virtual void norm_gate_up(const Rows&, const float* x, int d, const float* norm, float eps, const PackedMatrix&, int f, float* out) = 0;
  virtual void norm_head(const Rows&, const float* x, int d, const float* norm, float eps, const PackedMatrix&, int v, float* logits /* [T, V] */) = 0;
  virtual void log_softmax(const Rows&, const float* logits, int v, float* out /* [T, V] */) = 0;

  // Setup, before the first pass and the first cycle: scratch for attention of `rows` rows, and for cycles over rows of up to vocab_size
  // logits.
  virtual void prepare_attention(int rows, int pages_per_slot, const AttentionShape&) = 0;
  virtual void prepare_sampling(int num_slots, int tau_max, Acceptance, int vocab_size) = 0;
  // The cycle. Arithmetic: math/. `begin_cycle` clamps tau and takes over what the host offers, which then has no rows of the draft; the
  // plans fill the rows of the next pass.
  virtual void begin_cycle(const CycleState&) = 0;
  virtual void plan_draft(const CycleState&, int step, const Rows&) = 0;
  virtual void sample_draft(const CycleState&, int step) = 0;
  virtual void plan_verify(const CycleState&, const Rows&) = 0;
  virtual void accept(const CycleState&, const float* logits /* [T, V] */, int vocab_size, const CycleResults&) = 0;
  // For the trace: after the draft's pass of step 0, before it is sampled; and after `accept`, with the rows of plan_verify.
  virtual void record_catch_up(const CycleState&, const CycleEvidence&) = 0;
  virtual void record_cycle(const CycleState&, const Rows&, const float* logits, int vocab_size, const CycleResults&, const CycleEvidence&) = 0;
  virtual void timestamp(int64_t* nanoseconds) = 0;  // when the device gets here; only differences mean anything
  // The end of a line: adds one to a counter in shared memory, once everything before it can be read there; the host waits for it.
  virtual void count_up(int64_t* counter) = 0;
  virtual void wait_for(const int64_t* counter, int64_t value) = 0;
  // Pages for fork: page from[i] is copied to to[i].
  virtual void copy_pages(const KvLayer&, const AttentionShape&, const int32_t* from, const int32_t* to, int count) = 0;
  // For profilers: ranges nest; `profile` starts and stops what `nsys --capture-range=cudaProfilerApi` waits for. Nothing on the CPU.
  virtual void begin_span(Span, int64_t payload) = 0;
  virtual void end_span() = 0;
  virtual void mark(Span, int64_t payload) = 0;
  virtual void profile(bool on) = 0;
  // Debug: a hash of the K and V of one position, the same wherever its page lies.
  virtual uint64_t hash_kv(const KvLayer&, const AttentionShape&, int slot, int position) = 0;
};

// A range of the profiler, as long as this lives.
class SpanScope {
 public:
  SpanScope(Backend& backend, Span span, int64_t payload) : backend_(backend) { backend.begin_span(span, payload); }
  ~SpanScope() { backend_.end_span(); }
  SpanScope(const SpanScope&) = delete;
  SpanScope& operator=(const SpanScope&) = delete;

 private:
  Backend& backend_;
};

// A turn, as long as this lives.
class TurnScope {
 public:
  explicit TurnScope(Backend& backend) : backend_(backend) { backend.begin_turn(); }
  ~TurnScope() { backend_.end_turn(); }
  TurnScope(const TurnScope&) = delete;
  TurnScope& operator=(const TurnScope&) = delete;

 private:
  Backend& backend_;
};

// Cores that this process may use: its affinity, and its cgroup's quota.
int usable_threads();
// threads 0 = usable_threads(). level: "", or one of avx2, avx512, avx512_bf16 to force it.
std::unique_ptr<Backend> make_cpu_backend(int num_threads, const std::string& level);
// The backend in a library of its own (plugin.h). Throws DeviceError that says why it cannot be had.
std::unique_ptr<Backend> load_backend(const std::string& path, int device);

}  // namespace paceline
