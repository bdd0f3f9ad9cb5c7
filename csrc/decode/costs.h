// What a cycle costs, learned from the cycles that really run. Numbers in, numbers out: there is no clock and no backend here, so that a
// test can plant any machine. Seconds throughout, but every use of them is a quotient.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

namespace paceline {

// Seconds against rows, as far as passes have shown it. Of each number of rows the median of its last eight passes counts; the medians are
// made to rise with the rows (isotonic regression), lines run between them, and beyond the last one the line that fits all of them goes on.
// Below the first one nothing is gained: T(first). What no pass has shown for a long time is forgotten, but not while decoding is plain: then
// it is all that is known of the rest. Where passes of one number of rows grow dearer or cheaper (the machine's load, the context), those numbers that
// were seen less of late are taken to have done likewise: the others show it themselves.
class CostCurve {
 public:
  explicit CostCurve(int most_rows);
  void add(int rows, double seconds, bool ages = true);
  double at(double rows) const;  // 0 before the first pass
  int most_known() const { return knots_.empty() ? 0 : int(knots_.back().rows); }

 private:
  struct Seen {
    std::array<double, 8> seconds{};
    int count = 0;       // ever
    long last_pass = 0;  // when it was seen last
    double late = 0;     // passes of late
    int known() const { return count < int(seconds.size()) ? count : int(seconds.size()); }
    double median() const;
  };
  struct Knot {
    double rows, seconds, weight;
  };
  void move_others(const Seen& seen, double factor);
  void fit();

  std::vector<Seen> seen_;    // [most rows + 1]
  std::vector<Knot> knots_;   // ascending in both
  double slope_ = 0;          // seconds per row beyond the last knot
  long passes_ = 0;
};

// One cycle as it was measured.
struct CycleCost {
  int sequences;   // that took part
  int rows;        // of the target's pass: sequences plus drafts
  int steps;       // passes of the draft
  double draft;    // seconds of all its passes
  double verify;   // seconds of the target's pass
  double rest;     // seconds of sampling, acceptance and the host
  int draft_rows = -1;  // of the draft's passes, those that ended drafts included; -1: as many as drafts that were verified
  double total() const { return draft + verify + rest; }
  bool had_drafts() const { return steps > 0 || rows > sequences; }  // the host's take no step
  // Sequences in a pass of the draft, on average.
  double drafting() const { return steps ? std::max(double(draft_rows < 0 ? rows - sequences : draft_rows) / steps, 1.0) : 0.0; }
};

class Costs {
 public:
  Costs(int max_sequences, int max_rows);

  void add(const CycleCost& cycle);
  void add_catch_up(int rows, double seconds);

  bool knows_plain() const { return verify_.most_known() > 0; }
  bool knows_draft() const { return draft_.most_known() > 0; }
  int most_rows_known() const { return verify_.most_known(); }
  // A cycle of `steps` draft passes of `drafting` sequences on average, and one pass of the target over `rows` rows.
  double cycle(int steps, double drafting, int rows) const { return steps * draft_step(drafting) + verify(rows); }
  // Of a cycle like this one.
  double usual(const CycleCost& c) const {
    return cycle(c.steps, c.drafting(), c.rows);
  }
  double plain(int sequences) const { return verify(sequences); }
  double draft_step(double drafting) const { return drafting > 0 ? draft_.at(drafting) : 0; }
  // The target's pass with all that follows it.
  double verify(int rows) const { return verify_.at(rows) + rest_.at(rows); }
  // Rows that the draft lacks, read in a pass of their own. Before any such pass: as much as a step for each.
  double catch_up(int rows) const;

 private:
  CostCurve verify_, rest_, draft_;
  double catch_up_row_ = 0;  // seconds, decayed
};

}  // namespace paceline
