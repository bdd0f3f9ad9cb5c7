// What the draft's confidence, the largest probability of its row, says of the draft it proposes there: how often it is met, and how often
// the draft is right, by tenths. From it, what a threshold would keep: rows, and drafts that are right.
#pragma once

#include <algorithm>
#include <array>

namespace paceline {

class ConfidenceTable {
 public:
  static constexpr int kClasses = 10;

  static int class_of(float confidence) { return std::clamp(int(confidence * kClasses), 0, kClasses - 1); }
  // Of the threshold that keeps class k and those above it.
  static float threshold(int k) { return float(k) / kClasses; }

  // A place that was reached, all drafts before it being right; and whether its own was, if it is known.
  void met(float confidence) {
    if (seen_ >= kMemory)
      for (Class& each : classes_) each.met *= 1 - 1.0 / kMemory;
    else
      ++seen_;
    classes_[class_of(confidence)].met += 1;
  }
  void judged(float confidence, bool right) {
    Class& of = classes_[class_of(confidence)];
    of.chance += (double(right) - of.chance) / (of.judged = std::min(of.judged + 1, kMemory / kClasses));
  }

  // Before that many places were met it says nothing of thresholds.
  bool knows() const { return seen_ >= kEnough; }
  // Of the places that are met, those that a threshold keeps; and of the drafts that are right, likewise.
  double rows_kept(int k) const { return sum(k, [](const Class& each) { return each.met; }); }
  double right_kept(int k) const { return sum(k, [](const Class& each) { return each.met * each.chance; }); }

 private:
  static constexpr double kMemory = 2000, kEnough = 48;
  struct Class {
    double met = 0, judged = 3, chance = 0;  // as if three drafts of it had been right as often as the draft is sure
  };
  template <class Weight>
  double sum(int from, const Weight& weight) const {
    double kept = 0, all = 0;
    for (int k = 0; k < kClasses; ++k) (k >= from ? kept : all) += weight(classes_[size_t(k)]);
    return from == 0 ? 1 : kept > 0 ? kept / (all + kept) : 0;
  }
  static std::array<Class, kClasses> calibrated() {
    std::array<Class, kClasses> all;
    for (int k = 0; k < kClasses; ++k) all[size_t(k)].chance = (k + 0.5) / kClasses;
    return all;
  }

  std::array<Class, kClasses> classes_ = calibrated();
  double seen_ = 0;
};

}  // namespace paceline
