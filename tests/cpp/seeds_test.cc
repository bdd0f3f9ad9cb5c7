// Seeds: one fixes a text whoever is around, two give two texts, and no request consults a random number twice.
#include <limits>
#include <set>

#include "cpp/table_engine.h"
#include "math/acceptance.h"
#include "math/noise.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr int kIds = 5, kTau = 4;
const std::vector<int32_t> kPrompt = {1, 3};

// A random number that was consulted: purpose, position, first position of the cycle (0 where that is no part of the address).
using Address = std::tuple<Purpose, int, int>;

// The token that wins the race of exponentials e / weight.
int winner(const std::vector<double>& weights, const NoiseAddress& at) {
  int best = -1;
  double least = INFINITY;
  for (int id = 0; id < int(weights.size()); ++id) {
    if (!(weights[id] > 0)) continue;
    const double quotient = exponential_at(at, uint32_t(id)) / weights[id];
    if (quotient < least) least = quotient, best = id;
  }
  return best;
}

// `rejection` by the book, for one cycle of a request: what it drafts, accepts and emits, and every random number it needs on the way.
struct Simulated {
  std::vector<int> drafts, emitted;
  int accepted = 0;
  std::vector<Address> consulted;
};

Simulated simulate(const TableEngine& engine, const RequestParams& p, std::vector<int> tokens, int tau) {
  Simulated cycle;
  const int first = int(tokens.size()), prompt_length = int(kPrompt.size());
  const auto address = [&](Purpose purpose, int position) {
    cycle.consulted.push_back({purpose, position, purpose == Purpose::token ? 0 : first});
    return NoiseAddress{p.seed, uint32_t(position), uint32_t(first), purpose, 0};
  };
  std::vector<int> drafted = tokens;
  for (int i = 0; i < tau; ++i) {
    cycle.drafts.push_back(winner(engine.draft_law(p, drafted, prompt_length), address(Purpose::draft, first + i)));
    drafted.push_back(cycle.drafts.back());
  }
  for (int i = 0; i <= tau; ++i) {
    const std::vector<double> target = engine.target_law(p, tokens, prompt_length);
    std::vector<double> owed = target;
    if (i < tau) {
      const std::vector<double> draft = engine.draft_law(p, tokens, prompt_length);
      const int token = cycle.drafts[i];
      if (accepts(target[token], draft[token], accept_uniform_at(address(Purpose::accept, first + i)))) {
        ++cycle.accepted;
        cycle.emitted.push_back(token);
        tokens.push_back(token);
        continue;
      }
      for (int id = 0; id < kIds; ++id) owed[id] = residual(target[id], draft[id]);
    }
    cycle.emitted.push_back(winner(owed, address(Purpose::token, first + i)));
    break;
  }
  return cycle;
}

}  // namespace

TEST(sixty_four_seeds_give_sixty_four_texts_whoever_is_around) {
  const TablePair pair = table_pair(kIds, DraftKind::noisy);
  constexpr int kSeeds = 64, kBatch = 8;
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection}) {
    std::vector<TableText> alone;
    for (int seed = 0; seed < kSeeds; ++seed) {
      TableEngine engine(pair, rule, kTau, 1, 80);
      alone.push_back(decode(engine, kPrompt, {sampling(1.0, uint64_t(seed), 64)})[0]);
      CHECK(alone.back().tokens.size() == kPrompt.size() + 64);
    }
    for (int i = 0; i < kSeeds; ++i)
      for (int j = 0; j < i; ++j) CHECK(alone[i].tokens != alone[j].tokens, "rule ", int(rule), ": seeds ", i, " and ", j, " say the same");

    for (int shift = 0; shift < kBatch; ++shift) {  // every seed in every slot
      TableEngine engine(pair, rule, kTau, kBatch, 80);
      std::vector<RequestParams> requests;
      for (int i = 0; i < kSeeds; ++i) requests.push_back(sampling(1.0, uint64_t((i + shift) % kSeeds), 64));
      const std::vector<TableText> got = decode(engine, kPrompt, requests);
      for (int i = 0; i < kSeeds; ++i) CHECK(got[i].same_as(alone[(i + shift) % kSeeds]), "rule ", int(rule), ", shift ", shift, ", request ", i);
    }

    // Beside requests with seeds of their own choice, other processors and other lengths, one of which fails on the way.
    TableEngine engine(pair, rule, kTau, kBatch, 80);
    int came = 0;  // to slot 3; the first one fails
    engine.target().after_row = [&](int slot, int position, int32_t, float* logits) {
      if (slot != 3) return;
      came += position + 1 == int(kPrompt.size());
      if (came == 1 && position == 15) logits[0] = std::numeric_limits<float>::quiet_NaN();
    };
    std::vector<RequestParams> requests;
    for (int i = 0; i < kSeeds; ++i) {
      requests.push_back(sampling(1.0, uint64_t(i), 64));
      requests.push_back(sampling(1.0, 0x123456789ABCDEFu * uint64_t(i + 1), 20 + i));
      requests.back().temperature = 0.3 + i, requests.back().top_k = 1 + i % 5, requests.back().num_speculative_tokens = i % (kTau + 1);
    }
    const std::vector<TableText> got = decode(engine, kPrompt, requests);
    int errors = 0;
    for (int i = 0; i < 2 * kSeeds; ++i) {
      errors += got[i].finish == FinishReason::error;
      if (i % 2 == 0 && got[i].finish != FinishReason::error) CHECK(got[i].same_as(alone[i / 2]), "rule ", int(rule), ", request ", i);
    }
    CHECK(errors == 1, errors);
    for (int seed = 0; seed < kBatch; ++seed)  // in the same slots, after the failure
      CHECK(decode(engine, kPrompt, {sampling(1.0, uint64_t(seed), 64)})[0].same_as(alone[seed]), "rule ", int(rule), ": seed ", seed, " after a failure");
  }
}

// Drafts, verdicts and extra tokens of `rejection` are those of the book at the addresses of the design; and no address of a request comes
// twice, though positions are drafted again after every rejection.
TEST(rejection_consults_no_random_number_twice) {
  long drafted_again = 0, cycles = 0;
  for (int variant = 0; variant < 3; ++variant)
    for (uint64_t seed = 1; seed <= 60; ++seed) {
      TableEngine engine(table_pair(kIds, variant == 2 ? DraftKind::reversed : DraftKind::noisy), Acceptance::rejection, kTau, 1, 80);
      RequestParams p = sampling(1.0, (seed + statistics_seed()) * 0x9E3779B97F4A7C15u, 60);
      if (variant == 1) p.top_k = 4, p.frequency_penalty = 0.1;
      std::map<int, int> fed;  // position: token; where the target read drafts, these
      engine.target().after_row = [&](int, int position, int32_t token, float*) { fed[position] = token; };
      std::vector<int> text(kPrompt.begin(), kPrompt.end());
      std::set<Address> consulted;
      std::set<int> drafted;
      engine->add(kPrompt, p);
      while (!engine->idle()) {
        fed.clear();
        for (const Output& output : engine->step()) {
          const std::string where = message("variant ", variant, ", seed ", seed, ", position ", text.size());
          const Simulated want = simulate(engine, p, text, output.tau);
          for (int i = 0; i < output.tau; ++i) {
            CHECK(fed.at(int(text.size()) + i) == want.drafts[i], where, ": draft ", i, " is another");
            drafted_again += !drafted.insert(int(text.size()) + i).second;
          }
          CHECK(output.accepted == want.accepted, where, ": ", output.accepted, " accepted, expected ", want.accepted);
          CHECK(output.tokens == want.emitted, where, ": other tokens");
          for (const Address& each : want.consulted)
            CHECK(consulted.insert(each).second, where, ": purpose ", int(std::get<0>(each)), ", position ", std::get<1>(each), " again");
          text.insert(text.end(), output.tokens.begin(), output.tokens.end());
          ++cycles;
        }
      }
    }
  CHECK(drafted_again > 1000 && cycles > 1000, drafted_again, " ", cycles);
}

// The noise of a draft says nothing about that of its acceptance.
TEST(drafts_and_verdicts_are_independent) {
  constexpr int kBins = 10;
  const long n = statistics_size(200000);
  const std::vector<double> flat(kBins, 1.0 / kBins);
  std::vector<long> counts(kBins * kBins, 0);
  for (long i = 0; i < n; ++i) {
    const NoiseAddress draft{uint64_t(i) + (statistics_seed() << 32), uint32_t(7 + i % 5), 5, Purpose::draft, 0};
    NoiseAddress accept = draft;
    accept.purpose = Purpose::accept;
    ++counts[winner(flat, draft) * kBins + int(accept_uniform_at(accept) * kBins)];
  }
  const auto result = reference::chi_square(counts, std::vector<double>(counts.size(), double(n) / double(counts.size())));
  CHECK(result.p_value >= 1e-6, "X2 = ", result.statistic, " at ", result.degrees, " degrees, p = ", result.p_value);
}

// Two requests that run side by side: the pair of their tokens has the product of their laws.
TEST(neighbours_are_independent) {
  const long n = statistics_size(200000);
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection}) {
    TableEngine engine(table_pair(kIds, DraftKind::noisy), rule, 2, 2, 16);
    std::vector<long> counts(kIds * kIds, 0);
    uint64_t seed = statistics_seed() << 32;
    for (long i = 0; i < n; ++i) {
      const std::vector<TableText> both = decode(engine, kPrompt, {sampling(1.0, seed, 1), sampling(1.0, seed + 1, 1)});
      seed += 2;
      ++counts[both[0].tokens.back() * kIds + both[1].tokens.back()];
    }
    const std::vector<double> law = engine.target_law(sampling(1.0, 0, 1), {kPrompt.begin(), kPrompt.end()}, int(kPrompt.size()));
    std::vector<double> expected;
    for (double a : law)
      for (double b : law) expected.push_back(a * b * double(n));
    const auto result = reference::chi_square(counts, expected);
    CHECK(result.p_value >= 1e-6, "rule ", int(rule), ": X2 = ", result.statistic, ", p = ", result.p_value);
  }
}

TEST_MAIN()
