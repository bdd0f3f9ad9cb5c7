// Pearson's X2 of counts against expectations, and how likely one as large is by chance.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace paceline::reference {

// Q(a, x) = Gamma(a, x) / Gamma(a): by its series below a + 1, by its continued fraction (Lentz) above.
inline double upper_gamma(double a, double x) {
  if (x <= 0) return 1;
  const double scale = std::exp(-x + a * std::log(x) - std::lgamma(a));
  if (x < a + 1) {
    double term = 1 / a, sum = term;
    for (int n = 1; n < 10000 && term > sum * 1e-16; ++n) sum += term *= x / (a + n);
    return 1 - sum * scale;
  }
  double b = x + 1 - a, c = 1e300, d = 1 / b, h = d;
  for (int n = 1; n < 10000; ++n) {
    const double an = -n * (n - a);
    b += 2;
    d = 1 / (an * d + b);
    c = b + an / c;
    h *= d * c;
    if (std::fabs(d * c - 1) < 1e-15) break;
  }
  return scale * h;
}

struct ChiSquare {
  double statistic, degrees, p_value;
};

// Cells of expectation below 20 are pooled: a test at 1e-6 keeps its size only so. A count where nothing can fall gives p = 0.
inline ChiSquare chi_square(const std::vector<long>& counts, const std::vector<double>& expected) {
  std::vector<std::pair<double, double>> cells;
  double pooled_count = 0, pooled = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (expected[i] == 0 && counts[i] > 0) return {INFINITY, 1, 0};
    if (expected[i] >= 20) {
      cells.push_back({double(counts[i]), expected[i]});
    } else {
      pooled_count += double(counts[i]);
      pooled += expected[i];
    }
  }
  if (pooled >= 20 || cells.empty()) {
    cells.push_back({pooled_count, pooled});
  } else {
    auto& smallest = *std::min_element(cells.begin(), cells.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
    smallest.first += pooled_count;
    smallest.second += pooled;
  }
  double statistic = 0;
  for (const auto& [count, mean] : cells) statistic += (count - mean) * (count - mean) / mean;
  const double degrees = double(cells.size()) - 1;
  return {statistic, degrees, degrees > 0 ? upper_gamma(degrees / 2, statistic / 2) : 1};
}

}  // namespace paceline::reference
