// The law of every place of a cycle, on a pair chosen to be hard: the draft likes best what the target likes least. Eight ids, alone and
// scattered over a vocabulary of 32,768; every place that is reached has the target's law, whatever was accepted before it.
#include <map>

#include "cpp/test.h"
#include "engine.h"
#include "reference/chi_square.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr double kLaw[] = {.30, .20, .15, .10, .10, .05, .05, .05};
constexpr int kIds = 8;

// A model without a memory: the same row for every token. Ids that do not exist in its law hold -1e4.
class OneLaw final : public Model {
 public:
  OneLaw(Backend& backend, int vocab, bool reversed, const Engine::ModelLimits& limits)
      : limits_(limits), row_(vocab, -1e4f), cache_(backend, {1, 1, 2, DType::fp32}, limits.num_pages, limits.num_slots, limits.max_len) {
    for (int i = 0; i < kIds; ++i) row_[size_t(i) * (vocab / kIds)] = float(std::log(kLaw[reversed ? kIds - 1 - i : i]));
  }
  int vocab_size() const override { return int(row_.size()); }
  int max_len() const override { return limits_.max_len; }
  KvCache& cache() override { return cache_; }
  const AttentionShape& shape() const override { return shape_; }
  size_t workspace_bytes() const override { return 0; }
  void forward(const Rows& rows, float* logits) override {
    if (logits)
      for (int row = 0; row < *rows.live; ++row) std::copy(row_.begin(), row_.end(), logits + size_t(row) * row_.size());
  }

 private:
  Engine::ModelLimits limits_;
  std::vector<float> row_;
  KvCache cache_;
  AttentionShape shape_{1, 1, 2, nullptr, nullptr};
};

void check_places(Acceptance rule, int vocab, int tau, long tokens, DrafterKind drafter = DrafterKind::model) {
  constexpr int kBatch = 4, kLength = 130;
  const auto backend = std::shared_ptr<Backend>(make_cpu_backend(1, ""));
  EngineOptions options;
  options.num_speculative_tokens = tau;
  options.acceptance = rule;
  options.drafter = drafter;
  options.max_model_len = kLength;
  options.max_num_seqs = kBatch;
  options.kv_dtype = DType::fp32;
  options.kv_cache_tokens = kBatch * kLength;
  const Engine::ModelLimits limits = Engine::limits_of(options, kLength);
  Engine engine(backend, std::make_unique<OneLaw>(*backend, vocab, false, limits),
                drafter == DrafterKind::ngram ? nullptr : std::make_unique<OneLaw>(*backend, vocab, true, limits), options);
  std::vector<std::vector<long>> counts(tau + 1, std::vector<long>(kIds, 0));
  RequestParams p;
  p.temperature = 1;
  p.seed = statistics_seed() << 32;
  long accepted = 0;
  for (long seen = 0; seen < tokens;) {
    if (engine.idle())
      for (int i = 0; i < kBatch; ++i, ++p.seed) engine.add({0}, p);
    for (const Output& output : engine.step()) {
      accepted += output.accepted;
      for (size_t place = 0; place < output.tokens.size(); ++place, ++seen) {
        CHECK(output.tokens[place] % (vocab / kIds) == 0, "id ", output.tokens[place], " has no probability");
        ++counts[place][output.tokens[place] / (vocab / kIds)];
      }
    }
  }
  CHECK(accepted > tokens / 50, accepted, " drafts accepted");
  for (int place = 0; place <= tau; ++place) {
    long reached = 0;
    for (long count : counts[place]) reached += count;
    if (reached < 400) continue;
    std::vector<double> expected;
    for (double share : kLaw) expected.push_back(share * double(reached));
    const auto result = reference::chi_square(counts[place], expected);
    CHECK(result.p_value >= 1e-6, "rule ", int(rule), ", vocabulary ", vocab, ", tau ", tau, ", place ", place, ": X2 = ", result.statistic,
          " of ", reached, " tokens, p = ", result.p_value);
  }
}

}  // namespace

TEST(every_place_of_a_cycle_has_the_targets_law) {
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection})
    for (int tau : {1, 2, 4, 8}) check_places(rule, kIds, tau, statistics_size(262144));
}

// Proposals from a text of nothing but noise: right now and then, and told from the draft's only by how they are judged.
TEST(every_place_of_proposals_from_the_text) {
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection})
    for (DrafterKind drafter : {DrafterKind::ngram, DrafterKind::chain})
      for (int tau : {2, 4}) check_places(rule, kIds, tau, statistics_size(262144), drafter);
}

TEST(every_place_in_a_padded_vocabulary) {
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection}) check_places(rule, 32768, 4, statistics_size(262144) / 32);
}

TEST_MAIN()
