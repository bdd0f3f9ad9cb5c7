#include "decode/controller_latency.h"

#include <algorithm>

namespace paceline {
namespace {

constexpr int kLately = 4;
constexpr int kAllowedOf = 1;  // of the ring: may be dearer
constexpr double kStep = 0.02, kShareMissed = 0.005;

}  // namespace

// Every cycle with drafts asks how sure the draft is: if one in eight did, and took longer than the others, that one would be late.
void LatencyController::choose(std::span<const Candidate> candidates, std::span<TauChoice> choices) {
  AutoController::choose(candidates, choices);
  for (size_t i = 0; i < choices.size(); ++i)
    if (choices[i].tau > 0 && candidates[i].own < 0) choices[i].stop_below = std::max(choices[i].stop_below, kOnlyLook);
}

void LatencyController::observe(const CycleCost& cost, std::span<const Judged> judged) {
  const double expected = costs().usual(cost);
  if (expected > 0) ratio_[size_t(count_++ % int64_t(ratio_.size()))] = float(cost.total() / expected);
  sequences_ = cost.sequences;
  piece_ = 0;
  margin_ = std::clamp(margin_ + kStep * ((cost.had_drafts() && cost.total() > target_) - kShareMissed), 0.0, 0.5);
  AutoController::observe(cost, judged);
}

// Beside a plain cycle: the next one makes do with what is left.
double LatencyController::spare_seconds() const { return std::max(0.0, cycle_limit() - costs().plain(sequences_)); }

double LatencyController::dearer() const {
  const int known = int(std::min<int64_t>(count_, int64_t(ratio_.size())));
  if (known == 0) return 1;
  float latest = 1;
  for (int64_t i = std::max<int64_t>(0, count_ - kLately); i < count_; ++i) latest = std::max(latest, ratio_[size_t(i % int64_t(ratio_.size()))]);
  std::array<float, 200> sorted = ratio_;
  const int at = std::max(0, known - 1 - kAllowedOf);
  std::nth_element(sorted.begin(), sorted.begin() + at, sorted.begin() + known);
  return std::max({1.0f, latest, sorted[size_t(at)]});
}

}  // namespace paceline
