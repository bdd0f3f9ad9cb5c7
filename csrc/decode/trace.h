// What became of every cycle, in rings that are taken at construction: the newest records, a column each.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "decode/drafter.h"
#include "decode/tau_reason.h"

namespace paceline {

enum class ExtraKind : uint8_t { none, residual, bonus };  // none: the cycle was cut before it
constexpr const char* kExtraKinds[] = {"none", "residual", "bonus"};

// One request's part in one cycle. Times are of the whole pass, which its requests share.
struct CycleRecord {
  int64_t cycle = 0;     // number of the launch, from 1
  int64_t request = 0;
  int32_t position = 0;  // of the first token it emitted, prompt included
  int32_t wanted_tau = 0;
  TauReason reason = TauReason::fixed;
  int32_t tau = 0, accepted = 0, emitted = 0;  // tau as verified; the others as a stop string or cancel cut them
  int32_t extra_token = -1;
  ExtraKind extra_kind = ExtraKind::none;
  int32_t rows = 0, sequences = 0;  // of the target's pass
  DraftSource source = DraftSource::model;
  double start = 0;                 // seconds since the engine began
  double draft_time = 0, verify_time = 0, sample_time = 0, host_time = 0;  // host: what passed since the cycle before, less the other three
  float catch_up_agreement = 0;     // of the token at position - 1; NaN where unknown
  std::span<const int32_t> drafted;                              // [tau]
  std::span<const float> draft_logprob, target_logprob, agreement;  // [tau] NaN where unknown
};

// The records of a trace, oldest first.
struct TraceColumns {
  int tau_max = 0;
  std::vector<int64_t> cycle, request;
  std::vector<int32_t> position, wanted_tau, tau, accepted, emitted, extra_token, rows, sequences;
  std::vector<uint8_t> reason, extra_kind, source;
  std::vector<double> start, draft_time, verify_time, sample_time, host_time;
  std::vector<float> catch_up_agreement;
  std::vector<int32_t> drafted;                                  // [n, tau_max], -1 where none
  std::vector<float> draft_logprob, target_logprob, agreement;  // [n, tau_max], NaN where none
};

class Trace {
 public:
  // Of the newest `capacity` records of up to tau_max drafts; 0 = none are kept.
  Trace(Backend& backend, int capacity, int tau_max);
  void add(const CycleRecord& record);
  TraceColumns columns() const;
  bool on() const { return !records_.empty(); }
  size_t bytes() const { return memory_.bytes(); }

 private:
  int tau_max_;
  Buffer memory_;
  std::span<CycleRecord> records_;  // their spans lie in the rings below
  std::span<int32_t> drafted_;
  std::span<float> draft_logprob_, target_logprob_, agreement_;
  int64_t added_ = 0;
};

}  // namespace paceline
