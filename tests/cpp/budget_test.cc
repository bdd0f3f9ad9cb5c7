// Who may draft under a budget of rows, against a list that is sorted.
#include <algorithm>
#include <numeric>
#include <random>

#include "cpp/test.h"
#include "math/cycle_rules.h"

using namespace paceline;
using namespace paceline::test;

namespace {

struct Slots {
  std::vector<int32_t> running, drafting;
  std::vector<double> confidence;
  bool may(int budget, int step, int slot) const {
    return within_budget(budget, int(running.size()), running.data(), drafting.data(), confidence.data(), step, slot);
  }
};

Slots random_slots(std::mt19937& random, int count, int step, int kinds) {
  Slots slots;
  for (int slot = 0; slot < count; ++slot) {
    slots.running.push_back(random() % 5 != 0);
    slots.drafting.push_back(slots.running.back() ? int(random() % (step + 3)) : 0);
    slots.confidence.push_back(double(random() % kinds) / kinds);
  }
  return slots;
}

}  // namespace

TEST(the_most_confident_go_first_and_of_the_equally_sure_the_lower_slot) {
  std::mt19937 random(1);
  long allowed = 0, refused = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    const int count = 1 + int(random() % 9), step = int(random() % 4), budget = 1 + int(random() % 30);
    const Slots slots = random_slots(random, count, step, trial % 2 ? 3 : 1 << 20);
    std::vector<int> asking;
    int rows = 0;
    for (int slot = 0; slot < count; ++slot) {
      if (!slots.running[slot]) continue;
      rows += 1 + std::min(slots.drafting[slot], step);
      if (slots.drafting[slot] > step) asking.push_back(slot);
    }
    std::stable_sort(asking.begin(), asking.end(), [&](int a, int b) { return slots.confidence[a] > slots.confidence[b]; });
    for (size_t i = 0; i < asking.size(); ++i) {
      const bool fits = rows + int(i) + 1 <= budget, may = slots.may(budget, step, asking[i]);
      CHECK(may == fits, "trial ", trial, ", slot ", asking[i], ": ", may, " instead of ", fits);
      ++(may ? allowed : refused);
    }
  }
  CHECK(allowed > 5000 && refused > 5000, allowed, " ", refused);
}

TEST_MAIN()
