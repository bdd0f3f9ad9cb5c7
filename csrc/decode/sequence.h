// One request on its way: what the host knows of it.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "decode/drafter.h"
#include "decode/request.h"
#include "decode/stop_strings.h"
#include "decode/tau_reason.h"

namespace paceline {

using Clock = std::chrono::steady_clock;
inline double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// What requests need to run side by side, or what there is of it.
struct Demand {
  int64_t sequences = 0, target_pages = 0, draft_pages = 0;  // of all that wait they are many
  Demand& operator+=(const Demand& other) {
    sequences += other.sequences, target_pages += other.target_pages, draft_pages += other.draft_pages;
    return *this;
  }
  Demand& operator-=(const Demand& other) {
    sequences -= other.sequences, target_pages -= other.target_pages, draft_pages -= other.draft_pages;
    return *this;
  }
  friend Demand operator+(Demand a, const Demand& b) { return a += b; }
  bool fits(const Demand& in) const { return sequences <= in.sequences && target_pages <= in.target_pages && draft_pages <= in.draft_pages; }
};

struct Sequence {
  int64_t id = 0;
  RequestParams params;
  std::vector<int32_t> tokens;   // prompt, then what was emitted; the host's mirror of the device's committed tokens
  int prompt_length = 0;
  int end_length = 0;            // never longer than this
  int slot = -1;                 // -1 while it waits
  int target_cached = 0, draft_cached = 0;
  Demand demand;                 // promised: the most it can ever hold, so that a running sequence never lacks a page
  bool running = false;          // prompt cached: takes part in cycles
  int in_flight = 0, in_flight_tokens = 0;  // cycles under way it takes part in, and what they emit at most
  int wanted_tau = 0;            // drafts of its next cycle, if they can be had, and why: the controller's choice
  TauReason reason = TauReason::fixed;
  float stop_below = 0;          // where those drafts end early
  int sent_tau = -1;             // wanted_tau as the device knows it
  float sent_stop_below = -1;
  Proposal proposal;             // for the next cycle
  StopStrings stops;
  uint64_t logits_hash = 0;
  RequestStats stats;
  Clock::time_point added, first_token;

  int length() const { return int(tokens.size()); }
  bool emitted_any() const { return length() > prompt_length; }
};

}  // namespace paceline
