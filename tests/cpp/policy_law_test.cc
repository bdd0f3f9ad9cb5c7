// The joint law of five emitted tokens against full enumeration, whatever chooses taus and wherever drafts end early: what may be looked
// at is the draft's distribution and the tokens before, never the token that was drawn. Half a million texts per case.
#include <array>
#include <mutex>
#include <random>
#include <thread>

#include "cpp/planted_costs.h"
#include "cpp/table_engine.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr double kAlpha = 1e-6;
constexpr int kIds = 4, kLength = 5, kMaxTokens = 8, kTau = 4, kBatch = 5;
const std::vector<int32_t> kPrompt = {1, 3, 2, 1, 3};  // its end has occurred before: n-grams have a run for the first cycle too

enum class Chooser { engine, planted_costs, dice };
struct Case {
  std::string name;
  Acceptance acceptance;
  std::function<void(EngineOptions&)> adjust;
  Chooser chooser = Chooser::engine;
  DrafterKind drafter = DrafterKind::model;
};

// Any tau, and drafts that end early below any confidence, by dice that know nothing of the drafts.
class Dice : public Controller {
 public:
  explicit Dice(uint64_t seed) : random_(seed) {}
  void choose(std::span<const Candidate> candidates, std::span<TauChoice> choices) override {
    for (size_t i = 0; i < candidates.size(); ++i)
      choices[i] = {int(random_() % (kTau + 1)), TauReason::best, std::array<float, 4>{0, kOnlyLook, 0.4f, 0.6f}[random_() % 4]};
  }
  void observe(const CycleCost&, std::span<const Judged> judged) override {
    for (const Judged& each : judged) ended_ += int(each.confidence.size()) > each.tau;
  }
  void observe_catch_up(int64_t, int, double) override {}
  void forget(int64_t) override {}
  long ended() const { return ended_; }  // cycles whose drafts ended early

 private:
  std::mt19937_64 random_;
  long ended_ = 0;
};

template <class LawOf>
void enumerate(std::vector<int>& text, double weight, const LawOf& law_of, std::vector<double>& expected) {
  if (int(text.size()) == int(kPrompt.size()) + kLength) return expected.push_back(weight);
  const std::vector<double> law = law_of(text);
  for (int token = 0; token < kIds; ++token) {
    text.push_back(token);
    enumerate(text, weight * law[token], law_of, expected);
    text.pop_back();
  }
}

void check_law(const Case& c, double temperature) {
  const long n = statistics_size(500000);
  TableEngine engine(table_pair(kIds, DraftKind::noisy), c.acceptance, kTau, kBatch, 32, c.adjust, c.drafter);
  const Dice* dice = nullptr;
  if (c.chooser == Chooser::dice) {
    auto controller = std::make_unique<Dice>(statistics_seed() + 10);
    dice = controller.get();
    engine->set_controller(std::move(controller));
  }
  if (c.chooser == Chooser::planted_costs) {
    EngineOptions options;
    c.adjust(options);
    engine->set_controller(std::make_unique<PlantedCosts>(ControllerOptions{options.policy, kTau, kBatch, options.latency_target},
                                                          Machine{"rising", 0.1, 0.06, 0.05}, 0.3, statistics_seed() + 9));
  }
  RequestParams params;
  params.temperature = temperature;
  params.max_tokens = kMaxTokens;
  params.seed = statistics_seed() << 32;
  std::vector<long> counts(size_t(std::pow(kIds, kLength)), 0);
  std::map<int64_t, std::vector<int>> texts;
  std::map<int, long> taus;
  const auto ask = [&] {
    ++params.seed;
    texts[engine->add(kPrompt, params)];
  };
  for (int i = 0; i < 2 * kBatch; ++i) ask();
  long done = 0;
  while (done < n)
    for (const Output& output : engine->step()) {
      std::vector<int>& text = texts.at(output.request);
      text.insert(text.end(), output.tokens.begin(), output.tokens.end());
      ++taus[output.tau];
      if (output.finish == FinishReason::none) continue;
      int cell = 0;
      for (int i = 0; i < kLength; ++i) cell = cell * kIds + text[i];
      ++counts[cell];
      ++done;
      texts.erase(output.request);
      ask();
    }
  std::vector<double> expected;
  std::vector<int> text(kPrompt.begin(), kPrompt.end());
  enumerate(text, double(done), [&](const std::vector<int>& t) { return engine.target_law(params, t, int(kPrompt.size())); }, expected);
  const auto result = reference::chi_square(counts, expected);
  CHECK(!dice || dice->ended() > n / 20, c.name, ": drafts of ", dice->ended(), " cycles ended early");
  CHECK(taus.size() >= 3, c.name, ": too few different taus to show anything");
  CHECK(result.p_value >= kAlpha, c.name, ", T ", temperature, ": X2 = ", result.statistic, " at ", result.degrees, " degrees, p = ", result.p_value);
}

std::vector<Case> cases(Acceptance acceptance) {
  const std::string rule = acceptance == Acceptance::coupled ? "coupled, " : "rejection, ";
  return {{rule + "fixed", acceptance, [](EngineOptions&) {}},
          {rule + "auto", acceptance, [](EngineOptions& options) { options.policy = Policy::automatic; }, Chooser::planted_costs},
          {rule + "dice", acceptance, [](EngineOptions& options) { options.policy = Policy::automatic; }, Chooser::dice},
          {rule + "latency", acceptance, [](EngineOptions& options) { options.policy = Policy::latency, options.latency_target = 2.2; }, Chooser::planted_costs},
          {rule + "early stop", acceptance, [](EngineOptions& options) { options.min_draft_confidence = 0.5f; }},
          {rule + "budget", acceptance, [](EngineOptions& options) { options.policy = Policy::budget, options.verify_budget = 11; }},
          {rule + "auto, early stop", acceptance,
           [](EngineOptions& options) { options.policy = Policy::automatic, options.min_draft_confidence = 0.45f; }, Chooser::planted_costs},
          {rule + "n-gram", acceptance, [](EngineOptions&) {}, Chooser::engine, DrafterKind::ngram},
          {rule + "chain", acceptance, [](EngineOptions&) {}, Chooser::engine, DrafterKind::chain},
          {rule + "n-gram, auto", acceptance, [](EngineOptions& options) { options.policy = Policy::automatic; }, Chooser::planted_costs, DrafterKind::ngram},
          {rule + "chain, auto", acceptance, [](EngineOptions& options) { options.policy = Policy::automatic; }, Chooser::planted_costs, DrafterKind::chain},
          {rule + "chain, early stop", acceptance, [](EngineOptions& options) { options.min_draft_confidence = 0.45f; }, Chooser::engine, DrafterKind::chain}};
}

void check_all(const std::vector<Case>& all, double temperature) {
  std::mutex mutex;
  std::string failure;
  size_t next = 0;
  const auto work = [&] {
    for (;;) {
      size_t mine;
      {
        const std::lock_guard lock(mutex);
        if (next >= all.size() || !failure.empty()) return;
        mine = next++;
      }
      try {
        check_law(all[mine], temperature);
      } catch (const std::exception& error) {
        const std::lock_guard lock(mutex);
        if (failure.empty()) failure = error.what();
      }
    }
  };
  std::thread other(work);
  work();
  other.join();
  CHECK(failure.empty(), failure);
}

}  // namespace

TEST(joint_law_coupled_under_every_policy) { check_all(cases(Acceptance::coupled), 1.0); }
TEST(joint_law_rejection_under_every_policy) { check_all(cases(Acceptance::rejection), 1.0); }

TEST_MAIN()
