// A number and a bound on what fp32 arithmetic may have made of it: running error analysis (Wilkinson 1963, "Rounding errors
// in algebraic processes"). Oracles are written once, in plain mathematics, and yield their own tolerance from the unit
// roundoff and the length of each reduction. Rounding to bf16 is a step of the definition, so it is applied to both ends of
// the interval: a value that is surely on one side of a tie gets no tolerance at all.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace paceline::reference {

constexpr double kUnit = 0x1p-24;    // unit roundoff of fp32
constexpr double kFlushed = 0x1p-126;  // subnormals may become 0

struct Near {
  double value = 0, error = 0;
};

inline Near exactly(double value) { return {value, 0}; }
inline Near computed(double value, double error) { return {value, error + kUnit * (std::fabs(value) + error) + kFlushed}; }

inline Near operator+(Near a, Near b) { return computed(a.value + b.value, a.error + b.error); }
inline Near operator-(Near a, Near b) { return computed(a.value - b.value, a.error + b.error); }
inline Near operator*(Near a, Near b) {
  return computed(a.value * b.value, std::fabs(a.value) * b.error + std::fabs(b.value) * a.error + a.error * b.error);
}
inline Near operator/(Near a, Near b) {
  const double value = a.value / b.value;
  return computed(value, (a.error + std::fabs(value) * b.error) / (std::fabs(b.value) - b.error));
}
inline Near square_root(Near a) {
  const double value = std::sqrt(a.value);
  return computed(value, value - std::sqrt(std::max(0.0, a.value - a.error)));
}
// The engine's exponential is a polynomial of relative error below 2^-22.
inline Near exponential(Near a) {
  const double value = std::exp(a.value);
  return computed(value, value * (std::expm1(a.error) + 4 * kUnit));
}

// Nearest bf16, ties to even, written from the definition: eight significant bits.
inline double nearest_bf16(double x) {
  if (x == 0) return x;
  int exponent;
  std::frexp(x, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(x, 8 - exponent)), exponent - 8);
}
inline Near nearest_bf16(Near a) {
  const double low = nearest_bf16(a.value - a.error), high = nearest_bf16(a.value + a.error);
  return {(low + high) / 2, (high - low) / 2};
}

// The kernels add in other orders than the oracles (trees, pairs), which moves the bound by less than a factor of two.
inline bool agrees(double got, Near want) { return std::fabs(got - want.value) <= 2 * want.error; }

}  // namespace paceline::reference
