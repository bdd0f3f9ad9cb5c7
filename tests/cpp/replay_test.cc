// Replayed cycles are the engine's own: the law of both rules, every draft and verdict recomputed from its seed and address, uniforms by
// hand, and no address twice. The pair is planted: the draft likes best what the target likes least.
#include "decode/replay.h"

#include <map>
#include <set>

#include "cpp/test.h"
#include "math/noise.h"
#include "reference/chi_square.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr int kIds = 8;
constexpr double kLaw[kIds] = {.30, .20, .15, .10, .10, .05, .05, .05};
double target_law(int place, int id) { return kLaw[(id + 3 * place) % kIds]; }
double draft_law(int place, int id) { return kLaw[(kIds - 1 - id + place) % kIds]; }

struct Planted {
  explicit Planted(int of) : tau(of) {
    for (int place = 0; place <= tau; ++place)
      for (int id = 0; id < kIds; ++id) target.push_back(float(std::log(target_law(place, id))));
    for (int place = 0; place < tau; ++place)
      for (int id = 0; id < kIds; ++id) draft.push_back(float(std::log(draft_law(place, id))));
  }
  ReplayRows rows() const { return {tau, kIds, kIds, target.data(), draft.data()}; }
  int tau;
  std::vector<float> target, draft;
};

RequestParams sampled(uint64_t seed) {
  RequestParams p;
  p.temperature = 1;
  p.seed = seed;
  return p;
}

Backend& cpu() {
  static const std::unique_ptr<Backend> the = make_cpu_backend(2, "");
  return *the;
}

int32_t drawn(const NoiseAddress& at, int place) {
  int best = 0;
  double most = -INFINITY;
  for (int id = 0; id < kIds; ++id) {
    const double score = std::log(draft_law(place, id)) + gumbel_of(exponential_at(at, uint32_t(id)));
    if (score > most) most = score, best = id;
  }
  return best;
}

}  // namespace

TEST(every_place_has_the_targets_law) {
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection})
    for (int tau : {0, 1, 3}) {
      const Replay all = replay(cpu(), rule, Planted(tau).rows(), sampled(1 + (statistics_seed() << 32)), int(statistics_size(262144)), nullptr);
      for (int place = 0; place <= tau; ++place) {
        std::vector<long> counts(kIds, 0);
        long reached = 0;
        for (size_t cycle = 0; cycle < all.accepted.size(); ++cycle) {
          const int32_t token = all.tokens[cycle * (tau + 1) + place];
          CHECK((token >= 0) == (place <= all.accepted[cycle]), "cycle ", cycle, ", place ", place);
          if (token >= 0) ++counts[token], ++reached;
        }
        std::vector<double> expected;
        for (int id = 0; id < kIds; ++id) expected.push_back(target_law(place, id) * double(reached));
        const auto result = reference::chi_square(counts, expected);
        CHECK(result.p_value >= 1e-6, "rule ", int(rule), ", tau ", tau, ", place ", place, ": X2 = ", result.statistic, ", p = ", result.p_value);
      }
    }
}

TEST(drafts_and_verdicts_are_those_of_their_addresses) {
  constexpr int kTau = 2;
  const Replay all = replay(cpu(), Acceptance::rejection, Planted(kTau).rows(), sampled(7), 40000, nullptr);
  std::set<std::pair<uint64_t, int32_t>> addresses;
  for (size_t cycle = 0; cycle < all.accepted.size(); ++cycle) {
    const uint32_t start = uint32_t(all.position[cycle]);
    int accepted = 0;
    for (int i = 0; i < kTau; ++i) {
      const int32_t draft = all.drafts[cycle * kTau + i];
      CHECK(addresses.emplace(all.seed[cycle], start + i).second, "cycle ", cycle, " consults an address again");
      CHECK(draft == drawn({all.seed[cycle], start + i, start, Purpose::draft, 0}, i), "cycle ", cycle, ", draft ", i);
      const double u = accept_uniform_at({all.seed[cycle], start + i, start, Purpose::accept, 0});
      if (accepted == i && accepts(target_law(i, draft), draft_law(i, draft), u)) ++accepted;
    }
    CHECK(accepted == all.accepted[cycle], "cycle ", cycle);
  }
}

TEST(uniforms_by_hand) {
  constexpr int kTau = 2, kCycles = 3000;
  const Planted pair(kTau);
  const std::vector<int32_t> drafts = replay(cpu(), Acceptance::rejection, pair.rows(), sampled(3), kCycles, nullptr).drafts;
  std::vector<double> uniforms;
  for (int i = 0; i < kCycles * kTau; ++i) {  // a little to either side of the threshold: accepted, and in every third cycle not
    const double threshold = std::min(1.0, target_law(i % kTau, drafts[i]) / draft_law(i % kTau, drafts[i]));
    uniforms.push_back(std::min(1.0, threshold * (i / kTau % 3 == i % kTau ? 1 + 1e-5 : 1 - 1e-5)));
  }
  const Replay again = replay(cpu(), Acceptance::rejection, pair.rows(), sampled(3), kCycles, uniforms.data());
  CHECK(again.drafts == drafts);
  for (int cycle = 0; cycle < kCycles; ++cycle) {
    int expected = 0;
    while (expected < kTau) {
      const int at = cycle * kTau + expected;
      if (!(uniforms[at] * draft_law(expected, drafts[at]) < target_law(expected, drafts[at]))) break;
      ++expected;
    }
    CHECK(again.accepted[cycle] == expected, "cycle ", cycle);
  }
}

TEST(a_draft_without_probability_is_rejected_at_0) {
  std::vector<float> target(2 * kIds, -1e4f), draft(kIds, -1e4f);
  for (int id = 0; id < kIds; ++id) (id < 4 ? target[id] : draft[id]) = 0, target[kIds + id] = 0;
  const std::vector<double> zeros(1000, 0.0);
  const Replay all = replay(cpu(), Acceptance::rejection, {1, kIds, kIds, target.data(), draft.data()}, sampled(9), 1000, zeros.data());
  for (int cycle = 0; cycle < 1000; ++cycle) {
    CHECK(all.accepted[cycle] == 0, "cycle ", cycle);
    CHECK(all.tokens[2 * cycle] < 4, "cycle ", cycle);
  }
}

TEST(what_cannot_be_replayed_is_refused) {
  const Planted pair(1);
  const auto with = [&](const RequestParams& params) { replay(cpu(), Acceptance::coupled, pair.rows(), params, 10, nullptr); };
  RequestParams p = sampled(1);
  p.presence_penalty = 0.5;
  CHECK_THROWS(with(p), std::invalid_argument, "[replay] penalties");
  p = sampled(1);
  p.temperature = -1;
  CHECK_THROWS(with(p), std::invalid_argument, "temperature");
  const double wrong[] = {0.5, 2.0};
  CHECK_THROWS(replay(cpu(), Acceptance::rejection, pair.rows(), sampled(1), 2, wrong), std::invalid_argument, "uniforms must be in [0, 1], got 2");
  CHECK_THROWS(replay(cpu(), Acceptance::rejection, pair.rows(), sampled(1), 0, nullptr), std::invalid_argument, "cycles must be at least 1");
  Planted broken(1);
  broken.target[0] = NAN;
  CHECK_THROWS(replay(cpu(), Acceptance::rejection, broken.rows(), sampled(1), 5, nullptr), std::invalid_argument, "rows must be finite");
  broken = pair;
  broken.draft[0] = NAN;
  CHECK_THROWS(replay(cpu(), Acceptance::rejection, broken.rows(), sampled(1), 5, nullptr), std::invalid_argument, "rows must be finite");
}

TEST_MAIN()
