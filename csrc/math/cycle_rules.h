// The integer rules of a cycle, each in one place, for the host that plans and the device that commits.
//
// A sequence is tokens[0, length), the last of them emitted but not yet fed. A model's cache holds tokens[0, cached),
// cached <= length - 1. Positions are absolute indices, prompt included.
#pragma once

#include "math/platform.h"

namespace paceline {

PACELINE_HD int smaller(int a, int b) { return a < b ? a : b; }
PACELINE_HD int larger(int a, int b) { return a > b ? a : b; }

// Draft tokens of this cycle: what is wanted, as far as the sequence may still grow (tau + 1 tokens can be emitted), the
// draft's own context reaches (its last fed position is length + tau - 2), and its cache is at most one row behind.
PACELINE_HD int clamped_tau(int wanted, int length, int end_length, int draft_cached, int draft_max_len) {
  if (draft_cached < length - 2) return 0;
  const int tau = smaller(wanted, smaller(end_length - length - 1, draft_max_len - length + 1));
  return tau > 0 ? tau : 0;
}

// Whether the slot may draft at `step` too, if the verify pass has a row per running slot and draft and `budget` of them at most: who is
// more confident goes first, of equals the lower slot.
PACELINE_HD bool within_budget(int budget, int num_slots, const int32_t* running, const int32_t* drafting, const double* confidence, int step,
                               int slot) {
  int left = budget, ahead = 0;
  for (int other = 0; other < num_slots; ++other) {
    if (!running[other]) continue;
    left -= 1 + smaller(drafting[other], step);
    if (other == slot || drafting[other] <= step) continue;
    ahead += confidence[other] > confidence[slot] || (confidence[other] == confidence[slot] && other < slot);
  }
  return ahead < left;
}

// The same for a slot whose drafts the host has `offered`, where it has: nobody but the sequence bounds them.
PACELINE_HD int planned_tau(int wanted, int offered, int length, int end_length, int draft_cached, int draft_max_len) {
  if (offered > 0) return clamped_tau(smaller(wanted, offered), length, end_length, length - 1, end_length);
  return clamped_tau(wanted, length, end_length, draft_cached, draft_max_len);
}

// KV positions a cycle of tau drafts may write, in the target and in the draft. Pages are reserved up to here beforehand.
PACELINE_HD int target_reach(int length, int tau) { return length + tau; }
PACELINE_HD int draft_reach(int length, int tau) { return tau > 0 ? length + tau - 1 : 0; }

// Cached prefix after a cycle that committed up to new_length: the target was fed every committed token but the last; the
// draft was fed up to draft_fed. Everything beyond is forgotten by moving the length back.
PACELINE_HD int cached_after(int fed, int new_length) { return smaller(fed, new_length - 1); }

}  // namespace paceline
