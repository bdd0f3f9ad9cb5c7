#include "decode/scheduler.h"

#include <algorithm>
#include <cmath>

#include "math/cycle_rules.h"
#include "math/fixed_sum.h"

namespace paceline {
namespace {

Cycle::Limits cycle_limits(const Backend& backend, const Model& target, const Model* draft, const EngineOptions& options) {
  const bool on_host = options.drafter != DrafterKind::model;  // who drafts there has to read what came out
  const int in_flight = on_host ? 1 : options.cycles_in_flight ? options.cycles_in_flight : backend.cycles_in_flight();
  const int vocab_limit = options.vocab_limit ? options.vocab_limit : target.vocab_size();
  return {options.max_num_seqs, draft || on_host ? options.num_speculative_tokens : 0, options.max_model_len, vocab_limit, options.acceptance,
          options.debug_hash, (draft || on_host) && options.trace_cycles > 0, in_flight,
          draft && (options.policy == Policy::budget || options.min_draft_confidence > 0), on_host};
}

PrefixCache::Pool pool_of(Model* model) {
  if (!model) return {nullptr, 0};
  return {&model->cache().pages(), model->cache().page_bytes()};
}

}  // namespace

Scheduler::Scheduler(Backend& backend, Model& target, Model* draft, const EngineOptions& options)
    : backend_(backend), target_(target), draft_(draft), options_(options),
      cycle_(backend, target, draft, cycle_limits(backend, target, draft, options)),
      drafter_(make_drafter(options.drafter, backend, {options.max_num_seqs, options.num_speculative_tokens, options.max_model_len, options.draft_cost})),
      prefix_cache_(pool_of(&target), pool_of(draft), options.prefix_cache_bytes), prefill_rows_(backend, options.prefill_chunk),
      verify_rows_(backend, options.max_num_seqs * (options.num_speculative_tokens + 1)),
      slot_taken_(options.max_num_seqs, false),
      controller_(make_controller({options.policy, cycle_.limits().tau_max, options.max_num_seqs, options.latency_target})),
      trace_(backend, options.trace_cycles, cycle_.limits().tau_max) {
  require(draft || options.drafter != DrafterKind::chain, "[Engine] drafter must be model or ngram without a draft, got chain");
  require(!draft || options.drafter != DrafterKind::ngram, "[Engine] drafter must be model or chain with a draft, got ngram");
  require(!drafter_->on_host() || options.policy == Policy::fixed, "[Engine] policy must be fixed where the host drafts, got another");
  require(may_propose() || options.num_speculative_tokens == 0, "[Engine] num_speculative_tokens must be 0 without a draft, got ",
          options.num_speculative_tokens);
  require(vocab_limit() <= target.vocab_size(), "[Engine] vocab_limit must be at most the target's vocab_size ", target.vocab_size(),
          ", got ", vocab_limit());
  require(target.vocab_size() <= kMaxVocabSize, "[Engine] vocab_size must be at most ", kMaxVocabSize, ", got ", target.vocab_size());
  if (cycle_.limits().may_stop_early) {
    cycle_.set_verify_budget(options.verify_budget);
    for (int slot = 0; slot < options.max_num_seqs; ++slot) cycle_.set_stop_below(slot, options.min_draft_confidence);
  }
  candidates_.reserve(options.max_num_seqs);
  choices_.reserve(options.max_num_seqs);
  judged_.reserve(options.max_num_seqs);
  const size_t logits = size_t(verify_rows_.capacity()) * target.vocab_size() * sizeof(float);
  verify_logits_ = backend.allocate(logits);
  verify_logprobs_ = backend.allocate(logits);
  prefill_stamps_ = backend.allocate_shared(2 * sizeof(int64_t));
}

void Scheduler::check(const std::vector<int32_t>& prompt, const RequestParams& params) const {
  require(may_propose() || params.num_speculative_tokens <= 0, "[generate] num_speculative_tokens must be 0 without a draft, got ",
          params.num_speculative_tokens);
  validate(params, vocab_limit(), cycle_.limits().tau_max);
  require(!prompt.empty(), "[generate] prompt must have at least 1 token, got 0");
  for (int32_t id : prompt)
    require(id >= 0 && id < vocab_limit(), "[generate] prompt token ids must be in [0, ", vocab_limit(), "), got ", id);
  const int length = int(prompt.size()), limit = options_.max_model_len;
  require(length < limit, "[generate] prompt must be shorter than max_model_len = ", limit, " tokens, got ", length);
  require(params.stop.empty() || !options_.token_bytes.empty(), "[generate] stop strings need a tokenizer, the engine has none");

  const int room = options_.kv_cache_tokens;
  if (length >= room || (params.max_tokens > 0 && length + std::min(params.max_tokens, limit - length) > room))
    throw CapacityError(message("[generate] prompt of ", length, " tokens and ",
                                params.max_tokens > 0 ? message("max_tokens = ", params.max_tokens) : "one more",
                                " do not fit into kv_cache_tokens = ", room, ": raise kv_cache_tokens in Engine(...)"));
}

// Tokens it has at most, once it ends.
int Scheduler::end_length(int prompt_length, const RequestParams& params) const {
  const int most = std::min(options_.max_model_len, options_.kv_cache_tokens);
  return params.max_tokens > 0 ? prompt_length + std::min(params.max_tokens, most - prompt_length) : most;  // a sum of both could overflow
}

Demand Scheduler::demand(int prompt_length, const RequestParams& params) const {
  const int end = end_length(prompt_length, params);
  return {1, target_.cache().pages().pages_for(end), draft_ ? draft_->cache().pages().pages_for(std::min(end, draft_->max_len())) : 0};
}

Demand Scheduler::capacity() const {
  return {options_.max_num_seqs, target_.cache().pages().num_pages(), draft_ ? draft_->cache().pages().num_pages() : 0};
}

int64_t Scheduler::add(std::vector<int32_t> prompt, RequestParams params) {
  check(prompt, params);
  auto sequence = std::make_unique<Sequence>();
  sequence->id = next_id_++;
  sequence->prompt_length = int(prompt.size());
  sequence->end_length = end_length(sequence->prompt_length, params);
  sequence->demand = demand(sequence->prompt_length, params);
  sequence->stops = StopStrings(params.stop);
  sequence->params = std::move(params);
  sequence->tokens = std::move(prompt);
  sequence->tokens.reserve(sequence->end_length);
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
  propose();
  prefill();
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
    if (!(promised_ + next.demand).fits(capacity())) return;
    enter(next, int(slot - slot_taken_.begin()));
    active_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

// What others have left of its beginning is cached already; not its last token, which belongs to the first cycle, cold or warm. Under
// `rejection` a sampled text depends on when drafts begin, so the draft begins where it would without the cache.
void Scheduler::enter(Sequence& sequence, int slot) {
  sequence.slot = slot;
  slot_taken_[slot] = true;
  promised_ += sequence.demand;
  drafter_->start(slot);
  cycle_.start(slot, slot_params(sequence.params, sequence.prompt_length, sequence.end_length), sequence.tokens);
  const bool with_draft = options_.acceptance == Acceptance::coupled || sequence.params.temperature == 0;
  const PrefixCache::Found found = prefix_cache_.adopt(slot, std::span(sequence.tokens).first(sequence.length() - 1), with_draft);
  if (found.target) cycle_.set_target_cached(slot, sequence.target_cached = found.target);
  if (found.draft) cycle_.set_draft_cached(slot, sequence.draft_cached = found.draft);
  sequence.stats.num_cached_prompt_tokens = found.target;
}

// A cycle still under way may write to the slot and its pages once more. Whoever gets them next is enqueued behind it. Pages that are kept
// it does not touch: it feeds the target from the last token that the device has committed, which is at length - 1 or later, and the draft
// from draft_cached, which never goes back.
void Scheduler::leave(Sequence& sequence, bool keep_pages) {
  if (sequence.slot < 0) return;
  cycle_.set_running(sequence.slot, false);
  const int fed = sequence.length() - 1;  // behind a stop string the device has gone on
  if (keep_pages)
    prefix_cache_.keep(sequence.slot, sequence.tokens, std::min(sequence.target_cached, fed), std::min(sequence.draft_cached, fed));
  target_.cache().truncate(sequence.slot, 0);
  if (draft_) draft_->cache().truncate(sequence.slot, 0);
  promised_ -= sequence.demand;
  slot_taken_[sequence.slot] = false;
  sequence.slot = -1;
}

// Whoever keeps to its promise gets its pages: those that only the prefix cache holds are as good as free.
bool Scheduler::reserve(bool draft, int slot, int positions) {
  return draft ? prefix_cache_.reserve_draft(slot, positions) : prefix_cache_.reserve_target(slot, positions);
}

// What each who takes part in the next cycle shall propose.
void Scheduler::choose_taus() {
  candidates_.clear();
  const int tau_max = cycle_.limits().tau_max, draft_len = draft_ ? draft_->max_len() : 0;
  for (const auto& each : active_) {
    if (lacks_prompt(*each)) continue;
    const int shortest = each->length() + each->in_flight, missing = each->length() - 1 - each->draft_cached;
    const int most = clamped_tau(tau_max, shortest, each->end_length, shortest - 1, draft_len);
    candidates_.push_back({each->id, most, missing > 1 ? missing : 0, each->params.num_speculative_tokens});
  }
  choices_.resize(candidates_.size());
  controller_->choose(candidates_, choices_);
  const TauChoice* choice = choices_.data();
  for (const auto& each : active_) {
    if (lacks_prompt(*each)) continue;
    each->wanted_tau = choice->tau;
    each->reason = choice++->reason;
  }
}

// What the host's drafter has for the next cycle. Before prompts are read: only a draft that is about to propose has to catch up.
void Scheduler::propose() {
  if (!drafter_->on_host()) return;
  for (const auto& each : active_) {
    const int own = each->params.num_speculative_tokens, wanted = own >= 0 ? own : cycle_.limits().tau_max;  // its policy is `fixed`
    const int length = each->length(), most = clamped_tau(wanted, length, each->end_length, length - 1, each->end_length);
    each->proposal = drafter_->propose(each->slot, each->tokens, most, cycle_.offers(each->slot));
  }
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
  bool draft_runs = false;
  Flight flight;
  choose_taus();
  for (const auto& each : active_) {
    Sequence& sequence = *each;
    if (lacks_prompt(sequence)) continue;
    const int shortest = sequence.length() + sequence.in_flight, longest = sequence.length() + sequence.in_flight_tokens;
    const int draft_len = draft_ ? draft_->max_len() : 0, draft_cached = sequence.in_flight ? shortest - 1 : sequence.draft_cached;
    const int by_draft = clamped_tau(sequence.wanted_tau, shortest, sequence.end_length, draft_cached, draft_len);
    const bool offers = sequence.proposal.length > 0 && (sequence.proposal.source != DraftSource::model || by_draft == 0);
    const int tau = offers ? sequence.proposal.length : by_draft;
    if (drafter_->on_host()) cycle_.set_offered(sequence.slot, offers ? tau : 0);
    draft_runs |= tau > 0 && !offers;
    sequence.proposal.length = 0;
    bool reserved = reserve(false, sequence.slot, std::min(target_reach(longest, tau), sequence.end_length));
    if (tau && !offers) reserved = reserved && reserve(true, sequence.slot, std::min({draft_reach(longest, tau), sequence.end_length, draft_len}));
    if (!reserved) throw EngineDead("[step] promised KV pages are not there");
    if (sequence.sent_tau != sequence.wanted_tau) cycle_.set_wanted_tau(sequence.slot, sequence.sent_tau = sequence.wanted_tau);
    if (!sequence.running) cycle_.set_running(sequence.slot, sequence.running = true);
    tau_max = std::max(tau_max, tau);
    positions = std::max(positions, std::min(longest + tau + 1, sequence.end_length));
    flight.parts.push_back({sequence.id, tau + 1, sequence.wanted_tau, sequence.reason, offers ? DraftSource::ngram : DraftSource::model});
    ++sequence.in_flight;
    sequence.in_flight_tokens += tau + 1;
  }
  if (flight.parts.empty()) return false;
  const SpanScope span(backend_, Span::launch, tau_max);
  profile_cycle();
  flight.cycle = cycles_launched_;
  flight.start = Clock::now();
  target_.cache().publish();
  if (draft_) draft_->cache().publish();
  cycle_.launch(tau_max, int(flight.parts.size()), positions, draft_runs);
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
  const SpanScope span(backend_, Span::collect, int64_t(flights_.front().parts.size()));
  cycle_.wait();
  plain_pass_seconds_.add(cycle_.verify_seconds());
  collected_ = std::move(flights_.front());
  flights_.pop_front();
  measure_host();
  const auto find = [&](const Flight::Part& part) {
    return std::find_if(active_.begin(), active_.end(), [&](const auto& each) { return each->id == part.request; });
  };
  std::erase_if(collected_.parts, [&](const Flight::Part& part) { return find(part) == active_.end(); });
  judged_.clear();
  for (const Flight::Part& part : collected_.parts) {
    Sequence& sequence = **find(part);
    --sequence.in_flight;
    sequence.in_flight_tokens -= part.most;
    commit(sequence, part, outputs);
  }
  controller_->observe(cost(), judged_);
  for (const auto& each : active_)
    if (each->slot < 0) controller_->forget(each->id);
  std::erase_if(active_, [](const auto& each) { return each->slot < 0; });
  if (active_.empty()) last_read_ = {};
}

// What the host took for the cycle whose results are there now: all that passed since those of the one before, its callers' time included,
// but for what the device did. Where a prefill pass or nothing at all came between, since its launch.
void Scheduler::measure_host() {
  const Clock::time_point now = Clock::now(), since = last_read_ == Clock::time_point{} ? collected_.start : last_read_;
  const double device = cycle_.draft_seconds() + cycle_.verify_seconds() + cycle_.sample_seconds();
  host_seconds_ = std::max(0.0, std::chrono::duration<double>(now - since).count() - device);
  last_read_ = now;
}

// Of the cycle that was read. Of who has ended since it was launched nothing is known but that it took part.
CycleCost Scheduler::cost() const {
  int drafts = 0, steps = 0;
  for (const Judged& each : judged_) drafts += each.tau, steps = std::max(steps, each.tau);
  const int sequences = int(collected_.parts.size());
  return {sequences, sequences + drafts, steps, cycle_.draft_seconds(), cycle_.verify_seconds(), cycle_.sample_seconds() + host_seconds_};
}

void Scheduler::learn(const std::vector<CycleCost>& cycles) {
  for (const CycleCost& c : cycles)
    require(c.sequences >= 1 && c.sequences <= options_.max_num_seqs && c.steps >= 0 && c.steps <= cycle_.limits().tau_max && c.rows >= c.sequences &&
                c.rows <= c.sequences * (c.steps + 1) && (c.steps == 0) == (c.rows == c.sequences) && c.draft >= 0 && c.verify >= 0 && c.rest >= 0 &&
                std::isfinite(c.total()),
            "[Engine] costs must be of cycles that this engine could run, got ", c.sequences, " sequences, ", c.rows, " rows, ", c.steps, " steps, ", c.total(), " s");
  for (const CycleCost& each : cycles) controller_->observe(each, {});
}

size_t Scheduler::workspace_bytes() const {
  return cycle_.workspace_bytes() + drafter_->bytes() + trace_.bytes() + prefill_rows_.bytes() + prefill_stamps_.bytes() + verify_rows_.bytes() + verify_logits_.bytes() +
         verify_logprobs_.bytes();
}

}  // namespace paceline
