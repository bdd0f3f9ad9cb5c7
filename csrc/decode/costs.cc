#include "decode/costs.h"

#include <algorithm>
#include <cmath>

namespace paceline {
namespace {

constexpr long kForgetAfter = 1024;  // passes: a context or a load later, an old value says nothing
constexpr int kSettled = 4;          // passes after which a median says how dear passes are now
constexpr double kLate = 1.0 / 64;   // of all passes
constexpr double kCatchUpDecay = 0.2;

}  // namespace

double CostCurve::Seen::median() const {
  std::array<double, 8> sorted{};
  for (int held = 0; held < known(); ++held) {
    int at = held;
    for (; at > 0 && sorted[at - 1] > seconds[held]; --at) sorted[at] = sorted[at - 1];
    sorted[at] = seconds[held];
  }
  return sorted[(known() - 1) / 2];  // the lower one: what disturbs a pass only makes it longer
}

CostCurve::CostCurve(int most_rows) : seen_(size_t(most_rows) + 1) { knots_.reserve(seen_.size()); }

void CostCurve::add(int rows, double seconds, bool ages) {
  if (rows < 1 || rows >= int(seen_.size()) || !(seconds >= 0)) return;
  Seen& seen = seen_[rows];
  const double before = seen.known() >= kSettled ? seen.median() : 0;
  seen.seconds[seen.count++ % seen.seconds.size()] = seconds;
  passes_ += ages;
  for (Seen& each : seen_) each.late *= 1 - kLate;
  seen.late += 1;
  seen.last_pass = passes_;
  if (before > 0) move_others(seen, seen.median() / before);
  fit();
}

// The factors of one number's medians multiply to last over first, so that noise does not walk away with the others.
void CostCurve::move_others(const Seen& seen, double factor) {
  if (factor == 1) return;
  for (Seen& other : seen_)
    if (2 * other.late < seen.late && other.count)
      for (double& value : other.seconds) value *= factor;
}

// Pool adjacent violators: a number of rows that seems cheaper than a smaller one shares its mean, each weighted by its passes.
void CostCurve::fit() {
  knots_.clear();
  double passes = 0, rows = 0, seconds = 0;
  for (size_t i = 1; i < seen_.size(); ++i) {
    if (!seen_[i].count) continue;
    if (passes_ - seen_[i].last_pass > kForgetAfter) {
      seen_[i] = Seen{};
      continue;
    }
    const double weight = seen_[i].known();
    knots_.push_back({double(i), seen_[i].median(), weight});
    passes += weight, rows += weight * double(i), seconds += weight * knots_.back().seconds;
  }
  double covariance = 0, variance = 0;
  for (const Knot& knot : knots_) {
    covariance += knot.weight * (knot.rows - rows / passes) * (knot.seconds - seconds / passes);
    variance += knot.weight * (knot.rows - rows / passes) * (knot.rows - rows / passes);
  }
  slope_ = variance > 0 ? std::max(0.0, covariance / variance) : 0;
  for (size_t i = 1; i < knots_.size(); ++i) {
    size_t first = i;
    double weight = knots_[i].weight, sum = weight * knots_[i].seconds;
    while (first > 0 && knots_[first - 1].seconds > sum / weight) {
      --first;
      weight += knots_[first].weight;
      sum += knots_[first].weight * knots_[first].seconds;
    }
    for (size_t k = first; k <= i; ++k) knots_[k].seconds = sum / weight;
  }
}

double CostCurve::at(double rows) const {
  if (knots_.empty()) return 0;
  if (rows <= knots_.front().rows) return knots_.front().seconds;
  if (rows >= knots_.back().rows) return knots_.back().seconds + slope_ * (rows - knots_.back().rows);
  const auto above = std::find_if(knots_.begin(), knots_.end(), [rows](const Knot& knot) { return knot.rows >= rows; });
  const Knot &a = above[-1], &b = *above;
  return a.seconds + (b.seconds - a.seconds) * (rows - a.rows) / (b.rows - a.rows);
}

Costs::Costs(int max_sequences, int max_rows) : verify_(max_rows), rest_(max_rows), draft_(max_sequences) {}

void Costs::add(const CycleCost& cycle) {
  verify_.add(cycle.rows, cycle.verify, cycle.had_drafts());
  rest_.add(cycle.rows, cycle.rest, cycle.had_drafts());
  if (cycle.steps > 0) draft_.add(int(std::ceil(cycle.drafting())), cycle.draft / cycle.steps);
}

void Costs::add_catch_up(int rows, double seconds) {
  if (rows < 1) return;
  const double one = seconds / rows;
  catch_up_row_ = catch_up_row_ > 0 ? catch_up_row_ + kCatchUpDecay * (one - catch_up_row_) : one;
}

double Costs::catch_up(int rows) const { return rows * (catch_up_row_ > 0 ? catch_up_row_ : draft_step(1)); }

}  // namespace paceline
