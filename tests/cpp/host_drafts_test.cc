// `auto` over drafts that the text proposes, on a simulated clock: runs of planted length and chance, and what the best choice would have made.
#include <cmath>

#include "cpp/simulated_decoding.h"
#include "cpp/test.h"
#include "decode/controller_auto.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr int kTauMax = 8;
constexpr uint64_t kSeeds = 6;

// Matches of each class: how often the text has one, and the chance of each token of its run to be right. A run is as long as a match of its
// class at least is.
struct Text {
  std::string name;
  double share[kMatchClasses], right[kMatchClasses];
};
int run_length(int match) { return std::min(kTauMax, match ? (1 << match) + 1 : 2); }

const std::vector<Machine> kMachines = {{"flat", 0.10, 0.01, 0.02}, {"rising", 0.20, 0.15, 0.05}, {"dear rows", 0.2, 0.6, 0.0}};
const std::vector<Text> kTexts = {{"chance", {.5, .1, 0, 0}, {.1, .3, 0, 0}}, {"code", {.3, .2, .1, .1}, {.2, .5, .8, .95}}, {"copy", {.05, .05, .1, .8}, {.3, .6, .9, .97}}};

double emitted(double right, int tau) { return right < 1 ? (1 - std::pow(right, tau + 1)) / (1 - right) : tau + 1; }

// Tokens per second in the long run with taus[c] drafts of a run of class c at most.
double exact_rate(const Text& text, const Machine& machine, const int (&taus)[kMatchClasses]) {
  double tokens = 0, seconds = machine.overhead, none = 1;
  for (int c = 0; c < kMatchClasses; ++c) {
    const int tau = std::min(taus[c], run_length(c));
    tokens += text.share[c] * emitted(text.right[c], tau), seconds += text.share[c] * machine.target(tau + 1), none -= text.share[c];
  }
  return (tokens + none) / (seconds + none * machine.target(1));
}

double best_rate(const Text& text, const Machine& machine, bool one_for_all) {
  double best = 0;
  int taus[kMatchClasses];
  for (int code = 0; code < 9 * 9 * 9 * 9; ++code) {
    for (int c = 0, rest = code; c < kMatchClasses; ++c, rest /= 9) taus[c] = rest % 9;
    const bool alike = taus[0] == taus[1] && taus[1] == taus[2] && taus[2] == taus[3];
    if (alike || !one_for_all) best = std::max(best, exact_rate(text, machine, taus));
  }
  return best;
}

// One request; each cycle's match is drawn anew. Where the text has none, a draft model proposes, if there is one.
class Decoding {
 public:
  Decoding(Machine machine, Text text, double by_model, uint64_t seed)
      : controller_(make_controller({.policy = Policy::automatic, .tau = kTauMax})), machine_(std::move(machine)), text_(std::move(text)), by_model_(by_model), random_(seed) {}

  void change(const Text& text) { text_ = text; }
  double seconds() const { return seconds_; }
  double lost() const { return lost_; }
  long drafts(DraftSource source) const { return drafts_[int(source)]; }

  long run(long tokens) {
    long out = 0;
    while (out < tokens) out += cycle();
    return out;
  }

 private:
  int cycle() {
    double at = uniform_(random_);
    int match = 0;
    while (match < kMatchClasses && at >= text_.share[match]) at -= text_.share[match++];
    const bool on_host = match < kMatchClasses, by_model = !on_host && by_model_ >= 0;
    const int run = on_host ? run_length(match) : 0;
    const Candidate candidate{1, by_model ? kTauMax : run, 0, -1, by_model ? DraftSource::model : DraftSource::ngram, on_host ? match : 0};
    TauChoice choice{};
    controller_->choose({&candidate, 1}, {&choice, 1});
    CHECK(choice.tau <= std::max(candidate.most, 0), choice.tau, " drafts of ", candidate.most);
    const int tau = choice.tau, places = on_host ? run : tau;
    int right = 0;
    while (right < places && uniform_(random_) < (on_host ? text_.right[match] : by_model_)) ++right;
    const int accepted = std::min(tau, right), emitted = accepted + 1, run_right = on_host ? std::min(right, emitted) : 0;
    const int steps = by_model ? tau : 0;
    const double mood = std::exp(0.03 * normal_(random_));
    const CycleCost cost{1, tau + 1, steps, mood * steps * machine_.draft_step, mood * machine_.target(tau + 1), mood * machine_.overhead};
    const Judged judged{1, steps, tau, accepted, emitted, false, {}, on_host ? match : 0, run_right, std::min(run_right + 1, std::min(run, emitted))};
    controller_->observe(cost, {&judged, 1});
    seconds_ += cost.total(), lost_ += cost.total() - mood * machine_.cycle(0);
    drafts_[int(candidate.source)] += tau;
    return emitted;
  }

  std::unique_ptr<Controller> controller_;
  Machine machine_;
  Text text_;
  double by_model_;  // chance of its drafts to be right; below 0: there is no draft model
  std::mt19937_64 random_;
  std::uniform_real_distribution<double> uniform_{0, 1};
  std::normal_distribution<double> normal_{0, 1};
  double seconds_ = 0, lost_ = 0;
  long drafts_[2] = {};
};

}  // namespace

TEST(auto_is_within_three_per_cent_of_the_best_choice_per_match) {
  constexpr long kTokens = 20000;
  for (const Machine& machine : kMachines)
    for (const Text& text : kTexts) {
      double rate = 0;
      for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
        Decoding decoding(machine, text, -1, statistics_seed() * 1000 + seed);
        rate += double(decoding.run(kTokens)) / decoding.seconds() / double(kSeeds);
      }
      const double best = best_rate(text, machine, false), fixed = best_rate(text, machine, true);
      std::printf("      %-7s %-9s auto %.4f of the best choice, %.4f of the best fixed tau\n", text.name.c_str(), machine.name.c_str(), rate / best, rate / fixed);
      CHECK(rate >= 0.97 * best, text.name, " on ", machine.name, ": ", rate, " against ", best);
    }
}

TEST(runs_that_are_never_right_cost_three_per_cent_at_most) {
  for (const Machine& machine : kMachines)
    for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
      Decoding decoding(machine, {"never", {.25, .25, .25, .25}, {0, 0, 0, 0}}, -1, statistics_seed() * 1000 + seed);
      decoding.run(1000);
      const double share = decoding.lost() / (decoding.seconds() - decoding.lost());
      if (seed == 1) std::printf("      %-9s %.4f of plain decoding's time\n", machine.name.c_str(), share);
      CHECK(share <= 0.03, machine.name, ": ", share);
    }
}

// No probe is needed for that: what a run would have brought is seen without drafting it.
TEST(runs_that_become_right_are_found) {
  const Text never{"never", {.1, .2, .3, .4}, {0, 0, 0, 0}}, copy = kTexts[2];
  for (const Machine& machine : kMachines) {
    Decoding decoding(machine, never, -1, statistics_seed() + 1);
    decoding.run(2000);
    decoding.change(copy);
    decoding.run(3000);
    const double before = decoding.seconds();
    const double rate = double(decoding.run(10000)) / (decoding.seconds() - before), best = best_rate(copy, machine, false);
    CHECK(rate >= 0.95 * best, machine.name, ": ", rate, " against ", best);
  }
}

// A fifth of the drafts are right, and a third of the passes with drafts take twice as long: what passes usually cost promises a gain.
TEST(fickle_passes_are_given_up) {
  Machine fickle = kMachines[0];
  std::mt19937_64 random(11);
  fickle.verify = [&](int rows) { return rows == 1 ? 1.0 : random() % 100 < 70 ? 1.04 : 2.08; };
  Decoding decoding(fickle, {"fifth", {.25, .25, .25, .25}, {.2, .2, .2, .2}}, -1, statistics_seed() + 1);
  const long tokens = decoding.run(5000);
  const double plain = double(tokens) * (1.0 + fickle.overhead);
  CHECK(decoding.seconds() <= 1.03 * plain, decoding.seconds() / plain);
}

// The first passes with drafts meet a disturbed machine. What they cost is asked again, though nobody would draft by it.
TEST(costs_that_were_a_moment_s_are_not_believed_for_good) {
  for (int disturbed : {3, 6}) {
    Machine machine = kMachines[0];
    int passes = 0;
    machine.verify = [&, flat = machine](int rows) { return flat.target(rows) * (rows > 1 && passes++ < disturbed ? 6 : 1); };
    Decoding decoding(machine, kTexts[1], -1, statistics_seed() + 1);
    decoding.run(8000);  // what the disturbance cost has to be earned first
    const double before = decoding.seconds();
    const double rate = double(decoding.run(10000)) / (decoding.seconds() - before), best = best_rate(kTexts[1], kMachines[0], false);
    CHECK(rate >= 0.95 * best, disturbed, " passes disturbed: ", rate, " against ", best);
  }
}

// A chain's two sources: one that is never right stops nobody from using the other.
TEST(each_source_is_judged_by_itself) {
  const Text half{"half", {.1, .1, .1, .2}, {.9, .9, .9, .9}}, never{"never", {.1, .1, .1, .2}, {0, 0, 0, 0}};
  Decoding by_text(kMachines[1], half, 0.0, statistics_seed() + 1), by_model(kMachines[1], never, 0.9, statistics_seed() + 2);
  by_text.run(10000), by_model.run(10000);
  CHECK(by_text.drafts(DraftSource::ngram) > 10 * by_text.drafts(DraftSource::model) && by_text.drafts(DraftSource::ngram) > 3000,
        by_text.drafts(DraftSource::ngram), " of the text's, ", by_text.drafts(DraftSource::model), " of a draft that is never right");
  CHECK(by_model.drafts(DraftSource::model) > 10 * by_model.drafts(DraftSource::ngram) && by_model.drafts(DraftSource::model) > 3000,
        by_model.drafts(DraftSource::model), " of the draft's, ", by_model.drafts(DraftSource::ngram), " of a text that is never right");
}

TEST_MAIN()
