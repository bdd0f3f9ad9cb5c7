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

// A draft that says how sure it is: at each place it is sure of itself or it is not, and is right as often as it says, or not.
struct Confident {
  std::string name;
  double sure, unsure, share;  // confidences, and how often it is sure
  double right_if_unsure = unsure;

  // Tokens per second in the long run, of drafts that end before a place where it is unsure, or of drafts that do not.
  double exact_rate(const Machine& machine, int tau, bool stops) const {
    const double goes_on = stops ? share : 1, right = share * sure + (stops ? 0 : (1 - share) * right_if_unsure);
    double emitted = 1, seconds = machine.overhead, reached = 1, reached_right = 1;
    for (int place = 1; place <= tau; ++place) {
      seconds += reached * machine.draft_step;             // its pass is run, whatever it says
      seconds += reached * (1 - goes_on) * machine.target(place);  // drafts end here: place - 1 of them
      reached *= goes_on, emitted += reached_right *= right;
    }
    return emitted / (seconds + reached * machine.target(tau + 1));
  }
};

// One request at a time, as the scheduler runs it: the first cycle has no drafts, and what the draft lacks is read before the next that has,
// in pieces if the controller leaves no time for more.
class Simulation {
 public:
  Simulation(Controller& controller, Machine machine, Acceptance2 acceptance, int tau_max, uint64_t seed)
      : controller_(controller), machine_(std::move(machine)), acceptance_(std::move(acceptance)), tau_max_(tau_max), random_(seed) {}

  Machine& machine() { return machine_; }
  void accept_as(const Acceptance2& acceptance) { acceptance_ = acceptance; }
  void be_confident(const Confident& draft) { confident_ = draft; }
  void set_load(double load) { load_ = load; }
  void set_look(double look) { look_ = look; }  // a step of the draft that says how sure it is, over one that does not
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
    int drafted = 0, accepted = 0;
    bool all_right = true;
    confidence_.clear();
    for (bool goes_on = true; goes_on && drafted < tau;) {
      const bool is_sure = confident_.share > 0 && uniform_(random_) < confident_.share;
      const double confidence = is_sure ? confident_.sure : confident_.unsure;
      if (confident_.share > 0 && choice.stop_below > 0) confidence_.push_back(float(confidence)), goes_on = confidence >= choice.stop_below;
      if (!goes_on) break;
      ++drafted;
      all_right = all_right && (confident_.share > 0 ? uniform_(random_) < (is_sure ? confident_.sure : confident_.right_if_unsure) : right());
      if (all_right) ++accepted, step();
    }
    step();
    const int passes = std::min(tau, drafted + 1);
    const double look = confidence_.empty() ? 1 : look_;
    const CycleCost cost{1, drafted + 1, passes, mood * passes * look * machine_.draft_step, mood * machine_.target(drafted + 1), mood * machine_.overhead};
    lag_ = tau ? 0 : lag_ + 1;
    seconds_ += reading, speculation_seconds_ += reading;
    last_tau_ = tau;
    last_cycle_seconds_ = cost.total();
    seconds_ += cost.total();
    speculation_seconds_ += cost.total() - mood * machine_.cycle(0);
    const Judged judged{request_, passes, drafted, accepted, accepted + 1, false, confidence_};
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
  double seconds_ = 0, speculation_seconds_ = 0, last_cycle_seconds_ = 0, load_ = 1, jitter_ = 0, look_ = 1;
  bool in_good_ = true, fresh_ = true;
  Confident confident_{};
  std::vector<float> confidence_;
  int64_t request_ = 0;
  int lag_ = 0, last_tau_ = 0;
  TauReason last_reason_ = TauReason::fixed;
};

}  // namespace paceline::test
