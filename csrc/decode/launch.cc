// Cycles on their way: who takes part with how many drafts, what the device is given, and what is read back.
#include <algorithm>
#include <utility>

#include "decode/scheduler.h"
#include "math/cycle_rules.h"

namespace paceline {

// What each who takes part in the next cycle shall propose.
void Scheduler::choose_taus() {
  candidates_.clear();
  const int tau_max = cycle_.limits().tau_max, draft_len = draft_ ? draft_->max_len() : 0;
  for (const auto& each : active_) {
    if (lacks_prompt(*each)) continue;
    const int shortest = each->length() + each->in_flight, missing = each->length() - 1 - each->draft_cached;
    const bool on_host = each->proposal.source == DraftSource::ngram;
    const int most = on_host ? each->proposal.length : clamped_tau(tau_max, shortest, each->end_length, shortest - 1, draft_len);
    candidates_.push_back({each->id, most, missing > 1 && !on_host ? missing : 0, each->params.num_speculative_tokens, each->proposal.source, each->proposal.match});
  }
  choices_.resize(candidates_.size());
  controller_->choose(candidates_, choices_);
  const TauChoice* choice = choices_.data();
  for (const auto& each : active_) {
    if (lacks_prompt(*each)) continue;
    each->wanted_tau = choice->tau, each->reason = choice->reason;
    each->stop_below = std::max(choice++->stop_below, options_.min_draft_confidence);
  }
}

// What the host's drafter has for the next cycle. Before prompts are read: only a draft that is about to propose has to catch up.
void Scheduler::propose() {
  if (!drafter_->on_host()) return;
  if (const double cost = controller_->draft_cost(); cost > 0) drafter_->set_draft_cost(cost);
  for (const auto& each : active_) {
    const int own = each->params.num_speculative_tokens, wanted = own >= 0 ? own : cycle_.limits().tau_max;
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
    const int tau = offers ? std::min(sequence.proposal.length, sequence.wanted_tau) : by_draft;
    if (drafter_->on_host()) cycle_.set_offered(sequence.slot, offers ? tau : 0);
    draft_runs |= tau > 0 && !offers;
    bool reserved = reserve(false, sequence.slot, std::min(target_reach(longest, tau), sequence.end_length));
    if (tau && !offers) reserved = reserved && reserve(true, sequence.slot, std::min({draft_reach(longest, tau), sequence.end_length, draft_len}));
    if (!reserved) throw EngineDead("[step] promised KV pages are not there");
    if (sequence.sent_tau != sequence.wanted_tau) cycle_.set_wanted_tau(sequence.slot, sequence.sent_tau = sequence.wanted_tau);
    if (cycle_.limits().may_stop_early && tau > 0 && sequence.sent_stop_below != sequence.stop_below)
      cycle_.set_stop_below(sequence.slot, sequence.sent_stop_below = sequence.stop_below);
    if (!sequence.running) cycle_.set_running(sequence.slot, sequence.running = true);
    tau_max = std::max(tau_max, tau);
    positions = std::max(positions, std::min(longest + tau + 1, sequence.end_length));
    const DraftSource source = offers ? DraftSource::ngram : DraftSource::model;
    flight.parts.push_back({sequence.id, tau + 1, sequence.wanted_tau, sequence.reason, source, std::exchange(sequence.proposal.length, 0), sequence.proposal.match});
    ++sequence.in_flight;
    sequence.in_flight_tokens += tau + 1;
  }
  if (flight.parts.empty()) return false;
  const SpanScope span(backend_, Span::launch, tau_max);
  profile_cycle();
  flight.cycle = cycles_launched_;
  flight.steps = draft_runs ? tau_max : 0;
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
  collected_ = std::move(flights_.front());
  flights_.pop_front();
  measure_host();
  const auto find = [&](const Flight::Part& part) {
    return std::find_if(active_.begin(), active_.end(), [&](const auto& each) { return each->id == part.request; });
  };
  std::erase_if(collected_.parts, [&](const Flight::Part& part) { return find(part) == active_.end(); });
  if (collected_.parts.empty()) return;  // it had no rows
  plain_pass_seconds_.add(cycle_.verify_seconds());
  judged_.clear();
  for (const Flight::Part& part : collected_.parts) {
    Sequence& sequence = **find(part);
    --sequence.in_flight;
    sequence.in_flight_tokens -= part.most;
    commit(sequence, part, outputs);
  }
  const CycleCost cost = cost_of_collected();
  const bool had_rows_of_who_left = (cycle_.limits().records && cost.rows != *cycle_.evidence().rows) || (collected_.steps > 0 && cost.steps == 0);
  if (!had_rows_of_who_left) controller_->observe(cost, judged_);
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

CycleCost Scheduler::cost_of_collected() const {
  int drafts = 0, steps = 0, draft_rows = 0;
  for (const Judged& each : judged_) {
    drafts += each.tau, draft_rows += each.passes;
    steps = std::max(steps, each.passes);  // those behind the last early end had no rows
  }
  const int sequences = int(collected_.parts.size());
  return {sequences, sequences + drafts, collected_.steps ? steps : 0, cycle_.draft_seconds(), cycle_.verify_seconds(), cycle_.sample_seconds() + host_seconds_, draft_rows};
}

}  // namespace paceline
