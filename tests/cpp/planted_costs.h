// A controller inside a real engine that believes in a planted machine: what it chooses then hangs on tokens and not on this machine's moods.
#pragma once

#include <map>

#include "cpp/simulated_decoding.h"

namespace paceline::test {

class PlantedCosts : public Controller {
 public:
  PlantedCosts(const ControllerOptions& options, Machine machine, double jitter, uint64_t seed, std::map<int, long>* taus = nullptr)
      : controller_(make_controller(options)), machine_(std::move(machine)), jitter_(jitter), random_(seed), taus_(taus) {}

  void choose(std::span<const Candidate> candidates, std::span<TauChoice> choices) override {
    controller_->choose(candidates, choices);
    if (taus_)
      for (const TauChoice& choice : choices) ++(*taus_)[choice.tau];
  }
  void observe(const CycleCost& cost, std::span<const Judged> judged) override {
    std::normal_distribution<double> normal(0, jitter_);
    const double mood = std::exp(normal(random_));
    controller_->observe({cost.sequences, cost.rows, cost.steps, mood * cost.steps * machine_.draft_step, mood * machine_.target(cost.rows),
                          mood * machine_.overhead}, judged);
  }
  void observe_catch_up(int64_t request, int rows, double) override { controller_->observe_catch_up(request, rows, machine_.catch_up(rows)); }
  void forget(int64_t request) override { controller_->forget(request); }
  double draft_cost() const override { return controller_->draft_cost(); }

 private:
  std::unique_ptr<Controller> controller_;
  Machine machine_;
  double jitter_;
  std::mt19937_64 random_;
  std::map<int, long>* taus_;  // how often each was chosen
};

}  // namespace paceline::test
