// Drafts from the text itself: what followed the longest suffix that has occurred before (prompt lookup decoding, without a length to choose).
#pragma once

#include <vector>

#include "decode/drafter.h"
#include "decode/suffix_automaton.h"

namespace paceline {

// Of a match of that many tokens, 2 at least.
int match_class(int match_length);

class NgramDrafter final : public Drafter {
 public:
  NgramDrafter(Backend& backend, const Limits& limits);

  bool on_host() const override { return true; }
  void start(int slot) override { texts_[slot].clear(); }
  Proposal propose(int slot, std::span<const int32_t> text, int most, int32_t* run) override;
  size_t bytes() const override { return memory_.bytes(); }

 private:
  int read_at_a_time_;  // tokens of a slot's text
  Buffer memory_;
  std::vector<SuffixAutomaton> texts_;  // [slots]
};

}  // namespace paceline
