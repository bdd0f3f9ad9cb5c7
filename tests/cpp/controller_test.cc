// Controllers on a simulated clock, against what each fixed tau would have made: simulated_decoding.h.
#include "decode/controller.h"

#include <algorithm>

#include "cpp/simulated_decoding.h"
#include "cpp/test.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr int kTauMax = 8;
constexpr long kTokens = 20000;
constexpr uint64_t kSeeds = 12;

// A GPU at batch 1, where rows are nearly free; two CPU cores, where they are not; and one more step of it.
const std::vector<Machine> kMachines = {{"flat", 0.10, 0.01, 0.02}, {"rising", 0.20, 0.15, 0.05}};
// Runs of 50 tokens on average in each state.
const std::vector<Acceptance2> kAcceptances = {{"iid .5", .5, .5, 0}, {"iid .7", .7, .7, 0}, {"iid .9", .9, .9, 0}, {"runs .97/.3", .97, .3, 1.0 / 50}};

std::unique_ptr<Controller> automatic() { return make_controller({.policy = Policy::automatic, .tau = kTauMax}); }

double run_workload(Controller& controller, const Acceptance2& acceptance, const Machine& machine, uint64_t seed, double jitter) {
  Simulation simulation(controller, machine, acceptance, kTauMax, seed);
  simulation.set_jitter(jitter);
  simulation.begin(int64_t(seed));
  const long emitted = simulation.run(kTokens);
  return double(emitted) / simulation.seconds();
}

}  // namespace

// The simulation itself: a fixed tau's rate is the exact one.
TEST(the_exact_rate_of_a_fixed_tau_is_what_simulation_gives) {
  for (const Machine& machine : kMachines)
    for (const Acceptance2& acceptance : kAcceptances)
      for (int tau : {0, 1, 3, 8}) {
        const auto fixed = make_controller({.policy = Policy::fixed, .tau = tau});
        Simulation simulation(*fixed, machine, acceptance, kTauMax, 7);
        const double rate = double(simulation.run(400000)) / simulation.seconds(), exact = exact_rate(acceptance, machine, tau);
        CHECK(std::fabs(rate - exact) < 0.02 * exact, acceptance.name, ", ", machine.name, ", tau ", tau, ": ", rate, " instead of ", exact);
      }
}

TEST(auto_is_within_three_per_cent_of_the_best_fixed_tau) {
  for (double jitter : {0.0, 0.05})
    for (const Machine& machine : kMachines)
      for (const Acceptance2& acceptance : kAcceptances) {
        double rate = 0;
        for (uint64_t seed = 1; seed <= kSeeds; ++seed) rate += run_workload(*automatic(), acceptance, machine, seed, jitter) / double(kSeeds);
        const double best = best_fixed_rate(acceptance, machine, kTauMax);
        std::printf("      %-12s %-7s jitter %.2f: auto %.4f of the best fixed tau\n", acceptance.name.c_str(), machine.name.c_str(), jitter, rate / best);
        CHECK(rate >= 0.97 * best, acceptance.name, " on ", machine.name, ": ", rate, " against ", best);
      }
}

// The same number of tokens of each, one request after the other; costs change with the machine, so each has its own engine.
TEST(auto_is_better_than_every_fixed_tau_on_the_mix) {
  std::vector<double> fixed(kTauMax + 1, 0.0);
  double seconds = 0;
  for (const Machine& machine : kMachines) {
    const auto controller = automatic();
    int64_t request = 0;
    for (int round = 0; round < 10; ++round)
      for (const Acceptance2& acceptance : kAcceptances) {
        Simulation simulation(*controller, machine, acceptance, kTauMax, uint64_t(100 + ++request));
        simulation.begin(request);
        const long tokens = simulation.run(2000);
        controller->forget(request);
        seconds += simulation.seconds();
        for (int tau = 0; tau <= kTauMax; ++tau) fixed[tau] += double(tokens) / exact_rate(acceptance, machine, tau);
      }
  }
  const double best = *std::min_element(fixed.begin(), fixed.end());
  std::printf("      auto takes %.4f of the best fixed tau's time\n", seconds / best);
  CHECK(seconds < best, seconds, " against ", best);
}

TEST(a_draft_that_is_never_right_costs_three_per_cent_at_most) {
  for (const Machine& machine : {kMachines[0], kMachines[1], Machine{"dear draft", 0.5, 0.0, 0.0}, Machine{"dear catch-up", 0.3, 0.05, 0.0, nullptr, 0.1}})
    for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
      const auto controller = automatic();
      Simulation simulation(*controller, machine, {"never", 0, 0, 0}, kTauMax, seed);
      simulation.set_jitter(0.03);
      simulation.begin(1);
      const long tokens = simulation.run(1000);
      const double share = simulation.speculation_seconds() / (simulation.seconds() - simulation.speculation_seconds());
      if (seed == 1) std::printf("      %-13s %.4f of plain decoding's time for %ld tokens\n", machine.name.c_str(), share, tokens);
      CHECK(share <= 0.03, machine.name, ": ", share);
    }
}

TEST_MAIN()
