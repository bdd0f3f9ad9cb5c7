#include "decode/scheduler.h"

#include <algorithm>
#include <cmath>

#include "math/fixed_sum.h"

namespace paceline {
namespace {

Cycle::Limits cycle_limits(const Backend& backend, const Model& target, const Model* draft, const EngineOptions& options) {
  const bool on_host = options.drafter != DrafterKind::model;  // who drafts there has to read what came out
  const int in_flight = on_host ? 1 : options.cycles_in_flight ? options.cycles_in_flight : backend.cycles_in_flight();
  const int vocab_limit = options.vocab_limit ? options.vocab_limit : target.vocab_size();
  return {options.max_num_seqs, draft || on_host ? options.num_speculative_tokens : 0, options.max_model_len, vocab_limit, options.acceptance,
          options.debug_hash, (draft || on_host) && options.trace_cycles > 0, in_flight,
          draft && (options.policy != Policy::fixed || options.min_draft_confidence > 0), on_host};
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
  require(!drafter_->on_host() || options.policy != Policy::budget, "[Engine] policy must not be \"budget\" where the host drafts: a budget goes by how sure the draft is");
  require(may_propose() || options.num_speculative_tokens == 0, "[Engine] num_speculative_tokens must be 0 without a draft, got ",
          options.num_speculative_tokens);
  require(vocab_limit() <= target.vocab_size(), "[Engine] vocab_limit must be at most the target's vocab_size ", target.vocab_size(),
          ", got ", vocab_limit());
  require(target.vocab_size() <= kMaxVocabSize, "[Engine] vocab_size must be at most ", kMaxVocabSize, ", got ", target.vocab_size());
  if (cycle_.limits().may_stop_early) {
    cycle_.set_verify_budget(options.verify_budget);
    for (int slot = 0; slot < options.max_num_seqs; ++slot) cycle_.set_stop_below(slot, 0);
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

void Scheduler::learn(const std::vector<CycleCost>& cycles) {
  for (const CycleCost& c : cycles)
    require(c.sequences >= 1 && c.sequences <= options_.max_num_seqs && c.steps >= 0 && c.steps <= cycle_.limits().tau_max && c.rows >= c.sequences &&
                c.rows <= c.sequences * (cycle_.limits().tau_max + 1) && c.draft >= 0 && c.verify >= 0 && c.rest >= 0 &&
                std::isfinite(c.total()),
            "[Engine] costs must be of cycles that this engine could run, got ", c.sequences, " sequences, ", c.rows, " rows, ", c.steps, " steps, ", c.total(), " s");
  for (const CycleCost& each : cycles) controller_->observe(each, {});
}

size_t Scheduler::workspace_bytes() const {
  return cycle_.workspace_bytes() + drafter_->bytes() + trace_.bytes() + prefill_rows_.bytes() + prefill_stamps_.bytes() + verify_rows_.bytes() + verify_logits_.bytes() +
         verify_logprobs_.bytes();
}

}  // namespace paceline
