// Why a cycle wanted its tau.
#pragma once

#include <cstdint>

namespace paceline {

enum class TauReason : uint8_t {
  fixed,      // the engine's setting
  request,    // the request's own
  start,      // nothing is known yet
  best,       // most tokens per second, from what cycles cost and how many drafts were accepted of late
  not_worth,  // no draft: what it would bring is less than what it costs
  slower,     // no draft: speculation was measured, and was slower than plain decoding
  probe,      // after a plain stretch: has it become better?
  measure,    // no draft: what plain decoding costs has not been seen for long
  latency,    // best among those that keep the latency target
  budget,     // as many as may be, within the rows that a pass may verify
};
constexpr const char* kTauReasons[] = {"fixed", "request", "start", "best", "not_worth", "slower", "probe", "measure", "latency", "budget"};

}  // namespace paceline
