// Decoding without models: a machine whose passes cost what a formula says, drafts that are right with a planted chance, and a clock that
// only adds. What a controller makes of them is then exact, and so is what each fixed tau would have made.
#pragma once

#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "decode/controller.h"

namespace paceline::test {

// Seconds; a pass of the target over one row takes about 1.
struct Machine {
  std::string name;
  double draft_step, row, overhead;            // T(M) = 1 + row (M - 1), or
  std::function<double(int)> verify = nullptr;  // another T(M)
  double catch_up_row = 0;                     // of the draft, beside the others of its pass; 0: a tenth of a step

  double target(int rows) const { return verify ? verify(rows) : 1 + row * (rows - 1); }
  double cycle(int tau) const { return tau * draft_step + target(tau + 1) + overhead; }
  double catch_up(int rows) const { return rows * (catch_up_row > 0 ? catch_up_row : 0.1 * draft_step); }
};

// A Markov chain of two states, moved by every token: drafts are right with chance good or bad.
struct Acceptance2 {
  std::string name;
  double good, bad;
  double leave;  // chance to change the state, per token; 0: always good

  // Tokens of a cycle that starts in a state, and the state that follows, for tau drafts.
  struct Cycle {
    double emitted, to_good;
  };
  Cycle cycle(int tau, bool in_good) const {
    double here_good = in_good, here_bad = !in_good, emitted = 0, to_good = 0;  // reached this place, in this state
    for (int place = 0; place <= tau; ++place) {
      emitted += here_good + here_bad;
      const double right_good = place < tau ? here_good * good : 0, right_bad = place < tau ? here_bad * bad : 0;
      to_good += (here_good - right_good) * (1 - leave) + (here_bad - right_bad) * leave;
      here_good = right_good * (1 - leave) + right_bad * leave;
      here_bad = right_bad * (1 - leave) + right_good * leave;
    }
    return {emitted, to_good};
  }
  // Tokens per cycle in the long run.
  double emitted(int tau) const {
    const Cycle from_good = cycle(tau, true), from_bad = cycle(tau, false);
    if (leave == 0) return from_good.emitted;
    const double share_good = from_bad.to_good / (1 - from_good.to_good + from_bad.to_good);
    return share_good * from_good.emitted + (1 - share_good) * from_bad.emitted;
  }
};

inline double exact_rate(const Acceptance2& acceptance, const Machine& machine, int tau) { return acceptance.emitted(tau) / machine.cycle(tau); }

inline double best_fixed_rate(const Acceptance2& acceptance, const Machine& machine, int tau_max) {
  double best = 0;
  for (int tau = 0; tau <= tau_max; ++tau) best = std::max(best, exact_rate(acceptance, machine, tau));
  return best;
}

// One request at a time, as the scheduler runs it: the first cycle has no drafts, and what the draft lacks is read before the next that has,
// in pieces if the controller leaves no time for more.
class Simulation {
 public:
  Simulation(Controller& controller, Machine machine, Acceptance2 acceptance, int tau_max, uint64_t seed)
      : controller_(controller), machine_(std::move(machine)), acceptance_(std::move(acceptance)), tau_max_(tau_max), random_(seed) {}

  Machine& machine() { return machine_; }
  void accept_as(const Acceptance2& acceptance) { acceptance_ = acceptance; }
  void set_load(double load) { load_ = load; }
  void set_jitter(double jitter) { jitter_ = jitter; }
  double seconds() const { return seconds_; }
  double speculation_seconds() const { return speculation_seconds_; }  // of draft passes, catch-up and rows beyond one per cycle
  double last_cycle_seconds() const { return last_cycle_seconds_; }
  TauReason last_reason() const { return last_reason_; }
  int last_tau() const { return last_tau_; }

  void begin(int64_t request, int prompt = 16) {
    request_ = request;
    lag_ = prompt;
    fresh_ = true;
  }

  // Tokens emitted.
  int cycle() {
    Candidate candidate{request_, tau_max_, lag_ > 1 ? lag_ : 0};
    TauChoice choice{};
    controller_.choose({&candidate, 1}, {&choice, 1});
    last_reason_ = choice.reason;
    double reading = 0;
    if (choice.tau > 0 && lag_ > 1) {
      const double row = load_ * machine_.catch_up(1);
      const int rows = int(std::min(double(lag_), fresh_ ? 1e9 : controller_.spare_seconds() / row));
      if (rows > 0) controller_.observe_catch_up(request_, rows, rows * row);
      if (!fresh_) reading = rows * row, controller_.observe_piece(reading);  // the prompt's is prefill
      lag_ -= rows;
    }
    const int tau = fresh_ || lag_ > 1 ? 0 : choice.tau;
    fresh_ = false;
    const double mood = load_ * (jitter_ > 0 ? std::exp(jitter_ * normal_(random_)) : 1.0);
    const CycleCost cost{1, tau + 1, tau, mood * tau * machine_.draft_step, mood * machine_.target(tau + 1), mood * machine_.overhead};
    int accepted = 0;
    while (accepted < tau && right()) ++accepted, step();
    step();
    lag_ = tau ? 0 : lag_ + 1;
    seconds_ += reading, speculation_seconds_ += reading;
    last_tau_ = tau;
    last_cycle_seconds_ = cost.total();
    seconds_ += cost.total();
    speculation_seconds_ += cost.total() - mood * machine_.cycle(0);
    const Judged judged{request_, tau, tau, accepted, accepted + 1};
    controller_.observe(cost, {&judged, 1});
    return accepted + 1;
  }

  long run(long tokens) {
    long emitted = 0;
    while (emitted < tokens) emitted += cycle();
    return emitted;
  }

 private:
  bool right() { return uniform_(random_) < (in_good_ ? acceptance_.good : acceptance_.bad); }
  void step() { in_good_ = acceptance_.leave == 0 || (uniform_(random_) < acceptance_.leave ? !in_good_ : in_good_); }

  Controller& controller_;
  Machine machine_;
  Acceptance2 acceptance_;
  int tau_max_;
  std::mt19937_64 random_;
  std::uniform_real_distribution<double> uniform_{0, 1};
  std::normal_distribution<double> normal_{0, 1};
  double seconds_ = 0, speculation_seconds_ = 0, last_cycle_seconds_ = 0, load_ = 1, jitter_ = 0;
  bool in_good_ = true, fresh_ = true;
  int64_t request_ = 0;
  int lag_ = 0, last_tau_ = 0;
  TauReason last_reason_ = TauReason::fixed;
};

}  // namespace paceline::test
