// A tau that does not change, and a budget over all sequences of a pass.
#include "decode/controller_auto.h"
#include "decode/controller_latency.h"

namespace paceline {
namespace {

class FixedController : public Controller {
 public:
  explicit FixedController(int tau, TauReason reason) : tau_(tau), reason_(reason) {}
  void choose(std::span<const Candidate> candidates, std::span<TauChoice> choices) override {
    for (size_t i = 0; i < candidates.size(); ++i) choices[i] = candidates[i].own >= 0 ? TauChoice{candidates[i].own, TauReason::request} : TauChoice{tau_, reason_};
  }
  void observe(const CycleCost&, std::span<const Judged>) override {}
  void observe_catch_up(int64_t, int, double) override {}
  void forget(int64_t) override {}

 private:
  int tau_;
  TauReason reason_;
};

}  // namespace

std::unique_ptr<Controller> make_controller(const ControllerOptions& options) {
  switch (options.policy) {
    case Policy::automatic: return std::make_unique<AutoController>(options);
    case Policy::latency: return std::make_unique<LatencyController>(options);
    case Policy::budget: return std::make_unique<FixedController>(options.tau, TauReason::budget);
    case Policy::fixed: break;
  }
  return std::make_unique<FixedController>(options.tau, TauReason::fixed);
}

}  // namespace paceline
