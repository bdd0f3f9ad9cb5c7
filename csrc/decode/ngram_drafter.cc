#include "decode/ngram_drafter.h"

#include <algorithm>
#include <bit>

namespace paceline {
namespace {

constexpr int kShortestMatch = 2;      // one token alone says next to nothing of the next
constexpr int kReadAtATime = 16384;    // tokens of long prompts between two cycles, over all slots: some milliseconds
constexpr int kReadAtLeast = 512;      // of one

}  // namespace

int match_class(int match_length) { return std::min(int(std::bit_width(unsigned(std::max(match_length, 2) - 1))) - 1, kMatchClasses - 1); }

NgramDrafter::NgramDrafter(Backend& backend, const Limits& limits)
    : read_at_a_time_(std::max(kReadAtATime / limits.num_slots, kReadAtLeast)), memory_(backend.allocate_shared(limits.num_slots * SuffixAutomaton::bytes(limits.max_len))) {
  for (int slot = 0; slot < limits.num_slots; ++slot) {
    char* memory = memory_.as<char>();
    texts_.emplace_back(memory ? memory + slot * SuffixAutomaton::bytes(limits.max_len) : nullptr, limits.max_len);
  }
}

// As many as the match is long: a run that comes true makes the next match longer by itself, and one after a match of two tokens, which is
// often chance, costs two rows. Where it reaches the end of the text it goes on with its own beginning, as if the text had.
Proposal NgramDrafter::propose(int slot, std::span<const int32_t> text, int most, int32_t* run) {
  if (most <= 0) return {DraftSource::ngram, 0};
  SuffixAutomaton& seen = texts_[slot];
  for (int left = read_at_a_time_; left > 0 && seen.size() < int(text.size()); --left) seen.append(text[seen.size()]);
  const SuffixAutomaton::Match match = seen.match();
  if (seen.size() < int(text.size()) || match.length < kShortestMatch) return {DraftSource::ngram, 0};
  const int length = std::min(most, match.length), period = int(text.size()) - match.end;
  for (int i = 0; i < length; ++i) run[i] = text[match.end + i % period];
  return {DraftSource::ngram, length, match_class(match.length)};
}

}  // namespace paceline
