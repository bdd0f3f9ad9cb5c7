// `auto`: the taus that give most tokens per second, never slower than plain decoding. With a latency target: among those that keep it.
#pragma once

#include <algorithm>
#include <array>
#include <unordered_map>

#include "decode/acceptance_estimate.h"
#include "decode/confidence_table.h"
#include "decode/controller.h"

namespace paceline {

// What speculation may lose, in plain passes. It begins with an allowance, earns two per cent of every plain pass, and of its own gains keeps
// what refills the allowance, and a tenth of those of late: so a draft that is never right costs at most the allowance and two per cent, and
// one that was right for hours and is no longer is given up nearly as soon.
class SpeculationLedger {
 public:
  static constexpr double kAllowance = 6, kEarned = 0.02, kKept = 0.1;
  static constexpr double kNetDecay = 0.999;  // per cycle: of late is a thousand cycles or so

  void plain(double passes) { balance_ += kEarned * passes; }
  void gained(double passes) {
    net_ = kNetDecay * net_ + passes;
    const double most = kAllowance + kKept * std::max(net_, 0.0);
    balance_ = passes > 0 ? std::max(balance_, std::min(balance_ + passes, most)) : balance_ + passes;
  }
  double balance() const { return balance_; }
  // Whether it has brought more than it cost, of late.
  bool has_paid() const { return net_ > 0; }

 private:
  double balance_ = kAllowance, net_ = 0;
};

class AutoController : public Controller {
 public:
  explicit AutoController(const ControllerOptions& options);
  void choose(std::span<const Candidate> candidates, std::span<TauChoice> choices) override;
  void observe(const CycleCost& cost, std::span<const Judged> judged) override;
  void observe_catch_up(int64_t request, int rows, double seconds) override;
  void forget(int64_t request) override;
  double draft_cost() const override { return costs_.knows_draft() ? costs_.draft_step(1) / costs_.plain(1) : 0; }

  const Costs& costs() const { return costs_; }

 protected:
  // Seconds that a cycle may take; infinite without a latency target.
  virtual double cycle_limit() const;
  // Of that, what a piece of a prompt has taken before the cycle under choice.
  virtual double piece_seconds() const { return 0; }
  virtual TauReason best_reason() const { return TauReason::best; }
  // Before it is known what drafts cost.
  virtual int start_tau() const { return 3; }

 private:
  static constexpr double kCredit = 2.5;
  struct Request {
    AcceptanceEstimate acceptance;
    std::array<AcceptanceEstimate, kMatchClasses> host_acceptance;  // of what the host proposes, by the class of its match
    bool plain = false;       // decodes plainly until it probes
    bool after_probe = false; // no success since the last probe
    TauReason why = TauReason::not_worth;
    int64_t waited = 0, wait = 0;  // cycles of the plain stretch, and how many until the next probe
    int probes_left = 0;
    int good_cycles = 0;      // of speculation, since the last probe
    double credit = kCredit;  // what its drafts brought less what they cost, in tokens of plain decoding: at most kCredit
    double net = 0;           // the same of late, without a bound
  };
  // One more draft of one candidate.
  struct Draft {
    int candidate, place;  // place 1 is the first of the cycle
    bool on_host;          // it is there: no step of the draft makes it
    double reached_and_right, drafted;  // its chances
  };
  // The pass under choice: who drafts whatever else is chosen.
  struct Pass {
    int sequences, free_rows, probe_steps;
  };
  // The first `count` of drafts_ that are the host's or whose place is at most `steps`, and tokens per second with them.
  struct Best {
    double rate = 0;
    int count = 0, steps = 0;
  };

  Request& request(int64_t id);
  int probe_tau(const Candidate& candidate, int sequences) const;
  double probe_cost(const Candidate& candidate, int sequences) const;
  bool wants_probe(Request& request, const Candidate& candidate, int sequences, double* reserved);
  void go_plain(Request& request, TauReason why);
  bool host_may_probe(const Candidate& candidate, int sequences);
  void wait_for_host_probe(std::span<const Candidate> candidates, std::span<const TauChoice> choices);
  void best(std::span<const Candidate> candidates, std::span<TauChoice> choices, const Pass& pass);
  void list_drafts(std::span<const Candidate> candidates, std::span<const TauChoice> choices, int threshold);
  Best best_of_listed(const Pass& pass, int threshold) const;
  float stop_below() const;
  void count(Request& request, const Judged& judged, double gained);
  void count_run(Request& request, const Judged& judged);

  ControllerOptions options_;
  Costs costs_;
  SpeculationLedger ledger_;
  std::unordered_map<int64_t, Request> requests_;
  AcceptanceEstimate pooled_;          // what a new request begins with
  std::array<AcceptanceEstimate, kMatchClasses> pooled_host_;
  std::vector<Draft> drafts_;          // scratch of `best`
  std::vector<double> verify_seconds_;
  int64_t first_wait_;                 // of a request's first plain stretch: what the last probes of others came to
  int64_t passes_since_plain_;
  int64_t host_waited_ = 0, host_wait_;  // passes in which the host's drafts were not worth it, and how many until the next probe
  int host_probes_left_ = 0;
  ConfidenceTable confidence_;
  int threshold_ = 0;                  // class of confidence_ that drafts must have at least; 0 = any
  int64_t cycles_with_drafts_ = 0;
};

}  // namespace paceline
