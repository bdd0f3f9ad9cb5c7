// How many drafts each request's next cycle asks for, and why. A controller is told numbers and keeps numbers: whoever measures them has
// the clock, so that a simulated one tests it exactly.
//
// What it may know: anything of earlier cycles, nothing of the drafts that a cycle under choice will draw. So it keeps every bit under
// `coupled` and at temperature 0, and the law under `rejection`, whose noise is addressed by the start of the cycle.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "decode/costs.h"

namespace paceline {

// Why a cycle has the tau that was wanted. The trace shows it.
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
constexpr int kNumTauReasons = int(TauReason::budget) + 1;
inline const char* name_of(TauReason reason) {
  constexpr const char* names[kNumTauReasons] = {"fixed", "request", "start", "best", "not_worth", "slower", "probe", "measure", "latency", "budget"};
  return names[int(reason)];
}

enum class Policy { fixed, automatic, budget, latency };

struct ControllerOptions {
  Policy policy = Policy::fixed;
  int tau = 0;               // fixed: of every cycle; else at most
  int max_sequences = 1;
  int verify_budget = 0;     // rows of a pass at most, under `budget`
  double latency_target = 0; // seconds between two chunks at the 99th percentile, under `latency`
};

// A request that takes part in the next cycle.
struct Candidate {
  int64_t request;
  int most;  // drafts it can take: of its own setting, its length, the draft's context
  int lag;   // positions of it that the draft has to read in a pass of their own before it can propose
};

struct TauChoice {
  int tau;
  TauReason reason;
};

// What became of one request's part of a cycle.
struct Judged {
  int64_t request;
  int tau, accepted, emitted;
};

class Controller {
 public:
  virtual ~Controller() = default;
  // Before each launch, for all that take part: choices[i] is candidates[i]'s.
  virtual void choose(std::span<const Candidate> candidates, std::span<TauChoice> choices) = 0;
  // After each cycle, in order: what it cost, and what became of it.
  virtual void observe(const CycleCost& cost, std::span<const Judged> judged) = 0;
  // The draft has read `rows` positions of a request in a pass of their own.
  virtual void observe_catch_up(int64_t request, int rows, double seconds) = 0;
  virtual void forget(int64_t request) = 0;
};

std::unique_ptr<Controller> make_controller(const ControllerOptions& options);

}  // namespace paceline
