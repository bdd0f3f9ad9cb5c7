// What passes cost of late, and how long a piece of a prompt may make running sequences wait.
#pragma once

#include <algorithm>
#include <array>

namespace paceline {

// The last eight values: enough to see past a disturbance, few enough that costs which do change (a longer context, more sequences) are
// forgotten soon.
class Recent {
 public:
  void add(double value) { values_[count_++ % values_.size()] = value; }
  // 0 before the first.
  double least() const { return known() ? *std::min_element(values_.begin(), values_.begin() + known()) : 0; }
  double most() const { return known() ? *std::max_element(values_.begin(), values_.begin() + known()) : 0; }

 private:
  size_t known() const { return std::min(count_, values_.size()); }

  std::array<double, 8> values_{};
  size_t count_ = 0;
};

constexpr int kRowsAtFirst = 32;        // before anything is known
constexpr int kFewestRows = 8;          // fewer would read all weights for too little
constexpr double kPassesToWait = 4;     // plain passes a running sequence may wait for a piece of somebody else's prompt
constexpr double kShareAimedAt = 0.75;  // of that: the next rows are dearer than the last ones, and a machine has moods

// Rows of a prefill pass beside running sequences: as many eights as cost four plain passes at most. Never below eight rows, nor above `most`.
// A cost of 0 is not known.
inline int rows_beside(double seconds_per_row, double plain_pass_seconds, int most) {
  if (seconds_per_row <= 0 || plain_pass_seconds <= 0) return std::min(kRowsAtFirst, most);
  const double rows = std::min(kShareAimedAt * kPassesToWait * plain_pass_seconds / seconds_per_row, double(most));
  return std::min(std::max(int(rows) / kFewestRows * kFewestRows, kFewestRows), most);
}

}  // namespace paceline
