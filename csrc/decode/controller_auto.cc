#include "decode/controller_auto.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace paceline {
namespace {

constexpr int kProbeTau = 1, kProbeCycles = 4;
constexpr int64_t kShortestWait = 8, kLongestWait = 4096;  // plain cycles before a probe: doubled by each that fails
constexpr int kHostProbeCycles = 2;       // of what the host drafts: only what its rows cost is asked
constexpr int64_t kShortestHostWait = 64; // one match in twenty that is worth drafts shows that, too
constexpr double kPromising = 0.05;       // chance of a draft below which no cost of a row makes it worth one
constexpr int kGoodCycles = 12;           // of speculation after a probe: it was a success
constexpr int64_t kMeasureEvery = 256, kMeasureFirst = 8;  // passes with drafts between plain ones
constexpr double kHiccup = 2;             // a cycle is charged at most this many times what such cycles cost: the machine had other things to do

}  // namespace

AutoController::AutoController(const ControllerOptions& options)
    : options_(options), costs_(options.max_sequences, options.max_sequences * (options.tau + 1)), first_wait_(kShortestWait),
      passes_since_plain_(kMeasureEvery - kMeasureFirst), host_wait_(kShortestHostWait) {
  drafts_.reserve(size_t(options.max_sequences) * options.tau);
  verify_seconds_.reserve(size_t(options.max_sequences) * (options.tau + 1) + 1);
}

double AutoController::cycle_limit() const { return std::numeric_limits<double>::infinity(); }

AutoController::Request& AutoController::request(int64_t id) {
  const auto found = requests_.find(id);
  if (found != requests_.end()) return found->second;
  Request fresh;
  fresh.acceptance = AcceptanceEstimate(pooled_.next());
  for (int i = 0; i < kMatchClasses; ++i) fresh.host_acceptance[i] = AcceptanceEstimate(pooled_host_[i].next());
  fresh.wait = ledger_.has_paid() ? kShortestWait : first_wait_;
  return requests_.emplace(id, fresh).first->second;
}

void AutoController::forget(int64_t id) { requests_.erase(id); }

// Drafts of a probe's cycle: as many as there is time for.
int AutoController::probe_tau(const Candidate& candidate, int sequences) const {
  int tau = std::min(kProbeTau, candidate.most);
  while (tau > 0 && costs_.cycle(tau, 1, sequences + tau) > cycle_limit()) --tau;
  return tau;
}

// In plain passes, should every draft be wrong.
double AutoController::probe_cost(const Candidate& candidate, int sequences) const {
  const double plain = costs_.plain(sequences);
  const int tau = probe_tau(candidate, sequences);
  const double cycle = costs_.cycle(tau, 1, sequences + tau) - plain;
  return (costs_.catch_up(candidate.lag) + kProbeCycles * cycle) / plain;
}

void AutoController::go_plain(Request& request, TauReason why) {
  request.plain = true;
  request.why = why;
  request.waited = 0;
  if (request.net > 0) first_wait_ = request.wait = kShortestWait;
  else if (request.after_probe && why != TauReason::latency) first_wait_ = request.wait = std::min(2 * request.wait, kLongestWait);
  request.good_cycles = 0;
}

// A plain stretch ends when it was long enough and the ledger covers what the probe costs at worst, catch-up of the draft included.
bool AutoController::wants_probe(Request& request, const Candidate& candidate, int sequences, double* reserved) {
  if (probe_tau(candidate, sequences) == 0) return false;
  if (request.probes_left > 0) return true;
  if (!request.plain || request.waited < request.wait) return false;
  const double cost = probe_cost(candidate, sequences);
  if (ledger_.balance() - *reserved < cost) return false;
  *reserved += cost;
  request.plain = false;
  request.after_probe = true;
  request.probes_left = kProbeCycles;
  request.credit = 0;
  return true;
}

bool AutoController::host_may_probe(const Candidate& candidate, int sequences) {
  const double right = request(candidate.request).host_acceptance[size_t(candidate.match)].next();
  return candidate.source == DraftSource::ngram && candidate.own < 0 && candidate.most > 0 && right > kPromising && costs_.verify(sequences + 1) <= cycle_limit();
}

// What its rows cost is not seen where they are too dear: so it is asked again, after waits that double, if the ledger covers it.
void AutoController::wait_for_host_probe(std::span<const Candidate> candidates, std::span<const TauChoice> choices) {
  const int sequences = int(candidates.size());
  bool drafts = false, probes = false, waits = false;
  for (int i = 0; i < sequences; ++i) {
    if (!host_may_probe(candidates[i], sequences)) continue;
    probes |= choices[i].reason == TauReason::probe;
    drafts |= choices[i].tau > 0;
    waits |= choices[i].tau == 0;
  }
  if (probes) {
    --host_probes_left_;
  } else if (drafts) {
    host_waited_ = 0, host_wait_ = kShortestHostWait;
  } else if (waits && ++host_waited_ >= host_wait_) {
    const double plain = costs_.plain(sequences);
    if (ledger_.balance() < kHostProbeCycles * (costs_.verify(sequences + 1) - plain) / plain) return;
    host_waited_ = 0, host_wait_ = std::min(2 * host_wait_, kLongestWait);
    host_probes_left_ = kHostProbeCycles;
  }
}

void AutoController::choose(std::span<const Candidate> candidates, std::span<TauChoice> choices) {
  const int sequences = int(candidates.size());
  const auto everybody = [&](TauReason reason, int tau) {
    for (int i = 0; i < sequences; ++i)
      choices[i] = candidates[i].own >= 0 ? TauChoice{candidates[i].own, TauReason::request} : TauChoice{std::min(tau, candidates[i].most), reason};
  };
  const bool all_may_be_plain = std::none_of(candidates.begin(), candidates.end(), [](const Candidate& each) { return each.own > 0; });
  if (passes_since_plain_ >= kMeasureEvery && all_may_be_plain) return everybody(TauReason::measure, 0);
  const bool asks_draft = std::any_of(candidates.begin(), candidates.end(), [](const Candidate& each) { return each.source == DraftSource::model && each.most > 0; });
  if (!costs_.knows_plain() || (asks_draft && !costs_.knows_draft())) return everybody(TauReason::start, std::min(start_tau(), options_.tau));

  double reserved = 0;
  int probe_rows = 0, probe_steps = 0;
  for (int i = 0; i < sequences; ++i) {
    Request& r = request(candidates[i].request);
    choices[i] = {0, r.why};
    if (candidates[i].own >= 0) {
      choices[i] = {candidates[i].own, TauReason::request};
      const int drafts = std::min(candidates[i].own, candidates[i].most);
      probe_rows += drafts;
      probe_steps = candidates[i].source == DraftSource::model ? std::max(probe_steps, drafts) : probe_steps;
    } else if (candidates[i].most < 1) {
      choices[i].reason = best_reason();
    } else if (candidates[i].source == DraftSource::ngram) {  // has no plain stretches: what it would have drafted is judged all the same
      const bool probes = host_probes_left_ > 0 && host_may_probe(candidates[i], sequences);
      choices[i] = ledger_.balance() < 0 ? TauChoice{0, TauReason::slower} : probes ? TauChoice{1, TauReason::probe} : TauChoice{-1, best_reason()};
      probe_rows += std::max(choices[i].tau, 0);
    } else if (wants_probe(r, candidates[i], sequences, &reserved)) {
      choices[i] = {probe_tau(candidates[i], sequences), TauReason::probe};
      probe_rows += choices[i].tau;
      probe_steps = std::max(probe_steps, choices[i].tau);
    } else if (!r.plain && ledger_.balance() < 0) {
      go_plain(r, TauReason::slower);
      choices[i].reason = r.why;
    } else if (!r.plain) {
      choices[i].tau = -1;  // to be chosen
    }
  }
  best(candidates, choices, {sequences, sequences + probe_rows, probe_steps});
  wait_for_host_probe(candidates, choices);
  cycles_with_drafts_ += std::any_of(choices.begin(), choices.end(), [](const TauChoice& choice) { return choice.tau > 0; });
}

void AutoController::count(Request& r, const Judged& judged, double gained) {
  r.credit = std::min(r.credit + gained, kCredit);
  r.net = SpeculationLedger::kNetDecay * r.net + gained;
  const int tried = std::min(judged.tau, judged.emitted);  // a stop or limit may come before the first rejection
  for (int place = 1; place <= tried; ++place) {
    r.acceptance.add(place <= judged.accepted);
    if (!judged.own) pooled_.add(place <= judged.accepted);
  }
  for (int place = 1; place <= std::min(int(judged.confidence.size()), judged.accepted + 1); ++place) {
    const float confidence = judged.confidence[size_t(place) - 1];
    confidence_.met(confidence);
    if (place <= tried) confidence_.judged(confidence, place <= judged.accepted);
  }
  if (r.probes_left > 0) {
    --r.probes_left;
  } else if (r.after_probe && ++r.good_cycles >= kGoodCycles) {
    r.after_probe = false;
    first_wait_ = r.wait = kShortestWait;
  }
}

void AutoController::count_run(Request& r, const Judged& judged) {
  for (int place = 1; place <= judged.run_judged; ++place) {
    r.host_acceptance[size_t(judged.match)].add(place <= judged.run_right);
    if (!judged.own) pooled_host_[size_t(judged.match)].add(place <= judged.run_right);
  }
}

void AutoController::observe(const CycleCost& cost, std::span<const Judged> judged) {
  const double usual = costs_.usual(cost);
  costs_.add(cost);
  const auto drafts = [](const Judged& each) { return std::max(each.passes, each.tau); };  // whether or not they were verified
  int all_drafts = 0;
  for (const Judged& each : judged) all_drafts += drafts(each);
  const double plain = costs_.plain(cost.sequences);
  const double seconds = usual > 0 ? std::min(cost.total(), kHiccup * usual) : cost.total();
  const double dearer = plain > 0 ? seconds / plain - 1 : 0;  // plain passes, shared among its drafts
  passes_since_plain_ = cost.had_drafts() ? passes_since_plain_ + 1 : 0;
  double all_gained = 0;  // tokens; what a request has asked for itself is its own affair
  for (const Judged& each : judged) {
    Request& r = request(each.request);
    count_run(r, each);
    const double gained = drafts(each) > 0 ? each.emitted - 1 - dearer * cost.sequences * drafts(each) / all_drafts : 0;
    if (!each.own) all_gained += gained;
    if (each.passes > 0) count(r, each, gained);
    else if (r.plain) ++r.waited;
  }
  if (cost.had_drafts()) ledger_.gained(all_gained / cost.sequences);
  else ledger_.plain(1);
}

// Speculation pays for it, before it has brought anything. A request's first is part of its prompt.
void AutoController::observe_catch_up(int64_t id, int rows, double seconds) {
  costs_.add_catch_up(rows, seconds);
  const double plain = costs_.plain(1);
  if (plain > 0 && request(id).probes_left > 0) ledger_.gained(-seconds / plain);
}

}  // namespace paceline
