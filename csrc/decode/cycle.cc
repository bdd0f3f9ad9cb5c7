#include "decode/cycle.h"

#include <algorithm>

namespace paceline {
namespace {

constexpr int kShortContext = 2048;  // positions of the first tier

// least, 4 least, 16 least ... and most: few graphs, and what one launches is at most four times what is there.
std::vector<int> tiers(int least, int most) {
  std::vector<int> all;
  for (; least < most; least *= 4) all.push_back(least);
  all.push_back(most);
  return all;
}

}  // namespace

// One cycle of speculative decoding (Leviathan et al. 2023, arXiv:2211.17192, Alg. 1; Daliri et al. 2024, arXiv:2408.07978
// for `coupled`). Nothing is read back and no branch depends on data: a slot that drafts less than tau simply has fewer rows.
// Plain decoding is tau = 0 of this very line.
void Cycle::enqueue(const Shape& shape, const Results& to) {
  const int tau = shape.tau;
  backend_.timestamp(to.stamps + 0);
  backend_.begin_cycle(state_);

  // 1. The draft proposes tau tokens, one at a time, where the host has not. Its first pass also feeds the row it lacks after full acceptance.
  for (int step = 0; step < (shape.draft_runs ? tau : 0); ++step) {
    const SpanScope span(backend_, Span::draft, step);
    const Rows rows = shape.bound(draft_rows_.rows(), step == 0 ? 2 : 1);
    backend_.plan_draft(state_, step, rows);
    draft_->forward(rows, state_.draft_logits + size_t(state_.draft_logits_row(step)) * state_.draft_vocab_size);
    if (step == 0 && limits_.records) backend_.record_catch_up(state_, to.evidence);
    backend_.sample_draft(state_, step);
  }
  backend_.timestamp(to.stamps + 1);

  // 2. The target scores all tau + 1 positions in one pass.
  const Rows rows = shape.bound(verify_rows_.rows(), tau + 1);
  {
    const SpanScope span(backend_, Span::verify, rows.capacity);
    backend_.plan_verify(state_, rows);
    target_.forward(rows, target_logits_);
  }
  backend_.timestamp(to.stamps + 2);

  // 3. The longest prefix the target agrees to stays, one token of its own follows; lengths move, and with them both caches.
  backend_.accept(state_, target_logits_, target_.vocab_size(), to.device);
  if (limits_.records) backend_.record_cycle(state_, rows, target_logits_, target_.vocab_size(), to.device, to.evidence);
  backend_.timestamp(to.stamps + 3);
  backend_.count_up(finished_);
}

Cycle::Cycle(Backend& backend, Model& target, Model* draft, const Limits& limits)
    : backend_(backend), target_(target), draft_(draft), limits_(limits), width_(limits.tau_max + 1),
      draft_rows_(backend, 2 * limits.num_slots), verify_rows_(backend, limits.num_slots * (limits.tau_max + 1)) {
  backend.prepare_sampling(limits.num_slots, limits.tau_max, limits.acceptance, std::max(target.vocab_size(), draft ? draft->vocab_size() : 0));
  const size_t slots = limits.num_slots, emitted = slots * width_;
  const int draft_vocab = draft ? draft->vocab_size() : 0;
  state_ = CycleState{};
  state_.num_slots = limits.num_slots;
  state_.tau_max = limits.tau_max;
  state_.tokens_stride = limits.max_len + width_;
  state_.vocab_limit = limits.vocab_limit;
  state_.draft_vocab_limit = std::min(draft_vocab, limits.vocab_limit);
  state_.draft_vocab_size = draft_vocab;
  state_.draft_max_len = draft ? draft->max_len() : 0;
  state_.acceptance = limits.acceptance;
  state_.tokens = make<int32_t>(slots * state_.tokens_stride);
  for (int32_t** each : {&state_.length, &state_.running, &state_.wanted_tau, &state_.proposed, &state_.drafting, &state_.target_cached,
                         &state_.draft_cached, &state_.draft_fed, &state_.first_row, &state_.draft_fault, &state_.looked})
    *each = make<int32_t>(slots);
  state_.offered = share<int32_t>(slots);
  state_.offers = share<int32_t>(slots * limits.tau_max);
  state_.draft_row = make<int32_t>(slots * width_);
  state_.may_stop_early = limits.may_stop_early;
  state_.stop_below = make<float>(slots);
  state_.verify_budget = make<int32_t>(1);
  state_.confidence = make<double>(slots);
  state_.row_confidence = make<float>(limits.may_stop_early ? slots * limits.tau_max : 0);
  state_.params = make<SlotParams>(slots);
  state_.draft_logits = make<float>(limits.tau_max ? slots * width_ * draft_vocab : 0);
  target_logits_ = make<float>(emitted * target.vocab_size());
  finished_ = share<int64_t>(1);
  double* extra_probability = make<double>(limits.records ? slots : 0);
  for (int positions : tiers(kShortContext, limits.max_len + width_))
    for (int sequences : tiers(1, limits.num_slots))
      for (int tau = 0; tau <= limits.tau_max; ++tau) {
        if (!draft || limits.host_drafts || tau == 0) shapes_.push_back({tau, sequences, positions, false});
        if (draft && tau > 0) shapes_.push_back({tau, sequences, positions, true});
      }
  ring_.resize(limits.in_flight);
  for (Results& results : ring_) {
    results.device = {share<CycleResult>(slots), share<int32_t>(emitted), share<float>(emitted), share<int32_t>(emitted * kMaxTopLogprobs),
                      share<float>(emitted * kMaxTopLogprobs), limits.hash_logits ? share<uint64_t>(emitted) : nullptr,
                      limits.may_stop_early ? share<float>(slots * limits.tau_max) : nullptr};
    if (limits.records) {
      const size_t drafts = slots * limits.tau_max;
      results.evidence = {share<int32_t>(1), share<int32_t>(drafts), share<float>(drafts), share<float>(drafts),
                          share<float>(drafts), share<float>(slots), extra_probability};
    }
    results.stamps = share<int64_t>(4);
    for (const Shape& shape : shapes_) {
      const SpanScope span(backend_, Span::graph_capture, shape.tau);
      results.graphs.push_back(backend_.capture([this, &shape, &results] { enqueue(shape, results); }));
    }
  }
}

// Cycles under way write to memory that goes now.
Cycle::~Cycle() {
  try {
    if (in_flight()) backend_.synchronize();
  } catch (const std::exception&) {  // a device that failed runs nothing any more
  }
}

template <class T>
T* Cycle::make(size_t count) {
  buffers_.push_back(backend_.allocate(count * sizeof(T)));
  return buffers_.back().as<T>();
}

template <class T>
T* Cycle::share(size_t count) {
  buffers_.push_back(backend_.allocate_shared(count * sizeof(T)));
  return buffers_.back().as<T>();
}

void Cycle::start(int slot, const SlotParams& params, const std::vector<int32_t>& tokens) {
  const int32_t length = int32_t(tokens.size()), none = 0;
  backend_.upload(state_.params + slot, &params, sizeof params);
  backend_.upload(state_.tokens + size_t(slot) * state_.tokens_stride, tokens.data(), tokens.size() * sizeof(int32_t));
  backend_.upload(state_.length + slot, &length, sizeof length);
  for (int32_t* each : {state_.running, state_.wanted_tau, state_.target_cached, state_.draft_cached})
    backend_.upload(each + slot, &none, sizeof none);
}

void Cycle::set_target_cached(int slot, int positions) { backend_.upload(state_.target_cached + slot, &positions, sizeof positions); }
void Cycle::set_draft_cached(int slot, int positions) { backend_.upload(state_.draft_cached + slot, &positions, sizeof positions); }
void Cycle::set_wanted_tau(int slot, int tau) { backend_.upload(state_.wanted_tau + slot, &tau, sizeof tau); }
void Cycle::set_stop_below(int slot, float confidence) { backend_.upload(state_.stop_below + slot, &confidence, sizeof confidence); }
void Cycle::set_verify_budget(int rows) { backend_.upload(state_.verify_budget, &rows, sizeof rows); }
void Cycle::set_running(int slot, bool running) {
  const int32_t value = running;
  backend_.upload(state_.running + slot, &value, sizeof value);
}

Rows Cycle::Shape::bound(Rows rows, int per_sequence) const {
  rows.capacity = std::min(rows.capacity, sequences * per_sequence);
  rows.positions = positions;
  return rows;
}

void Cycle::launch(int tau, int sequences, int positions, bool draft_runs) {
  draft_runs = draft_runs && draft_ && tau > 0;
  const auto fits = [&](const Shape& shape) {
    return shape.tau == tau && shape.draft_runs == draft_runs && shape.sequences >= sequences && shape.positions >= positions;
  };
  const size_t shape = std::find_if(shapes_.begin(), shapes_.end(), fits) - shapes_.begin();
  ring_[launched_++ % ring_.size()].graphs.at(shape)->launch();
}

void Cycle::wait() { backend_.wait_for(finished_, ++read_); }

size_t Cycle::workspace_bytes() const {
  size_t total = draft_rows_.bytes() + verify_rows_.bytes();
  for (const Buffer& buffer : buffers_) total += buffer.bytes();
  return total;
}

}  // namespace paceline
