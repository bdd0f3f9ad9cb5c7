#include "decode/chain_drafter.h"

#include <algorithm>

namespace paceline {
namespace {

constexpr double kDraftCostAtFirst = 0.25;  // where nobody knows better

}  // namespace

DraftSource choose_source(const SourceHistory& history, const Proposal& ngram, int most, double draft_cost) {
  if (ngram.length == 0) return DraftSource::model;
  const double by_ngram = 1 + std::min(history.ngram_accepted[ngram.match].value, double(ngram.length));
  const double accepted = std::min(history.model_accepted.value, double(most)), drafted = std::min(history.model_drafted.value, double(most));
  return by_ngram > (1 + accepted) / (1 + drafted * draft_cost) ? DraftSource::ngram : DraftSource::model;
}

ChainDrafter::ChainDrafter(Backend& backend, const Limits& limits)
    : ngram_(backend, limits), tau_max_(limits.tau_max), draft_cost_(limits.draft_cost > 0 ? limits.draft_cost : kDraftCostAtFirst),
      histories_(limits.num_slots), runs_(limits.num_slots) {}

// Both are taken to be good for half of what they may propose until they have shown otherwise.
void ChainDrafter::start(int slot) {
  ngram_.start(slot);
  histories_[slot].model_accepted.value = 0.5 * tau_max_;
  histories_[slot].model_drafted.value = tau_max_;
  for (int i = 0; i < kMatchClasses; ++i) histories_[slot].ngram_accepted[i].value = 0.5 * std::min(tau_max_, 2 << i);
  runs_[slot] = {};
}

Proposal ChainDrafter::propose(int slot, std::span<const int32_t> text, int most, int32_t* run) {
  Proposal proposal = ngram_.propose(slot, text, most, run);
  runs_[slot] = {proposal.match, std::span<const int32_t>(run, size_t(proposal.length))};
  proposal.source = choose_source(histories_[slot], proposal, most, draft_cost_);
  return proposal;
}

void ChainDrafter::learn(int slot, DraftSource source, int tau, int accepted, std::span<const int32_t> emitted) {
  const Run& run = runs_[slot];
  if (source == DraftSource::model && tau > 0) {
    histories_[slot].model_accepted.add(accepted);
    histories_[slot].model_drafted.add(tau);
  }
  if (run.tokens.empty()) return;
  const int right = right_of(run.tokens, emitted);
  // Of a run that outlives a shorter cycle it is not known how long it would have held: as long as others of late, or longer.
  DecayedMean& recent = histories_[slot].ngram_accepted[run.match];
  const bool known = right < int(emitted.size()) || right == int(run.tokens.size());
  recent.add(known ? right : std::max(double(right), recent.value));
}

}  // namespace paceline
