// How many drafts each request's next cycle asks for, and why. A controller is told numbers and keeps numbers: whoever measures them has
// the clock, so that a simulated one tests it exactly.
//
// What it may know: anything of earlier cycles, nothing of the drafts that a cycle under choice will draw. So it keeps every bit under
// `coupled` and at temperature 0, and the law under `rejection`, whose noise is addressed by the start of the cycle.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>

#include "decode/costs.h"
#include "decode/drafter.h"
#include "decode/tau_reason.h"

namespace paceline {

enum class Policy { fixed, automatic, budget, latency };

struct ControllerOptions {
  Policy policy = Policy::fixed;
  int tau = 0;               // fixed: of every cycle; else at most
  int max_sequences = 1;
  double latency_target = 0; // seconds between two chunks at the 99th percentile, under `latency`
};

// A request that takes part in the next cycle.
struct Candidate {
  int64_t request;
  int most;  // drafts it can take: of its length and the draft's context
  int lag;   // positions of it that the draft has to read in a pass of their own before it can propose
  int own = -1;  // drafts that it has asked for itself: it gets them
  DraftSource source = DraftSource::model;  // ngram: the host has them, and no pass of the draft is run for it
  int match = 0;                            // of those, the class of their match
};

struct TauChoice {
  int tau;
  TauReason reason;
  float stop_below = 0;  // drafts end before a place at which the draft's confidence is less; 0: it is not even looked at
};
constexpr float kOnlyLook = std::numeric_limits<float>::min();  // a stop_below that stops nobody

// What became of one request's part of a cycle.
struct Judged {
  int64_t request;
  int passes, tau, accepted, emitted;  // passes: of the draft that were run for it; tau: drafts that were verified, one less where they ended early
  bool own = false;  // its tau was its own
  std::span<const float> confidence = {};  // of the draft at each place that was looked at
  int match = 0;                           // what the host had, drafted or not: the class of its match,
  int run_right = 0, run_judged = 0;       // and how many of its first tokens came out, of how many of which that is known
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
  // Before the next cycle, while somebody waits for it, a piece of a prompt was read, or of what drafts lack or `verify` asks for, for so
  // long; and how long that may take.
  virtual void observe_piece(double) {}
  virtual double spare_seconds() const { return std::numeric_limits<double>::infinity(); }
  // Of a pass of the draft, in passes of the target; 0 = nobody has measured it.
  virtual double draft_cost() const { return 0; }
};

std::unique_ptr<Controller> make_controller(const ControllerOptions& options);

}  // namespace paceline
