// What passes cost of late, and how long a piece of a prompt may make running sequences wait.
#pragma once

#include <algorithm>
#include <array>

namespace paceline {

// The smallest of the last eight values. On a shared machine noise only ever adds time, so the smallest is the one that is least of it; eight,
// so that costs that do change (a longer context, more sequences) are forgotten soon.
class RecentMinimum {
 public:
  void add(double value) { values_[count_++ % values_.size()] = value; }
  // 0 before the first.
  double value() const {
    const size_t known = std::min(count_, values_.size());
    return known ? *std::min_element(values_.begin(), values_.begin() + known) : 0;
  }

 private:
  std::array<double, 8> values_{};
  size_t count_ = 0;
};

constexpr int kRowsAtFirst = 32;        // before anything is known
constexpr int kFewestRows = 8;          // fewer would read all weights for too little
constexpr double kPassesToWait = 4;     // plain passes a running sequence may wait for a piece of somebody else's prompt

// Rows of a prefill pass beside running sequences: the largest power of two that costs at most four plain passes. Never below eight rows, nor
// above `most`. A cost of 0 is not known.
inline int rows_beside(double seconds_per_row, double plain_pass_seconds, int most) {
  const bool known = seconds_per_row > 0 && plain_pass_seconds > 0;
  int rows = kFewestRows;
  while (2 * rows <= most && (known ? 2 * rows * seconds_per_row <= kPassesToWait * plain_pass_seconds : 2 * rows <= kRowsAtFirst)) rows *= 2;
  return std::min(rows, most);
}

}  // namespace paceline
