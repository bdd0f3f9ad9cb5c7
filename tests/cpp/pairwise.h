// Cases in which every pair of levels of any two factors meets at least once: what a full product would show in a few cases.
#pragma once

#include <random>
#include <set>
#include <tuple>
#include <vector>

namespace paceline::test {

// levels[f] levels of factor f -> rows of one level per factor. Greedy: of 50 random rows the one that covers most is taken.
inline std::vector<std::vector<int>> pairwise(const std::vector<int>& levels, unsigned seed) {
  std::set<std::tuple<int, int, int, int>> missing;
  const int factors = int(levels.size());
  for (int a = 0; a < factors; ++a)
    for (int b = a + 1; b < factors; ++b)
      for (int x = 0; x < levels[a]; ++x)
        for (int y = 0; y < levels[b]; ++y) missing.insert({a, b, x, y});
  const auto covered_by = [&](const std::vector<int>& row, bool remove) {
    int count = 0;
    for (int a = 0; a < factors; ++a)
      for (int b = a + 1; b < factors; ++b) {
        const std::tuple pair{a, b, row[a], row[b]};
        count += int(missing.count(pair));
        if (remove) missing.erase(pair);
      }
    return count;
  };
  std::mt19937 random(seed);
  std::vector<std::vector<int>> rows;
  while (!missing.empty()) {
    std::vector<int> best;
    int most = -1;
    for (int i = 0; i < 50; ++i) {
      std::vector<int> row(factors);
      for (int f = 0; f < factors; ++f) row[f] = int(random() % levels[f]);
      const auto& [a, b, x, y] = *missing.begin();  // so that every row covers something
      row[a] = x, row[b] = y;
      const int count = covered_by(row, false);
      if (count > most) most = count, best = row;
    }
    covered_by(best, true);
    rows.push_back(best);
  }
  return rows;
}

}  // namespace paceline::test
