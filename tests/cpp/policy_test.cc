// Whatever chooses taus, and wherever drafts end early: under `coupled` and at temperature 0 the text is plain decoding's, bit for bit.
#include <set>

#include "cpp/parity.h"
#include "cpp/planted_costs.h"

using namespace paceline;
using namespace paceline::test;

std::shared_ptr<Backend> paceline::test::backend() {
  static std::shared_ptr<Backend> shared = make_cpu_backend(1, "");
  return shared;
}

namespace {

constexpr int kTau = 6;

struct Setting {
  std::string name;
  std::function<void(EngineOptions&)> adjust;
  Machine machine = {};  // planted for the policy's controller; without a name: this machine
};

std::vector<Setting> settings(int batch) {
  const auto policy = [](Policy which, double latency) {
    return [=](EngineOptions& options) { options.policy = which, options.latency_target = latency; };
  };
  const Machine rising{"rising", 0.15, 0.1, 0.05}, dear{"dear", 1.0, 1.0, 0.0};
  return {{"auto", policy(Policy::automatic, 0), rising},
          {"auto, where no draft pays", policy(Policy::automatic, 0), dear},
          {"latency", policy(Policy::latency, 2.0 + 0.1 * batch), rising},
          {"budget", [=](EngineOptions& options) { options.policy = Policy::budget, options.verify_budget = batch + 3; }},
          {"early stop", [](EngineOptions& options) { options.min_draft_confidence = 0.4f; }},
          {"budget and early stop", [=](EngineOptions& options) {
             options.policy = Policy::budget, options.verify_budget = 2 * batch, options.min_draft_confidence = 0.3f;
           }},
          {"auto on this machine", policy(Policy::automatic, 0)}};
}

void check_policies(DType dtype, double temperature, unsigned seed) {
  for (const Pair& pair : pairs(dtype)) {
    const std::vector<Job> jobs = jobs_of(8, temperature, pair.target->config().vocab_size, seed);
    const std::vector<Text> plain = decode(pair.target, nullptr, 0, 1, jobs);
    for (int batch : {1, 5}) {
      for (const Setting& setting : settings(batch)) {
        const std::string what = message(pair.name, ", ", setting.name, ", batch ", batch, ", T ", temperature);
        EngineOptions options;
        setting.adjust(options);
        std::unique_ptr<PlantedCosts> planted;
        std::map<int, long> taus;
        if (!setting.machine.name.empty())
          planted = std::make_unique<PlantedCosts>(ControllerOptions{options.policy, kTau, batch, options.latency_target}, setting.machine, 0.3, 5, &taus);
        const bool is_planted = planted != nullptr;
        const std::vector<Text> texts = decode(pair.target, pair.draft, kTau, batch, jobs, Acceptance::coupled, 64, setting.adjust, std::move(planted));
        check_equal(texts, plain, what);
        check_draft_kv(pair.draft, jobs, texts, what);
        CHECK(!is_planted || taus.size() > 1, what, ": one tau only, so nothing is shown");
      }
    }
  }
}

EngineOptions options_of(const Pair& pair, int sequences) {
  EngineOptions options;
  options.num_speculative_tokens = kTau;
  options.max_model_len = pair.target->config().max_position_embeddings;
  options.max_num_seqs = sequences;
  options.kv_dtype = DType::fp32;
  options.kv_cache_tokens = sequences * options.max_model_len;
  options.cycles_in_flight = cycles_in_flight();
  return options;
}

}  // namespace

TEST(greedy_text_is_plain_under_every_policy) { check_policies(DType::bf16, 0.0, 3); }
TEST(sampled_text_is_plain_under_every_policy) { check_policies(DType::fp32, 0.9, 4); }

// A pass has no more rows than the budget, but one per sequence; and uses what it may.
TEST(a_pass_keeps_to_its_budget) {
  const Pair pair = pairs(DType::fp32)[0];
  for (double temperature : {0.0, 0.9})
    for (int budget : {1, 4, 6, 11, 100}) {
      EngineOptions options = options_of(pair, 4);
      options.policy = Policy::budget;
      options.verify_budget = budget;
      Engine engine(backend(), pair.target, pair.draft, options);
      for (Job& job : jobs_of(4, temperature, pair.target->config().vocab_size, 17)) {
        job.params.stop_token_ids.clear();
        engine.add(job.prompt, job.params);
      }
      while (!engine.idle()) engine.step();
      const TraceColumns trace = engine.trace();
      int most = 0;
      for (size_t i = 0; i < trace.cycle.size(); ++i) {
        CHECK(trace.rows[i] <= std::max(budget, trace.sequences[i]), trace.rows[i], " rows under a budget of ", budget);
        CHECK(trace.reason[i] == uint8_t(TauReason::budget));
        most = std::max(most, trace.rows[i]);
      }
      CHECK(most == std::clamp(budget, 4, 4 * (kTau + 1)), "at most ", most, " rows of ", budget);
    }
}

// A row of the draft decides whether its position is drafted: above the threshold it is, below it is not.
TEST(a_draft_run_ends_where_the_draft_is_not_sure) {
  const Pair pair = pairs(DType::fp32)[4];  // the draft is the target: every draft is right
  const std::vector<Job> jobs = jobs_of(4, 0.9, pair.target->config().vocab_size, 23);
  long drafted[3] = {};
  const float thresholds[] = {0.0f, 0.4f, 0.999f};
  for (int i = 0; i < 3; ++i)
    for (const Text& text : decode(pair.target, pair.draft, kTau, 4, jobs, Acceptance::coupled, 64,
                                   [&](EngineOptions& options) { options.min_draft_confidence = thresholds[i]; }))
      drafted[i] += text.drafted;
  CHECK(drafted[0] > drafted[1] && drafted[1] > 0 && drafted[2] == 0, drafted[0], ", ", drafted[1], ", ", drafted[2]);
}

constexpr float kThreshold = 0.2f;

// What a controller is told: of every request until it is gone, of every cycle what its own rows cost, of none that had no rows.
class Watching : public Controller {
 public:
  struct Seen {
    std::set<int64_t> known;
    long cycles = 0, drafted = 0, ended = 0;
  };
  Watching(std::unique_ptr<Controller> controller, Seen* seen) : controller_(std::move(controller)), seen_(seen) {}
  void choose(std::span<const Candidate> candidates, std::span<TauChoice> choices) override {
    controller_->choose(candidates, choices);
    for (const Candidate& each : candidates) seen_->known.insert(each.request);
  }
  void observe(const CycleCost& cost, std::span<const Judged> judged) override {
    int rows = cost.sequences;
    for (const Judged& each : judged) {
      CHECK(each.tau <= each.passes && each.accepted <= each.tau && each.passes <= cost.steps, each.passes, " passes, ", cost.steps, " steps");
      rows += each.tau;
      CHECK(int(each.confidence.size()) == each.passes, each.confidence.size(), " places looked at in ", each.passes, " passes");
      for (int place = 0; place < each.passes; ++place)
        CHECK((each.confidence[place] >= kThreshold) == (place < each.tau) && each.confidence[place] <= 1, "draft ", place, " of ", each.tau, ": ", each.confidence[place]);
      seen_->ended += each.passes > each.tau;
    }
    CHECK(!judged.empty() && cost.sequences == int(judged.size()) && cost.rows == rows, cost.sequences, " sequences, ", cost.rows, " rows, ",
          judged.size(), " judged");
    ++seen_->cycles, seen_->drafted += cost.steps > 0;
    controller_->observe(cost, judged);
  }
  void observe_catch_up(int64_t request, int rows, double seconds) override { controller_->observe_catch_up(request, rows, seconds); }
  void forget(int64_t request) override { seen_->known.erase(request), controller_->forget(request); }

 private:
  std::unique_ptr<Controller> controller_;
  Seen* seen_;
};

TEST(a_controller_is_told_of_all_that_ran_and_of_all_who_left) {
  const Pair pair = pairs(DType::fp32)[0];
  EngineOptions options = options_of(pair, 3);
  options.policy = Policy::automatic;
  options.min_draft_confidence = kThreshold;
  Engine engine(backend(), pair.target, pair.draft, options);
  Watching::Seen seen;
  engine.set_controller(std::make_unique<Watching>(make_controller({Policy::fixed, kTau, 3}), &seen));
  std::mt19937 random(9);
  std::vector<int64_t> ids;
  for (Job& job : jobs_of(40, 0.9, pair.target->config().vocab_size, 31, 12)) ids.push_back(engine.add(job.prompt, job.params));
  while (!engine.idle()) {
    engine.step();
    if (random() % 3 == 0) engine.cancel(ids[random() % ids.size()]);
  }
  CHECK(seen.cycles > 50 && seen.drafted > 10 && seen.ended > 3, seen.cycles, " cycles, ", seen.drafted, " with drafts, ", seen.ended, " that ended early");
  CHECK(seen.known.empty(), seen.known.size(), " requests that are gone are remembered");
}

TEST(options_that_contradict_each_other_are_refused) {
  const Pair pair = pairs(DType::fp32)[0];
  const auto built = [&](const std::function<void(EngineOptions&)>& adjust) { decode(pair.target, pair.draft, 2, 1, {}, Acceptance::coupled, 64, adjust); };
  CHECK_THROWS(built([](EngineOptions& o) { o.policy = Policy::budget; }), std::invalid_argument, "[Engine] verify_budget must be");
  CHECK_THROWS(built([](EngineOptions& o) { o.verify_budget = 4; }), std::invalid_argument, "[Engine] verify_budget must be");
  CHECK_THROWS(built([](EngineOptions& o) { o.policy = Policy::latency; }), std::invalid_argument, "[Engine] latency_target must be");
  CHECK_THROWS(built([](EngineOptions& o) { o.min_draft_confidence = 1; }), std::invalid_argument, "[Engine] min_draft_confidence must be");
}

TEST_MAIN()
