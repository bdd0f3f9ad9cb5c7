#include "decode/replay.h"

#include <algorithm>
#include <optional>

#include "core/error.h"
#include "decode/rows.h"
#include "math/fixed_sum.h"

namespace paceline {
namespace {

constexpr int kMaxSlots = 256;
constexpr int64_t kMaxLogits = 1 << 24;    // of all slots' target rows: 64 MB
constexpr int kBatchesPerSeed = 64;        // positions of a slot, before it gets another seed

void check(const ReplayRows& rows, const RequestParams& params, int cycles, const double* uniforms) {
  require(cycles >= 1, "[replay] cycles must be at least 1, got ", cycles);
  require(rows.tau >= 0 && rows.tau <= 64, "[replay] tau must be in [0, 64], got ", rows.tau);
  require(rows.vocab_size >= 1 && rows.vocab_size <= kMaxVocabSize, "[replay] target rows must have 1 to ", kMaxVocabSize, " ids, got ",
          rows.vocab_size);
  require(rows.tau == 0 || (rows.draft_vocab_size >= 1 && rows.draft_vocab_size <= kMaxVocabSize), "[replay] draft rows must have 1 to ",
          kMaxVocabSize, " ids, got ", rows.draft_vocab_size);
  validate(params, rows.vocab_size, rows.tau);
  require(params.repetition_penalty == 1 && params.presence_penalty == 0 && params.frequency_penalty == 0 && params.min_tokens == 0,
          "[replay] penalties and min_tokens must be off: there is no history");
  for (int64_t i = 0; uniforms && i < int64_t(cycles) * rows.tau; ++i)
    require(uniforms[i] >= 0 && uniforms[i] <= 1, "[replay] uniforms must be in [0, 1], got ", uniforms[i]);
}

// The state of as many slots as fit, every slot with the same rows.
class Slots {
 public:
  Slots(Backend& backend, Acceptance rule, const ReplayRows& rows, const RequestParams& params, bool with_uniforms)
      : backend_(backend), rows_(rows), width_(rows.tau + 1),
        slots_(int(std::clamp<int64_t>(kMaxLogits / (int64_t(width_) * std::max(rows.vocab_size, rows.draft_vocab_size)), 1, kMaxSlots))),
        draft_rows_(backend, 2 * slots_), verify_rows_(backend, slots_ * width_), params_(slots_) {
    backend.prepare_sampling(slots_, rows.tau, rule, std::max(rows.vocab_size, rows.draft_vocab_size));
    const size_t slots = slots_, emitted = slots * width_;
    state_ = CycleState{};
    state_.num_slots = slots_;
    state_.tau_max = rows.tau;
    state_.tokens_stride = 1 + kBatchesPerSeed * width_ + width_;
    state_.vocab_limit = rows.vocab_size;
    state_.draft_vocab_limit = std::min(rows.vocab_size, rows.draft_vocab_size);
    state_.draft_vocab_size = rows.draft_vocab_size;
    state_.draft_max_len = state_.tokens_stride;
    state_.acceptance = rule;
    state_.tokens = make<int32_t>(slots * state_.tokens_stride);
    for (int32_t** each : {&state_.length, &state_.running, &state_.wanted_tau, &state_.offered, &state_.proposed, &state_.drafting,
                           &state_.target_cached, &state_.draft_cached, &state_.draft_fed, &state_.first_row, &state_.draft_fault, &state_.looked})
      *each = make<int32_t>(slots);
    state_.draft_row = make<int32_t>(slots * width_);
    state_.params = make<SlotParams>(slots);
    state_.draft_logits = make<float>(emitted * rows.draft_vocab_size);
    if (with_uniforms) state_.uniforms = uniforms_ = make<double>(slots * rows.tau);
    target_logits_ = make<float>(emitted * rows.vocab_size);
    results_ = {share<CycleResult>(slots), share<int32_t>(emitted), share<float>(emitted), share<int32_t>(emitted * kMaxTopLogprobs),
                share<float>(emitted * kMaxTopLogprobs), nullptr, nullptr};

    RequestParams quiet = params;
    quiet.logprobs = -1;
    quiet.stop_token_ids.clear();
    std::fill(params_.begin(), params_.end(), slot_params(quiet, 1, state_.tokens_stride));
    fill_rows();
  }

  int count() const { return slots_; }

  // From here on slot s has this seed + s.
  void seed(uint64_t first) {
    for (int slot = 0; slot < slots_; ++slot) params_[slot].seed = first + uint64_t(slot);
    backend_.upload(state_.params, params_.data(), params_.size() * sizeof(SlotParams));
  }

  // One cycle per slot; those of the first `wanted` are kept. uniforms: theirs, or nullptr.
  void run(int position, int wanted, const double* uniforms, Replay& to) {
    start(position);
    if (uniforms) backend_.upload(uniforms_, uniforms, size_t(wanted) * rows_.tau * sizeof(double));
    backend_.begin_cycle(state_);
    for (int step = 0; step < rows_.tau; ++step) {
      backend_.plan_draft(state_, step, draft_rows_.rows());
      backend_.sample_draft(state_, step);
    }
    backend_.plan_verify(state_, verify_rows_.rows());
    tokens_.resize(size_t(slots_) * state_.tokens_stride);
    backend_.download(tokens_.data(), state_.tokens, tokens_.size() * sizeof(int32_t));  // a rejected draft is overwritten by what replaces it
    backend_.accept(state_, target_logits_, rows_.vocab_size, results_);
    backend_.synchronize();
    for (int slot = 0; slot < wanted; ++slot) take(slot, position, to);
  }

 private:
  template <class T>
  T* make(size_t count) {
    buffers_.push_back(backend_.allocate(count * sizeof(T)));
    return buffers_.back().as<T>();
  }
  template <class T>
  T* share(size_t count) {
    buffers_.push_back(backend_.allocate_shared(count * sizeof(T)));
    return buffers_.back().as<T>();
  }

  // Where the plans will look for them: a pass has a row per slot, in their order, and a verify pass width_ of them.
  void fill_rows() {
    const size_t v = rows_.vocab_size, d = rows_.draft_vocab_size;
    for (int slot = 0; slot < slots_; ++slot) {
      backend_.upload(target_logits_ + size_t(slot) * width_ * v, rows_.target, width_ * v * sizeof(float));
      for (int step = 0; step < rows_.tau; ++step)
        backend_.upload(state_.draft_logits + (size_t(state_.draft_logits_row(step)) + slot) * d, rows_.draft + step * d, d * sizeof(float));
    }
  }

  // All models have read all but the last token.
  void start(int length) {
    const auto all = [&](int32_t* of, int32_t value) {
      integers_.assign(slots_, value);
      backend_.upload(of, integers_.data(), integers_.size() * sizeof(int32_t));
    };
    all(state_.length, length);
    all(state_.target_cached, length - 1);
    all(state_.draft_cached, length - 1);
    all(state_.running, 1);
    all(state_.wanted_tau, rows_.tau);
  }

  void take(int slot, int position, Replay& to) const {
    const CycleResult& result = results_.slot[slot];
    require(result.tau == rows_.tau && result.finish != kNumericFault, "[replay] rows must be finite and leave a token to choose");
    const int32_t* text = tokens_.data() + size_t(slot) * state_.tokens_stride + position;
    const int32_t* emitted = results_.tokens + size_t(slot) * width_;
    to.seed.push_back(params_[slot].seed);
    to.position.push_back(position);
    to.drafts.insert(to.drafts.end(), text, text + rows_.tau);
    to.accepted.push_back(result.accepted);
    for (int i = 0; i < width_; ++i) to.tokens.push_back(i < result.emitted ? emitted[i] : -1);
  }

  Backend& backend_;
  const ReplayRows rows_;
  const int width_, slots_;
  RowsBuffer draft_rows_, verify_rows_;
  std::vector<SlotParams> params_;
  std::vector<Buffer> buffers_;
  CycleState state_;
  CycleResults results_;
  float* target_logits_;
  double* uniforms_ = nullptr;
  std::vector<int32_t> integers_, tokens_;
};

}  // namespace

Replay replay(Backend& backend, Acceptance rule, const ReplayRows& rows, const RequestParams& params, int cycles, const double* uniforms) {
  check(rows, params, cycles, uniforms);
  std::optional<Slots> slots;
  {
    const TurnScope turn(backend);
    slots.emplace(backend, rule, rows, params, uniforms != nullptr);
  }
  Replay result;
  for (int done = 0, batch = 0; done < cycles; ++batch) {
    const TurnScope turn(backend);  // a batch each: other engines compute in between
    if (batch % kBatchesPerSeed == 0) slots->seed(params.seed + uint64_t(batch / kBatchesPerSeed) * uint64_t(slots->count()));
    const int wanted = std::min(slots->count(), cycles - done);
    slots->run(1 + batch % kBatchesPerSeed * (rows.tau + 1), wanted, uniforms ? uniforms + size_t(done) * rows.tau : nullptr, result);
    done += wanted;
  }
  return result;
}

}  // namespace paceline
