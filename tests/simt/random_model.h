// A model of nothing but random logits, of several kinds.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <initializer_list>
#include <random>

namespace paceline::test {

struct Random {
  std::mt19937 engine;
  explicit Random(unsigned seed) : engine(seed) {}
  int below(int n) { return int(engine() % unsigned(n)); }
  bool one_in(int n) { return below(n) == 0; }
  template <class T>
  T of(std::initializer_list<T> values) { return values.begin()[below(int(values.size()))]; }
};

// Of a position of a slot always the same, so that draft and target agree as far as `apart` lets them.
class RandomModel {
 public:
  RandomModel(unsigned seed, int kind, float apart, int one_bad_in) : seed_(seed), kind_(kind), apart_(apart), one_bad_in_(one_bad_in) {}
  void operator()(int slot, int position, int size, float* row) const {
    Random shared(seed_ * 7919 + slot * 104729 + position), own(unsigned(shared.engine() + std::hash<float>{}(apart_)));
    std::normal_distribution<float> normal(0, 3), noise(0, 1);
    for (int i = 0; i < size; ++i) {
      row[i] = normal(shared.engine);
      if (apart_ > 0) row[i] += apart_ * noise(own.engine);
      if (kind_ == 1) row[i] = std::round(row[i]) / 2;               // ties
      if (kind_ == 2) row[i] = i % 3 ? -0.0f : 0.0f;                 // all one value, of two signs
      if (kind_ == 3 && i % 4) row[i] = -INFINITY;                   // masked by the model
      if (kind_ == 4) row[i] *= 30;                                  // sharp
      if (kind_ == 5) row[i] = i % 2 ? row[i] * 1e-39f : row[i] * 1e-20f;  // tiny, some below the normal numbers
    }
    if (one_bad_in_ && own.one_in(one_bad_in_)) spoil(row, size, own);
  }

 private:
  static void spoil(float* row, int size, Random& random) {
    const int how = random.below(3), at = random.below(size);
    if (how == 2) std::fill(row, row + size, -INFINITY);
    else row[at] = how == 0 ? NAN : INFINITY;
  }
  unsigned seed_;
  int kind_;
  float apart_;
  int one_bad_in_;
};

}  // namespace paceline::test
