// `auto`, of a pass in which somebody drafts: how many drafts each, and how sure the draft must be of them.
#include <algorithm>
#include <cmath>

#include "decode/controller_auto.h"

namespace paceline {
namespace {

constexpr int kFurther = 2;  // rows per sequence beyond what was measured, at most
// Cycles with drafts. With a lift in 32 the threshold brought 1 to 2 % less on a simulated clock than with one in 128 (controller_test).
constexpr int kReviewEvery = 4, kLookEvery = 8, kLookFirst = 2, kLiftEvery = 128;
constexpr double kBetter = 1.01;  // what another threshold must promise

}  // namespace

// Dinkelbach's problem, small enough to be walked: for each number of steps, drafts in the order of their chance to be reached and right,
// as long as the rate grows. Chances fall along a cycle, so a request's drafts come in their order.
void AutoController::best(std::span<const Candidate> candidates, std::span<TauChoice> choices, const Pass& pass) {
  int places = 0;
  for (size_t i = 0; i < candidates.size(); ++i) places += choices[i].tau < 0 ? candidates[i].most : 0;
  const int most_rows = std::min(std::max(costs_.most_rows_known() + kFurther * pass.sequences, pass.free_rows), pass.free_rows + places);
  verify_seconds_.assign(size_t(most_rows) + 1, 0.0);
  for (int rows = pass.free_rows; rows <= most_rows; ++rows) verify_seconds_[rows] = costs_.verify(rows);
  list_drafts(candidates, choices, threshold_);
  Best best = best_of_listed(pass, threshold_);
  if (confidence_.knows() && cycles_with_drafts_ % kReviewEvery == 0) {  // one other threshold is looked at, each in its turn
    const int other = int(cycles_with_drafts_ / kReviewEvery) % ConfidenceTable::kClasses;
    list_drafts(candidates, choices, other);
    const Best rival = best_of_listed(pass, other);
    if (rival.rate > kBetter * best.rate) threshold_ = other, best = rival;
    else list_drafts(candidates, choices, threshold_);
  }

  for (TauChoice& choice : choices)
    if (choice.tau < 0) choice = {0, best_reason()};
  const float ends_below = best.count ? stop_below() : 0;
  for (const Draft& draft : drafts_) {
    if (best.count == 0) break;
    if (!draft.on_host && draft.place > best.steps) continue;
    choices[draft.candidate].tau = draft.place;
    choices[draft.candidate].stop_below = ends_below;
    --best.count;
  }
  const double limit = cycle_limit() - piece_seconds();
  const int sequences = pass.sequences;
  for (const Draft& draft : drafts_) {
    if (draft.place > 1 || choices[draft.candidate].tau) continue;
    if (draft.on_host) {
      choices[draft.candidate].reason = TauReason::not_worth;
      continue;
    }
    Request& r = request(candidates[draft.candidate].request);
    const double one_more = costs_.draft_step(1) + costs_.verify(sequences + 1);
    const bool fits = one_more <= cycle_limit(), catches_up = candidates[draft.candidate].lag > 0;
    if (fits && (r.credit > 0 || (sequences + r.acceptance.hopeful()) / one_more > sequences / costs_.plain(sequences))) {
      choices[draft.candidate].tau = one_more <= limit || catches_up;  // 0: this once
      continue;
    }
    go_plain(r, fits ? TauReason::not_worth : TauReason::latency);
    choices[draft.candidate].reason = r.why;
  }
}

// What a request's drafts do under a threshold is seen under the one in force: the table says how the others compare.
void AutoController::list_drafts(std::span<const Candidate> candidates, std::span<const TauChoice> choices, int threshold) {
  drafts_.clear();
  const double goes_on = confidence_.rows_kept(threshold);
  const double kept = confidence_.rows_kept(threshold_) * confidence_.right_kept(threshold) / std::max(confidence_.right_kept(threshold_), 1e-9);
  for (int i = 0; i < int(candidates.size()); ++i) {
    if (choices[i].tau >= 0) continue;
    const bool on_host = candidates[i].source == DraftSource::ngram;
    const Request& r = request(candidates[i].request);
    const double right = on_host ? r.host_acceptance[size_t(candidates[i].match)].next() : std::min(r.acceptance.next() * kept, goes_on);
    double chance = 1, reached = 1;
    for (int place = 1; place <= candidates[i].most; ++place) drafts_.push_back({i, place, on_host, chance *= right, reached *= on_host ? 1 : goes_on});
  }
  std::sort(drafts_.begin(), drafts_.end(), [](const Draft& a, const Draft& b) {
    return a.reached_and_right != b.reached_and_right ? a.reached_and_right > b.reached_and_right
                                                      : std::pair(a.candidate, a.place) < std::pair(b.candidate, b.place);
  });
}

// Of passes as they are expected; the limit is kept even if no draft ends early.
AutoController::Best AutoController::best_of_listed(const Pass& pass, int threshold) const {
  const int most_rows = int(verify_seconds_.size()) - 1, sequences = pass.sequences;
  const double limit = cycle_limit() - piece_seconds(), goes_on = confidence_.rows_kept(threshold);
  const double step_of_one = costs_.draft_step(1);
  Best best{sequences / costs_.cycle(pass.probe_steps, pass.probe_steps ? 1 : 0, pass.free_rows)};
  const bool all_on_host = std::all_of(drafts_.begin(), drafts_.end(), [](const Draft& draft) { return draft.on_host; });
  double steps_run = 0, one_goes_on = 1;
  for (int steps = 0; steps <= (all_on_host ? 0 : options_.tau); ++steps) {
    double emitted = sequences, rows = pass.free_rows;
    int count = 0, on_host = 0;
    if (steps > 0) steps_run += 1 - std::pow(1 - one_goes_on, sequences), one_goes_on *= goes_on;
    const double passes = std::max(steps_run, double(pass.probe_steps));
    for (const Draft& draft : drafts_) {
      if (!draft.on_host && draft.place > steps) continue;
      on_host += draft.on_host;
      if (pass.free_rows + ++count > most_rows) break;
      emitted += draft.reached_and_right, rows += draft.drafted;
      const double drafting = passes > 0 ? std::max((rows - on_host - sequences) / passes, 1.0) : 0;
      const double step = sequences == 1 ? step_of_one : costs_.draft_step(drafting);
      const int most_passes = std::max(steps, pass.probe_steps);
      const double most_drafting = most_passes ? std::max(double(pass.free_rows + count - on_host - sequences) / most_passes, 1.0) : 0;
      if (most_passes * costs_.draft_step(most_drafting) + verify_seconds_[pass.free_rows + count] > limit) break;
      const double below = verify_seconds_[int(rows)], above = verify_seconds_[std::min(int(rows) + 1, most_rows)];
      const double rate = emitted / (passes * step + below + (rows - int(rows)) * (above - below));
      if (rate > best.rate) best = {rate, count, steps};
    }
  }
  return best;
}

// Now and then a threshold in force is lifted, to see what it hides.
float AutoController::stop_below() const {
  const int64_t cycle = cycles_with_drafts_;
  if (threshold_ == 0) return cycle % (confidence_.knows() ? kLookEvery : kLookFirst) ? 0 : kOnlyLook;
  return cycle % kLiftEvery ? ConfidenceTable::threshold(threshold_) : kOnlyLook;
}

}  // namespace paceline
