#include "decode/chain_drafter.h"

#include <algorithm>
#include <bit>

namespace paceline {
namespace {

constexpr double kDraftCostAtFirst = 0.25;  // where nobody knows better

}  // namespace

int match_class(int match_length) { return std::min(int(std::bit_width(unsigned(std::max(match_length, 2) - 1))) - 1, 3); }

DraftSource choose_source(const SourceHistory& history, int match_length, int run, int tau, double draft_cost) {
  if (run == 0) return DraftSource::model;
  const double by_ngram = 1 + std::min(history.ngram[match_class(match_length)].accepted, double(run));
  const double by_model = (1 + std::min(history.model.accepted, double(tau))) / (1 + tau * draft_cost);
  return by_ngram > by_model ? DraftSource::ngram : DraftSource::model;
}

ChainDrafter::ChainDrafter(Backend& backend, const Limits& limits)
    : ngram_(backend, limits), tau_max_(limits.tau_max), draft_cost_(limits.draft_cost > 0 ? limits.draft_cost : kDraftCostAtFirst),
      histories_(limits.num_slots), runs_(limits.num_slots) {}

// Both are taken to be good for half of what they may propose until they have shown otherwise.
void ChainDrafter::start(int slot) {
  ngram_.start(slot);
  histories_[slot].model.accepted = 0.5 * tau_max_;
  for (int i = 0; i < 4; ++i) histories_[slot].ngram[i].accepted = 0.5 * std::min(tau_max_, 2 << i);
  runs_[slot] = {};
}

Proposal ChainDrafter::propose(int slot, std::span<const int32_t> text, int most, int32_t* run) {
  const int length = ngram_.propose(slot, text, most, run).length;
  runs_[slot] = {ngram_.match_length(), length, run};
  return {choose_source(histories_[slot], ngram_.match_length(), length, most, draft_cost_), length};
}

void ChainDrafter::learn(int slot, DraftSource source, int tau, int accepted, std::span<const int32_t> emitted) {
  const Run& run = runs_[slot];
  if (source == DraftSource::model && tau > 0) histories_[slot].model.add(accepted);
  if (run.length == 0) return;
  int right = 0;
  while (right < run.length && right < int(emitted.size()) && run.tokens[right] == emitted[right]) ++right;
  // Of a run that outlives a shorter cycle it is not known how long it would have held: as long as others of late, or longer.
  RecentAcceptance& recent = histories_[slot].ngram[match_class(run.match_length)];
  const bool known = right < int(emitted.size()) || right == run.length;
  recent.add(known ? right : std::max(double(right), recent.accepted));
}

}  // namespace paceline
