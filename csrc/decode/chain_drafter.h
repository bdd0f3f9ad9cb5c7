// The n-gram where it has a match that promises more than the draft model, else the model, else plain decoding.
#pragma once

#include <array>
#include <vector>

#include "decode/ngram_drafter.h"

namespace paceline {

// Of late: what is ten cycles old counts a third.
struct DecayedMean {
  double value;
  void add(double each) { value += 0.1 * (each - value); }
};

// What a sequence has shown of its sources so far, per cycle. Runs of the n-gram are told apart by the class of their match.
struct SourceHistory {
  DecayedMean model_accepted, model_drafted;
  std::array<DecayedMean, kMatchClasses> ngram_accepted;
};

// Whose cycle emits more tokens per unit of cost, as things went of late. most: drafts that the model may have. With a fixed tau it goes by tokens
// and acceptance, never by a clock: with the same requests and seeds the choice is the same. A policy that knows what cycles cost here says so.
DraftSource choose_source(const SourceHistory& history, const Proposal& ngram, int most, double draft_cost);

class ChainDrafter final : public Drafter {
 public:
  ChainDrafter(Backend& backend, const Limits& limits);

  bool on_host() const override { return true; }
  void set_draft_cost(double draft_cost) override { draft_cost_ = draft_cost; }
  void start(int slot) override;
  Proposal propose(int slot, std::span<const int32_t> text, int most, int32_t* run) override;
  void learn(int slot, DraftSource source, int tau, int accepted, std::span<const int32_t> emitted) override;
  size_t bytes() const override { return ngram_.bytes(); }

 private:
  // The n-gram's last run: it is judged by what was emitted, whoever drafted.
  struct Run {
    int match = 0;
    std::span<const int32_t> tokens;
  };

  NgramDrafter ngram_;
  int tau_max_;
  double draft_cost_;
  std::vector<SourceHistory> histories_;  // [slots]
  std::vector<Run> runs_;                 // [slots]
};

}  // namespace paceline
