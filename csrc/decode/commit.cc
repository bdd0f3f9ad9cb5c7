// What becomes of a cycle's results, and how a request ends.
#include <algorithm>

#include "decode/scheduler.h"

namespace paceline {

// The device has committed; the host takes over what it says, and cuts it where only the host can tell (stop strings).
void Scheduler::commit(Sequence& sequence, const Flight::Part& part, std::vector<Output>& outputs) {
  const int slot = sequence.slot;
  const CycleResult& result = cycle_.result(slot);
  Output& output = outputs.emplace_back();
  output.request = sequence.id;
  output.cycles = 1;
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
  backend_.mark(Span::accept, result.accepted);
  if (result.accepted < result.tau) backend_.mark(Span::kv_rollback, result.tau - result.accepted);
  output.tau = result.tau;
  output.accepted = std::min(result.accepted, kept);
  RequestStats& stats = sequence.stats;
  stats.count_cycle(output.tau, output.accepted, kept);
  stats.num_draft_faults += result.draft_fault;
  output.verify_time = cycle_.verify_seconds();
  output.sample_time = cycle_.sample_seconds();
  stats.draft_time += cycle_.draft_seconds();
  stats.verify_time += output.verify_time;
  stats.sample_time += output.sample_time;

  const int drafts_and_end = result.looked ? result.looked : std::min(part.most - 1, output.tau + result.draft_fault);
  const std::span<const int32_t> emitted{cycle_.tokens(slot), size_t(result.emitted)}, run{cycle_.offers(slot), size_t(part.run)};
  const int right = right_of(run, emitted), seen = std::min(part.run, result.emitted);
  judged_.push_back({sequence.id, part.source == DraftSource::model ? drafts_and_end : 0, output.tau, result.accepted, kept, sequence.params.num_speculative_tokens >= 0,
                     cycle_.confidence(slot), part.match, right, std::min(right + 1, seen)});
  record(sequence, part, output);
  drafter_->learn(slot, part.source, result.tau, result.accepted, emitted);
  sequence.tokens.insert(sequence.tokens.end(), output.tokens.begin(), output.tokens.end());
  sequence.target_cached = result.target_cached;
  sequence.draft_cached = result.draft_cached;
  if (options_.debug_hash)
    for (int i = 0; i < kept; ++i) sequence.logits_hash = (sequence.logits_hash ^ cycle_.row_hashes(slot)[i]) * 0x9E3779B97F4A7C15u;
  output.logits_hash = sequence.logits_hash;
  if (reason != FinishReason::none) return finish(sequence, output, reason);
  if (sequence.in_flight) return;  // a cycle under way writes further
  target_.cache().truncate(slot, sequence.length());
  if (draft_) draft_->cache().truncate(slot, sequence.length());
}

// The cycle's line in the trace.
void Scheduler::record(const Sequence& sequence, const Flight::Part& part, const Output& output) {
  if (!trace_.on()) return;
  const CycleResult& result = cycle_.result(sequence.slot);
  const int emitted = int(output.tokens.size());
  CycleRecord record;
  record.cycle = collected_.cycle, record.request = sequence.id, record.position = result.first_position;
  record.wanted_tau = part.wanted_tau, record.reason = part.reason, record.source = part.source;
  record.tau = output.tau, record.accepted = output.accepted, record.emitted = emitted;
  if (emitted > result.accepted) {
    record.extra_token = output.tokens.back();
    record.extra_kind = result.accepted < result.tau ? ExtraKind::residual : ExtraKind::bonus;
  }
  record.sequences = int(collected_.parts.size());
  record.start = std::chrono::duration<double>(collected_.start - began_).count();
  record.draft_time = cycle_.draft_seconds(), record.verify_time = output.verify_time, record.sample_time = output.sample_time;
  record.host_time = host_seconds_;
  record.rows = record.sequences;
  record.catch_up_agreement = std::numeric_limits<float>::quiet_NaN();
  if (cycle_.limits().records) {
    const CycleEvidence& evidence = cycle_.evidence();
    const size_t at = size_t(sequence.slot) * cycle_.limits().tau_max;
    record.rows = *evidence.rows;
    if (result.tau > 0 && part.source == DraftSource::model) record.catch_up_agreement = evidence.catch_up_agreement[sequence.slot];
    record.drafted = {evidence.drafted + at, size_t(result.tau)};
    record.draft_logprob = {evidence.draft_logprob + at, size_t(result.tau)};
    record.target_logprob = {evidence.target_logprob + at, size_t(result.tau)};
    record.agreement = {evidence.agreement + at, size_t(std::min(result.tau, emitted))};
  }
  trace_.add(record);
}

void Scheduler::finish(Sequence& sequence, Output& output, FinishReason reason) {
  output.finish = reason;
  output.request = sequence.id;
  if (sequence.emitted_any()) sequence.stats.decode_time = seconds_since(sequence.first_token);
  sequence.stats.num_requests = 1;
  output.stats = sequence.stats;
  stats_ += sequence.stats;
  if (options_.debug_hash && sequence.slot >= 0) {
    target_.cache().publish();  // it may end before the first pass that needs its pages
    if (draft_) draft_->cache().publish();
    output.target_kv_hashes = target_.cache().hashes(sequence.slot, std::min(sequence.target_cached, sequence.length() - 1), target_.shape());
    if (draft_) output.draft_kv_hashes = draft_->cache().hashes(sequence.slot, std::min(sequence.draft_cached, sequence.length() - 1), draft_->shape());
  }
  leave(sequence, reason != FinishReason::error);
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
      controller_->forget(id);
      active_.erase(active);
    }
  }
  cancelled_.clear();
}

}  // namespace paceline
