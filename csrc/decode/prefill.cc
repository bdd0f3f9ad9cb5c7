// Prompts are read in pieces between cycles: the target's, and the draft's once the first token is out.
#include <algorithm>
#include <cmath>
#include <utility>

#include "decode/scheduler.h"
#include "math/cycle_rules.h"

namespace paceline {

// At most one pass, whichever model needs it; where both do, they take turns. So whoever decodes waits for one piece of one prompt at most
// between two of its cycles, and neither model's prompts wait for the other's to end. Nor for verifications: where one has had its pass
// since the last step, prompts wait for the next, and then it does.
void Scheduler::prefill() {
  bool target_due = false, draft_due = false;
  for (const auto& each : active_) {
    target_due |= lacks_prompt(*each);
    draft_due |= may_catch_up(*each);
  }
  prompt_is_next_ = std::exchange(verification_passed_, false) && somebody_decodes() && (target_due || draft_due);
  if (prompt_is_next_ || (!target_due && !draft_due)) return;
  const bool draft = draft_due && (!target_due || draft_is_next_);
  draft_is_next_ = !draft;
  prefill(draft);
}

// Over what the sequences lack, oldest first: all tokens but the last, which belongs to the next cycle.
void Scheduler::prefill(bool draft) {
  Model& model = draft ? *draft_ : target_;
  std::vector<int32_t> slots, positions, tokens;
  const auto start = Clock::now();
  std::vector<std::pair<Sequence*, int>> fed;  // and rows
  const int most = prefill_rows(draft);
  if (most == 0) return;
  for (const auto& each : active_) {
    Sequence& sequence = *each;
    if (!(draft ? may_catch_up(sequence) : lacks_prompt(sequence))) continue;
    int& cached = draft ? sequence.draft_cached : sequence.target_cached;
    const int end = std::min(sequence.length() - 1, cached + most - int(tokens.size()));
    if (end <= cached) continue;
    if (!reserve(draft, sequence.slot, end)) throw EngineDead("[step] promised KV pages are not there");
    for (int position = cached; position < end; ++position) {
      const int32_t token = sequence.tokens[position];
      slots.push_back(sequence.slot);
      positions.push_back(position);
      tokens.push_back(token < model.vocab_size() ? token : 0);
    }
    fed.emplace_back(&sequence, end - cached);
    cached = end;
  }
  const SpanScope span(backend_, Span::prefill, int64_t(tokens.size()));
  model.cache().publish();
  prefill_rows_.fill(slots, positions, tokens);
  int64_t* stamps = prefill_stamps_.as<int64_t>();
  backend_.timestamp(stamps);  // not before: a cycle may be under way
  model.forward(prefill_rows_.rows(), nullptr);
  backend_.timestamp(stamps + 1);
  backend_.synchronize();
  last_read_ = {};
  Recent& row_seconds = draft ? draft_row_seconds_ : target_row_seconds_;
  const double seconds_per_row = 1e-9 * double(stamps[1] - stamps[0]) / double(tokens.size());
  if (int(tokens.size()) >= kFewestRows) row_seconds.add(seconds_per_row);
  if (somebody_decodes()) controller_->observe_piece(seconds_per_row * double(tokens.size()));
  for (const auto& [sequence, rows] : fed) {
    sequence->stats.prefill_time += seconds_since(start);
    ++sequence->stats.num_prefill_passes;
    if (draft) controller_->observe_catch_up(sequence->id, rows, rows * seconds_per_row);
    if (draft) cycle_.set_draft_cached(sequence->slot, sequence->draft_cached);
    else cycle_.set_target_cached(sequence->slot, sequence->target_cached);
  }
}

// All that a pass has room for, unless somebody decodes who gets nothing from it: who then waits shall not wait for more than four plain
// passes, so a row is taken to cost what the dearest of late did, and a plain pass what the cheapest did. (With the cheapest rows of late a
// piece of 4096 tokens took up to 1.3 times that: rows grow dearer with the context.) Under a latency target nobody waits for more than it
// leaves, where somebody decodes: a prompt is read in eights even so, a draft that finds no time does not catch up.
int Scheduler::prefill_rows(bool draft) const {
  const double spare = controller_->spare_seconds();
  const int most = chunk_rows(draft);
  if (std::isinf(spare) || !somebody_decodes()) return most;
  const double row = (draft ? draft_row_seconds_ : target_row_seconds_).most();
  const int rows = row > 0 ? int(std::min(spare / row, double(most))) : kFewestRows;
  return rows >= kFewestRows ? rows : draft ? 0 : std::min(kFewestRows, most);
}

int Scheduler::chunk_rows(bool draft) const {
  const auto waits = [&](const auto& each) { return !lacks_prompt(*each) && !(draft && may_catch_up(*each)); };
  if (std::none_of(active_.begin(), active_.end(), waits)) return options_.prefill_chunk;
  if (options_.prefill_chunk_beside) return std::min(options_.prefill_chunk_beside, options_.prefill_chunk);
  return rows_beside((draft ? draft_row_seconds_ : target_row_seconds_).most(), plain_pass_seconds_.least(), options_.prefill_chunk);
}

bool Scheduler::somebody_decodes() const {
  return std::any_of(active_.begin(), active_.end(), [](const auto& each) { return each->emitted_any(); });
}

bool Scheduler::lacks_prompt(const Sequence& sequence) const { return sequence.target_cached < sequence.length() - 1; }

// Tokens are out, and the draft lacks more rows than its first pass of a cycle feeds.
bool Scheduler::catch_up_due(const Sequence& sequence) const {
  if (sequence.proposal.source != DraftSource::model) return false;  // not asked next
  return draft_ && sequence.emitted_any() && sequence.draft_cached < sequence.length() - 2 && can_draft(sequence);
}

// Now: a cycle under way may still make it longer.
bool Scheduler::may_catch_up(const Sequence& sequence) const { return !sequence.in_flight && catch_up_due(sequence); }

// Whether a draft whose cache had caught up would get to propose anything, now or later: both limits only come nearer.
bool Scheduler::can_draft(const Sequence& sequence) const {
  const int length = sequence.length();
  return clamped_tau(sequence.wanted_tau, length, sequence.end_length, length - 1, draft_->max_len()) > 0;
}

}  // namespace paceline
