// How likely the next draft is to be accepted, from the drafts that were judged.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace paceline {

// Three decayed means, quick to slow, mixed by how well each has predicted of late (exponential weights with a fixed share: Herbster and
// Warmuth 1998). A steady draft is known by the slow one to a per cent; where acceptance comes in runs the quick one follows them.
class AcceptanceEstimate {
 public:
  static constexpr double kPriorAcceptance = 0.6;

  explicit AcceptanceEstimate(double prior = kPriorAcceptance) { mean_.fill(prior); }

  double next() const {
    double sum = 0;
    for (std::size_t i = 0; i < mean_.size(); ++i) sum += weight_[i] * mean_[i];
    return sum;
  }

  // For giving up, which is dear where it is wrong: the best that any of them says which is not refuted.
  double hopeful() const {
    double best = next();
    for (std::size_t i = 0; i < mean_.size(); ++i) best = weight_[i] >= kRefuted && mean_[i] > best ? mean_[i] : best;
    return best;
  }

  void add(bool accepted) {
    double total = 0;
    for (std::size_t i = 0; i < mean_.size(); ++i) total += weight_[i] *= accepted ? mean_[i] : 1 - mean_[i];
    ++count_;
    for (std::size_t i = 0; i < mean_.size(); ++i) {
      weight_[i] = (1 - kShare) * weight_[i] / total + kShare / double(mean_.size());
      const double rate = kRate[i] > 1.0 / double(count_ + kPrior) ? kRate[i] : 1.0 / double(count_ + kPrior);
      mean_[i] += rate * ((accepted ? 1 - kEnd : kEnd) - mean_[i]);  // kept off the ends, where a surprise would be infinite
    }
  }

 private:
  static constexpr std::array<double, 3> kRate = {1.0 / 6, 1.0 / 24, 1.0 / 256};
  static constexpr double kShare = 0.02, kEnd = 0.005, kRefuted = 0.05;
  static constexpr long kPrior = 3;  // drafts that the prior is worth

  std::array<double, 3> mean_{}, weight_ = {1.0 / 3, 1.0 / 3, 1.0 / 3};
  long count_ = 0;
};

}  // namespace paceline
