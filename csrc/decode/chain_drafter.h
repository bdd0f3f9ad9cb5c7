// The n-gram where it has a match that promises more than the draft model, else the model, else plain decoding.
#pragma once

#include <array>
#include <vector>

#include "decode/ngram_drafter.h"

namespace paceline {

// Drafts accepted per cycle, of late: what is ten cycles old counts a third.
struct RecentAcceptance {
  double accepted;
  void add(double value) { accepted += 0.1 * (value - accepted); }
};

// What a sequence has shown of its sources so far. Runs of the n-gram are told apart by the length of their match: 2, 3 to 4, 5 to 8, more.
struct SourceHistory {
  RecentAcceptance model;
  std::array<RecentAcceptance, 4> ngram;
};
int match_class(int match_length);

// Whose cycle emits more tokens per unit of cost, as things went of late. run: the tokens the n-gram has, after a match of match_length. It
// goes by tokens and acceptance, never by a clock: with the same requests and seeds the choice is the same.
DraftSource choose_source(const SourceHistory& history, int match_length, int run, int tau, double draft_cost);

class ChainDrafter final : public Drafter {
 public:
  ChainDrafter(Backend& backend, const Limits& limits);

  bool on_host() const override { return true; }
  void start(int slot) override;
  Proposal propose(int slot, std::span<const int32_t> text, int most, int32_t* run) override;
  void learn(int slot, DraftSource source, int tau, int accepted, std::span<const int32_t> emitted) override;
  size_t bytes() const override { return ngram_.bytes(); }

 private:
  // The n-gram's last run: it is judged by what was emitted, whoever drafted.
  struct Run {
    int match_length = 0, length = 0;
    const int32_t* tokens = nullptr;
  };

  NgramDrafter ngram_;
  int tau_max_;
  double draft_cost_;
  std::vector<SourceHistory> histories_;  // [slots]
  std::vector<Run> runs_;                 // [slots]
};

}  // namespace paceline
