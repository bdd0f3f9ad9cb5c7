#include "decode/scheduler.h"

#include <algorithm>

#include "math/cycle_rules.h"
#include "math/fixed_sum.h"

namespace paceline {
namespace {

Cycle::Limits cycle_limits(const Model& target, const Model* draft, const EngineOptions& options) {
  const int vocab_limit = options.vocab_limit ? options.vocab_limit : target.vocab_size();
  return {options.max_num_seqs, draft ? options.num_speculative_tokens : 0, options.max_model_len, vocab_limit, options.acceptance,
          options.debug_hash};
}

SlotParams slot_params(const RequestParams& p, int prompt_length, int end_length) {
  SlotParams slot{};
  slot.temperature = p.temperature;
  slot.top_p = p.top_p;
  slot.min_p = p.min_p;
  slot.top_k = p.top_k;
  slot.repetition_penalty = float(p.repetition_penalty);
  slot.frequency_penalty = float(p.frequency_penalty);
  slot.presence_penalty = float(p.presence_penalty);
  slot.seed = p.seed;
  slot.prompt_length = prompt_length;
  slot.end_length = end_length;
  slot.min_length = prompt_length + p.min_tokens;
  slot.num_logprobs = p.logprobs;
  for (const auto& [id, bias] : p.logit_bias) {
    slot.bias_id[slot.num_bias] = id;
    slot.bias[slot.num_bias++] = float(bias);
  }
  for (int id : p.stop_token_ids) slot.stop_id[slot.num_stop++] = id;
  return slot;
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

Scheduler::Scheduler(Backend& backend, Model& target, Model* draft, const EngineOptions& options)
    : backend_(backend), target_(target), draft_(draft), options_(options),
      cycle_(backend, target, draft, cycle_limits(target, draft, options)), prefill_rows_(backend, options.prefill_chunk),
      verify_rows_(backend, options.max_num_seqs * (options.num_speculative_tokens + 1)),
      slot_taken_(options.max_num_seqs, false) {
  require(draft || options.num_speculative_tokens == 0, "[Engine] num_speculative_tokens must be 0 without a draft, got ",
          options.num_speculative_tokens);
  require(vocab_limit() <= target.vocab_size(), "[Engine] vocab_limit must be at most the target's vocab_size ", target.vocab_size(),
          ", got ", vocab_limit());
  require(target.vocab_size() <= kMaxVocabSize, "[Engine] vocab_size must be at most ", kMaxVocabSize, ", got ", target.vocab_size());
  const size_t logits = size_t(verify_rows_.capacity()) * target.vocab_size() * sizeof(float);
  verify_logits_ = backend.allocate(logits);
  verify_logprobs_ = backend.allocate(logits);
}

void Scheduler::check(const std::vector<int32_t>& prompt, const RequestParams& params) const {
  require(draft_ || params.num_speculative_tokens <= 0, "[generate] num_speculative_tokens must be 0 without a draft, got ",
          params.num_speculative_tokens);
  validate(params, vocab_limit(), cycle_.limits().tau_max);
  require(!prompt.empty(), "[generate] prompt must have at least 1 token, got 0");
  for (int32_t id : prompt)
    require(id >= 0 && id < vocab_limit(), "[generate] prompt token ids must be in [0, ", vocab_limit(), "), got ", id);
  const int length = int(prompt.size()), limit = options_.max_model_len;
  require(length < limit, "[generate] prompt must be shorter than max_model_len = ", limit, " tokens, got ", length);
  require(params.stop.empty() || !options_.token_bytes.empty(), "[generate] stop strings need a tokenizer, the engine has none");

  const int room = options_.kv_cache_tokens;
  if (length >= room || (params.max_tokens > 0 && std::min(limit, length + params.max_tokens) > room))
    throw CapacityError(message("[generate] prompt of ", length, " tokens and ",
                                params.max_tokens > 0 ? message("max_tokens = ", params.max_tokens) : "one more",
                                " do not fit into kv_cache_tokens = ", room, ": raise kv_cache_tokens in Engine(...)"));
}

int64_t Scheduler::add(const std::vector<int32_t>& prompt, const RequestParams& params) {
  check(prompt, params);
  const int length = int(prompt.size()), limit = options_.max_model_len, room = options_.kv_cache_tokens;
  auto sequence = std::make_unique<Sequence>();
  sequence->id = next_id_++;
  sequence->params = params;
  sequence->tokens = prompt;
  sequence->prompt_length = length;
  sequence->end_length = std::min(limit, room);
  if (params.max_tokens > 0) sequence->end_length = std::min(sequence->end_length, length + params.max_tokens);
  sequence->tokens.reserve(sequence->end_length);
  sequence->target_pages = target_.cache().pages().pages_for(sequence->end_length);
  if (draft_) sequence->draft_pages = draft_->cache().pages().pages_for(std::min(sequence->end_length, draft_->max_len()));
  sequence->stops = StopStrings(params.stop);
  sequence->added = Clock::now();
  waiting_.push_back(std::move(sequence));
  return waiting_.back()->id;
}

void Scheduler::cancel(int64_t id) {
  if (id < next_id_) cancelled_.push_back(id);  // not one that a later request will get
}

std::vector<Output> Scheduler::step() {
  std::vector<Output> outputs;
  drop_cancelled(outputs);
  admit();
  // The draft's prompt is cached only after the first token is out: time to first token does not pay for speculation.
  if (draft_) prefill(true);
  prefill(false);
  run_cycle(outputs);
  return outputs;
}

// First come, first served, by pages promised: whoever runs can always reach its end without waiting for a page.
void Scheduler::admit() {
  while (!waiting_.empty()) {
    Sequence& next = *waiting_.front();
    const auto slot = std::find(slot_taken_.begin(), slot_taken_.end(), false);
    if (slot == slot_taken_.end()) return;
    if (promised_target_ + next.target_pages > target_.cache().pages().num_pages()) return;
    if (draft_ && promised_draft_ + next.draft_pages > draft_->cache().pages().num_pages()) return;
    enter(next, int(slot - slot_taken_.begin()));
    active_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

void Scheduler::enter(Sequence& sequence, int slot) {
  sequence.slot = slot;
  slot_taken_[slot] = true;
  promised_target_ += sequence.target_pages;
  promised_draft_ += sequence.draft_pages;
  cycle_.start(slot, slot_params(sequence.params, sequence.prompt_length, sequence.end_length), sequence.tokens);
}

void Scheduler::leave(Sequence& sequence) {
  if (sequence.slot < 0) return;
  cycle_.set_running(sequence.slot, false);
  target_.cache().truncate(sequence.slot, 0);
  if (draft_) draft_->cache().truncate(sequence.slot, 0);
  promised_target_ -= sequence.target_pages;
  promised_draft_ -= sequence.draft_pages;
  slot_taken_[sequence.slot] = false;
  sequence.slot = -1;
}

// One pass of at most prefill_chunk rows over what the sequences lack, oldest first. The target caches the prompt but for
// its last token, which belongs to the first cycle; the draft catches up to one row short of that, once tokens are out.
void Scheduler::prefill(bool draft) {
  Model& model = draft ? *draft_ : target_;
  std::vector<int32_t> slots, positions, tokens;
  const auto start = Clock::now();
  std::vector<Sequence*> fed;
  for (const auto& each : active_) {
    Sequence& sequence = *each;
    if (draft && (!sequence.emitted_any() || sequence.draft_cached >= sequence.length() - 2 || !can_draft(sequence))) continue;
    int& cached = draft ? sequence.draft_cached : sequence.target_cached;
    const int end = std::min(sequence.length() - 1, cached + prefill_rows_.capacity() - int(tokens.size()));
    if (end <= cached) continue;
    if (!model.cache().reserve(sequence.slot, end)) throw EngineDead("[step] promised KV pages are not there");
    for (int position = cached; position < end; ++position) {
      const int32_t token = sequence.tokens[position];
      slots.push_back(sequence.slot);
      positions.push_back(position);
      tokens.push_back(token < model.vocab_size() ? token : 0);
    }
    cached = end;
    fed.push_back(&sequence);
  }
  if (tokens.empty()) return;
  model.cache().publish();
  prefill_rows_.fill(slots, positions, tokens);
  model.forward(prefill_rows_.rows(), nullptr);
  backend_.synchronize();
  for (Sequence* sequence : fed) {
    sequence->stats.prefill_time += seconds_since(start);
    if (draft) cycle_.set_draft_cached(sequence->slot, sequence->draft_cached);
    else cycle_.set_target_cached(sequence->slot, sequence->target_cached);
  }
}

int Scheduler::wanted_tau(const Sequence& sequence) const {
  const int own = sequence.params.num_speculative_tokens;
  return own >= 0 ? own : cycle_.limits().tau_max;
}

// Whether a draft whose cache had caught up would get to propose anything, now or later: both limits only come nearer.
bool Scheduler::can_draft(const Sequence& sequence) const {
  const int length = sequence.length();
  return clamped_tau(wanted_tau(sequence), length, sequence.end_length, length - 1, draft_->max_len()) > 0;
}

void Scheduler::run_cycle(std::vector<Output>& outputs) {
  int tau_max = 0;
  bool any = false;
  for (const auto& each : active_) {
    Sequence& sequence = *each;
    if (sequence.target_cached < sequence.length() - 1) continue;  // still prefilling
    const int draft_len = draft_ ? draft_->max_len() : 0;
    const int tau = clamped_tau(wanted_tau(sequence), sequence.length(), sequence.end_length, sequence.draft_cached, draft_len);
    bool reserved = target_.cache().reserve(sequence.slot, target_reach(sequence.length(), tau));
    if (tau) reserved = reserved && draft_->cache().reserve(sequence.slot, draft_reach(sequence.length(), tau));
    if (!reserved) throw EngineDead("[step] promised KV pages are not there");
    cycle_.set_wanted_tau(sequence.slot, tau);
    if (!sequence.running) cycle_.set_running(sequence.slot, sequence.running = true);
    tau_max = std::max(tau_max, tau);
    any = true;
  }
  if (!any) return;
  target_.cache().publish();
  if (draft_) draft_->cache().publish();
  cycle_.run(tau_max);
  for (const auto& each : active_)
    if (each->running) commit(*each, outputs);
  std::erase_if(active_, [](const auto& each) { return each->slot < 0; });
}

// The device has committed; the host takes over what it says, and cuts it where only the host can tell (stop strings).
void Scheduler::commit(Sequence& sequence, std::vector<Output>& outputs) {
  const int slot = sequence.slot;
  const CycleResult& result = cycle_.result(slot);
  Output& output = outputs.emplace_back();
  output.request = sequence.id;
  FinishReason reason = FinishReason::none;
  if (result.finish == kStopToken) reason = FinishReason::stop;
  if (result.finish == kLengthLimit) reason = FinishReason::length;
  if (result.finish == kNumericFault) {
    reason = FinishReason::error;
    output.error = message("[generate] the target's logits for position ", result.first_position + result.emitted,
                           result.fault == kRowEmpty ? " leave no token to choose" : " hold NaN or infinity");
  }

  int kept = 0;
  while (kept < result.emitted) {
    const int token = cycle_.tokens(slot)[kept++];
    output.tokens.push_back(token);
    if (options_.token_bytes.empty()) continue;
    if (const std::string* stop = sequence.stops.feed(options_.token_bytes[token])) {
      reason = FinishReason::stop;
      output.stop_string = *stop;
      output.error.clear();
      break;
    }
  }
  if (reason == FinishReason::stop && output.stop_string.empty()) output.stop_token = output.tokens.back();
  if (sequence.params.logprobs >= 0)
    for (int i = 0; i < kept; ++i) {
      output.logprobs.push_back(cycle_.logprobs(slot)[i]);
      auto& top = output.top_logprobs.emplace_back();
      for (int k = 0; k < std::min(sequence.params.logprobs, vocab_limit()); ++k)
        top.push_back({cycle_.top_ids(slot, i)[k], cycle_.top_logprobs(slot, i)[k]});
    }

  if (!sequence.emitted_any() && kept) {
    sequence.first_token = Clock::now();
    sequence.stats.time_to_first_token = std::chrono::duration<double>(sequence.first_token - sequence.added).count();
  }
  output.tau = result.tau;
  output.accepted = std::min(result.accepted, kept);
  RequestStats& stats = sequence.stats;
  stats.count_cycle(output.tau, output.accepted, kept);
  output.verify_time = cycle_.verify_seconds();
  output.sample_time = cycle_.sample_seconds();
  stats.draft_time += cycle_.draft_seconds();
  stats.verify_time += output.verify_time;
  stats.sample_time += output.sample_time;

  sequence.tokens.insert(sequence.tokens.end(), output.tokens.begin(), output.tokens.end());
  sequence.target_cached = result.target_cached;
  sequence.draft_cached = result.draft_cached;
  if (options_.debug_hash)
    for (int i = 0; i < kept; ++i) sequence.logits_hash = (sequence.logits_hash ^ cycle_.row_hashes(slot)[i]) * 0x9E3779B97F4A7C15u;
  output.logits_hash = sequence.logits_hash;
  if (reason != FinishReason::none) return finish(sequence, output, reason);
  target_.cache().truncate(slot, sequence.length());
  if (draft_) draft_->cache().truncate(slot, sequence.length());
}

void Scheduler::finish(Sequence& sequence, Output& output, FinishReason reason) {
  output.finish = reason;
  output.request = sequence.id;
  if (sequence.emitted_any()) sequence.stats.decode_time = seconds_since(sequence.first_token);
  sequence.stats.num_requests = 1;
  output.stats = sequence.stats;
  stats_ += sequence.stats;
  if (options_.debug_hash && sequence.slot >= 0) {
    output.target_kv_hashes = target_.cache().hashes(sequence.slot, std::min(sequence.target_cached, sequence.length() - 1), target_.shape());
    if (draft_) output.draft_kv_hashes = draft_->cache().hashes(sequence.slot, std::min(sequence.draft_cached, sequence.length() - 1), draft_->shape());
  }
  leave(sequence);
}

void Scheduler::drop_cancelled(std::vector<Output>& outputs) {
  for (int64_t id : cancelled_) {
    const auto is_it = [id](const auto& each) { return each->id == id; };
    const auto waiting = std::find_if(waiting_.begin(), waiting_.end(), is_it);
    const auto active = std::find_if(active_.begin(), active_.end(), is_it);
    if (waiting != waiting_.end()) {
      finish(**waiting, outputs.emplace_back(), FinishReason::cancelled);
      waiting_.erase(waiting);
    } else if (active != active_.end()) {
      finish(**active, outputs.emplace_back(), FinishReason::cancelled);
      active_.erase(active);
    }
  }
  cancelled_.clear();
}

size_t Scheduler::workspace_bytes() const {
  return cycle_.workspace_bytes() + prefill_rows_.bytes() + verify_rows_.bytes() + verify_logits_.bytes() + verify_logprobs_.bytes();
}

}  // namespace paceline
