#include "decode/scheduler.h"

#include <algorithm>

#include "math/cycle_rules.h"
#include "math/fixed_sum.h"

namespace paceline {
namespace {

Cycle::Limits cycle_limits(const Backend& backend, const Model& target, const Model* draft, const EngineOptions& options) {
  const int in_flight = options.cycles_in_flight ? options.cycles_in_flight : backend.cycles_in_flight();
  const int vocab_limit = options.vocab_limit ? options.vocab_limit : target.vocab_size();
  return {options.max_num_seqs, draft ? options.num_speculative_tokens : 0, options.max_model_len, vocab_limit, options.acceptance,
          options.debug_hash, in_flight};
}

// Beyond these T times the noise would be subnormal, which machines treat differently, or infinite. Nothing is lost: below, all but exact
// ties of the best logit have weight 0; above, all logits that differ by less than 10^38 have the same one.
constexpr double kSmallestTemperature = 0x1p-1000, kLargestTemperature = 0x1p1000;

SlotParams slot_params(const RequestParams& p, int prompt_length, int end_length) {
  SlotParams slot{};
  slot.temperature = p.temperature < kSmallestTemperature ? 0.0 : std::min(p.temperature, kLargestTemperature);
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

}  // namespace

Scheduler::Scheduler(Backend& backend, Model& target, Model* draft, const EngineOptions& options)
    : backend_(backend), target_(target), draft_(draft), options_(options),
      cycle_(backend, target, draft, cycle_limits(backend, target, draft, options)), prefill_rows_(backend, options.prefill_chunk),
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
  for (const size_t before = outputs.size(); outputs.size() == before;) {
    while (flights_.empty() ? launch() : cycle_.in_flight() < cycle_.limits().in_flight && may_run_ahead() && launch()) {
    }
    if (flights_.empty()) break;  // nobody decodes yet
    collect(outputs);
  }
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

// A cycle still under way may write to the slot and its pages once more. Whoever gets them next is enqueued behind it.
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
    if (draft && (sequence.in_flight || !catch_up_due(sequence))) continue;
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
  const SpanScope span(backend_, Span::prefill, int64_t(tokens.size()));
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

// Tokens are out, and the draft lacks more rows than its first pass of a cycle feeds.
bool Scheduler::catch_up_due(const Sequence& sequence) const {
  return draft_ && sequence.emitted_any() && sequence.draft_cached < sequence.length() - 2 && can_draft(sequence);
}

// Whether a cycle can follow one whose results are not read yet: nobody waits for the host meanwhile, and somebody is sure to go on.
bool Scheduler::may_run_ahead() const {
  bool any = false;
  for (const auto& each : active_) {
    if (!each->running) continue;
    if (!each->emitted_any() || catch_up_due(*each)) return false;
    any |= each->length() + each->in_flight < each->end_length;
  }
  return any;
}

// One cycle of all whose prompt is cached. With cycles under way the host knows lengths only from both sides: pages are reserved for the
// longest, tau is bounded by the shortest, and the device, which knows, clamps it. False: there is nobody.
bool Scheduler::launch() {
  int tau_max = 0, positions = 0;
  Flight flight;
  for (const auto& each : active_) {
    Sequence& sequence = *each;
    if (sequence.target_cached < sequence.length() - 1) continue;  // still prefilling
    const int shortest = sequence.length() + sequence.in_flight, longest = sequence.length() + sequence.in_flight_tokens;
    const int draft_len = draft_ ? draft_->max_len() : 0, draft_cached = sequence.in_flight ? shortest - 1 : sequence.draft_cached;
    const int tau = clamped_tau(wanted_tau(sequence), shortest, sequence.end_length, draft_cached, draft_len);
    bool reserved = target_.cache().reserve(sequence.slot, std::min(target_reach(longest, tau), sequence.end_length));
    if (tau) reserved = reserved && draft_->cache().reserve(sequence.slot, std::min({draft_reach(longest, tau), sequence.end_length, draft_len}));
    if (!reserved) throw EngineDead("[step] promised KV pages are not there");
    if (sequence.sent_tau != wanted_tau(sequence)) cycle_.set_wanted_tau(sequence.slot, sequence.sent_tau = wanted_tau(sequence));
    if (!sequence.running) cycle_.set_running(sequence.slot, sequence.running = true);
    tau_max = std::max(tau_max, tau);
    positions = std::max(positions, std::min(longest + tau + 1, sequence.end_length));
    flight.emits.emplace_back(sequence.id, tau + 1);
    ++sequence.in_flight;
    sequence.in_flight_tokens += tau + 1;
  }
  if (flight.emits.empty()) return false;
  const SpanScope span(backend_, Span::launch, tau_max);
  profile_cycle();
  target_.cache().publish();
  if (draft_) draft_->cache().publish();
  cycle_.launch(tau_max, int(flight.emits.size()), positions);
  flights_.push_back(std::move(flight));
  return true;
}

// The profiler's window over cycles, if there is one.
void Scheduler::profile_cycle() {
  ++cycles_launched_;
  if (cycles_launched_ == options_.profile_first) backend_.profile(true);
  if (options_.profile_first && cycles_launched_ == options_.profile_last + 1) backend_.profile(false);
}

// The results of the oldest cycle under way. Who has ended since it was launched, or ended in the cycle before it, has none.
void Scheduler::collect(std::vector<Output>& outputs) {
  const SpanScope span(backend_, Span::collect, int64_t(flights_.front().emits.size()));
  cycle_.wait();
  const Flight flight = std::move(flights_.front());
  flights_.pop_front();
  for (const auto& [id, most] : flight.emits) {
    const auto found = std::find_if(active_.begin(), active_.end(), [id = id](const auto& each) { return each->id == id; });
    if (found == active_.end()) continue;
    --(*found)->in_flight;
    (*found)->in_flight_tokens -= most;
    commit(**found, outputs);
  }
  std::erase_if(active_, [](const auto& each) { return each->slot < 0; });
}

size_t Scheduler::workspace_bytes() const {
  return cycle_.workspace_bytes() + prefill_rows_.bytes() + verify_rows_.bytes() + verify_logits_.bytes() + verify_logprobs_.bytes();
}

}  // namespace paceline
