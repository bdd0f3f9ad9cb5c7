// A latency target: of the taus that keep p99 of the time between chunks below it, the best.
#pragma once

#include <array>

#include "decode/controller_auto.h"

namespace paceline {

// What a cycle will take is known only up to the machine's moods: the limit is the target divided by how much dearer than expected cycles
// were of late, the dearest of the last few and the second dearest of the last 200 (99 of a hundred may not be dearer), and by a margin that
// misses themselves set: a maximum of 200 says little of the next ones. Of 500 cycles five may miss; without the margin up to 6 windows of a
// hundred did not keep to that, with it 1.5 to 3 (six times 480 windows of a simulated clock).
class LatencyController : public AutoController {
 public:
  explicit LatencyController(const ControllerOptions& options) : AutoController(options), target_(options.latency_target) {}
  void choose(std::span<const Candidate> candidates, std::span<TauChoice> choices) override;
  void observe(const CycleCost& cost, std::span<const Judged> judged) override;
  void observe_piece(double seconds) override { piece_ += seconds; }
  double spare_seconds() const override;

 protected:
  double cycle_limit() const override { return target_ / (dearer() * (1 + margin_)); }
  double piece_seconds() const override { return piece_; }
  TauReason best_reason() const override { return TauReason::latency; }
  // What one row takes is seen before a cycle takes more, and more drafts than one have to be within what that says.
  int start_tau() const override { return costs().knows_plain() && costs().plain(sequences_) < cycle_limit() ? 1 : 0; }

 private:
  double dearer() const;

  double target_;
  double piece_ = 0;   // of all pieces between the last cycle and the next
  double margin_ = 0;  // grows by each cycle with drafts that missed the target, so that one in 200 does
  int sequences_ = 1;  // of the last cycle
  std::array<float, 200> ratio_{};
  int64_t count_ = 0;
};

}  // namespace paceline
