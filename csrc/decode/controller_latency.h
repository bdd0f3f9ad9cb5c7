// A latency target: of the taus that keep p99 of the time between chunks below it, the best.
#pragma once

#include <array>

#include "decode/controller_auto.h"

namespace paceline {

// What a cycle will take is known only up to the machine's moods: the limit is the target divided by how much dearer than expected cycles
// were of late, the dearest of the last few and the second dearest of the last 200 (99 of a hundred may not be dearer).
class LatencyController : public AutoController {
 public:
  explicit LatencyController(const ControllerOptions& options) : AutoController(options), target_(options.latency_target) {}
  void observe(const CycleCost& cost, std::span<const Judged> judged) override;

 protected:
  double cycle_limit() const override { return target_ / dearer(); }
  TauReason best_reason() const override { return TauReason::latency; }

 private:
  double dearer() const;

  double target_;
  std::array<float, 200> ratio_{};
  int64_t count_ = 0;
};

}  // namespace paceline
