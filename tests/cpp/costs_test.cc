// The cost model against planted machines: T(M) of passes that really ran, and what it says of those that did not.
#include "decode/costs.h"

#include <cmath>
#include <random>

#include "cpp/test.h"

using namespace paceline;
using namespace paceline::test;

namespace {

// T(M) of a memory-bound pass that turns compute-bound at 9 rows.
double knee(int rows) { return rows < 9 ? 1 + 0.004 * rows : 1 + 0.004 * 8 + 0.11 * (rows - 8); }

bool near(double a, double b, double by) { return std::fabs(a - b) <= by * std::fabs(b); }

}  // namespace

TEST(a_curve_knows_what_it_was_shown_and_lies_between_what_it_was_not) {
  CostCurve curve(32);
  CHECK(curve.at(4) == 0);
  for (int rows : {1, 4, 8, 16}) curve.add(rows, knee(rows));
  for (int rows : {1, 4, 8, 16}) CHECK(near(curve.at(rows), knee(rows), 1e-12), rows, " rows: ", curve.at(rows));
  CHECK(near(curve.at(6), (knee(4) + knee(8)) / 2, 1e-12));
  CHECK(curve.at(20) > curve.at(16), "the line goes on");
  CHECK(curve.most_known() == 16);
}

TEST(a_curve_rises_and_disturbances_do_not_move_it) {
  std::mt19937 random(3);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (int trial = 0; trial < 200; ++trial) {
    CostCurve curve(16);
    for (int pass = 0; pass < 400; ++pass) {
      const int rows = 1 + int(uniform(random) * 12);
      const double hiccup = uniform(random) < 0.03 ? 20 : 1;  // one pass in thirty was interrupted
      curve.add(rows, knee(rows) * (1 + 0.02 * (uniform(random) - 0.5)) * hiccup);
    }
    for (int rows = 2; rows <= 16; ++rows) CHECK(curve.at(rows) >= curve.at(rows - 1), "falls at ", rows);
    for (int rows : {1, 5, 9, 12}) CHECK(near(curve.at(rows), knee(rows), 0.03), rows, " rows: ", curve.at(rows), " instead of ", knee(rows));
  }
}

TEST(below_the_first_pass_nothing_is_gained) {
  CostCurve curve(16);
  curve.add(5, 2.0);
  CHECK(curve.at(1) == 2.0 && curve.at(5) == 2.0 && curve.at(9) == 2.0);
}

TEST(what_no_pass_has_shown_for_long_is_forgotten) {
  CostCurve curve(16);
  for (int i = 0; i < 8; ++i) curve.add(9, 90.0);
  for (int i = 0; i < 1100; ++i) curve.add(1 + i % 2, 1.0);
  CHECK(near(curve.at(9), 1.0, 1e-9), "nine rows still cost ", curve.at(9));
}

TEST(a_change_shows_after_eight_passes) {
  CostCurve curve(4);
  for (int i = 0; i < 100; ++i) curve.add(2, 1.0);
  for (int i = 0; i < 8; ++i) curve.add(2, 3.0);
  CHECK(curve.at(2) == 3.0);
}

// Passes of two rows that met a disturbance: when it is over, passes of one row, which never did, have not become cheaper.
TEST(what_is_seen_often_is_not_moved_by_what_is_seen_seldom) {
  CostCurve curve(8);
  for (int i = 0; i < 300; ++i) {
    curve.add(1, 1.0);
    if (i % 30 == 0) curve.add(2, i < 120 ? 6.0 : 1.1);
    CHECK(curve.at(1) == 1.0, curve.at(1), " after ", i);
  }
  CHECK(curve.at(2) == 1.1, curve.at(2));
  for (int i = 0; i < 20; ++i) curve.add(1, 2.0);
  CHECK(curve.at(1) == 2.0 && std::fabs(curve.at(2) - 2.2) < 1e-9, curve.at(1), ", ", curve.at(2));
}

TEST(a_cycle_is_the_sum_of_its_parts) {
  Costs costs(4, 40);
  CHECK(!costs.knows_plain() && !costs.knows_draft());
  costs.add({1, 1, 0, 0.0, 2.0, 0.25});
  CHECK(costs.knows_plain() && !costs.knows_draft());
  costs.add({1, 5, 4, 0.8, 3.0, 0.25});
  CHECK(near(costs.cycle(4, 1, 5), 0.8 + 3.0 + 0.25, 1e-12));
  CHECK(near(costs.cycle(2, 1, 3), 0.4 + 2.5 + 0.25, 1e-12), costs.cycle(2, 1, 3));
  CHECK(near(costs.plain(1), 2.25, 1e-12));
  CHECK(near(costs.catch_up(10), 10 * 0.2, 1e-12), "before any: a step for each");
  costs.add_catch_up(50, 1.0);
  CHECK(near(costs.catch_up(10), 0.2, 1e-12));
}

// Drafts of four that all end at their first place: the pass had four rows, though none was verified.
TEST(rows_that_ended_drafts_are_rows_of_the_drafts_pass) {
  Costs costs(4, 40);
  costs.add({1, 1, 0, 0.0, 1.0, 0.0});
  costs.add({1, 2, 1, 0.1, 1.0, 0.0});
  for (int i = 0; i < 8; ++i) costs.add({4, 4, 1, 0.3, 1.0, 0.0, 4});
  CHECK(near(costs.draft_step(1), 0.1, 1e-12) && near(costs.draft_step(4), 0.3, 1e-12), costs.draft_step(1), " and ", costs.draft_step(4));
  CHECK(near(costs.usual({4, 4, 1, 0.0, 0.0, 0.0, 4}), 1.3, 1e-12));
}

TEST_MAIN()
