// Rows at the edges of what numbers can do: the largest vocabularies, logits far apart or all alike, laws that coincide, exclude each
// other or certain ones. The sampling kernels of every instruction level against long double.
#include <algorithm>

#include "cpp/sampling_bench.h"
#include "cpp/test.h"
#include "math/acceptance.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr int kLarge = 152064;  // the largest vocabulary in use

// A logprob is a float; the sum behind it loses less than 2^-45 per token.
bool is_logprob(float got, long double want, int vocab) {
  return std::fabs((long double)got - want) <= 1e-6L * std::fabs(want) + (long double)vocab * 0x1p-45L;
}

void check_log_softmax(const Level& level, const std::vector<float>& logits, const std::string& where) {
  const int n = int(logits.size());
  std::vector<float> out(n);
  level.kernels->log_softmax(logits.data(), n, out.data());
  const long double best = *std::max_element(logits.begin(), logits.end());
  long double sum = 0;
  for (float l : logits) sum += expl(l - best);
  for (int i = 0; i < n; ++i) {
    const long double want = (logits[i] - best) - logl(sum);
    CHECK(logits[i] == -INFINITY ? out[i] == -INFINITY : is_logprob(out[i], want, n), level.name, ", ", where, ", id ", i, " of ", n, ": ",
          out[i], ", expected ", double(want));
  }
}

// Who survives top-p by sums in long double. Where rounding could decide either way, either way is right.
void check_top_p(const Level& level, Bench& bench, const std::string& where) {
  const ProcessedRow row = bench.process(*level.kernels);
  const int n = int(bench.logits.size());
  const long double best = *std::max_element(bench.logits.begin(), bench.logits.end()), t = bench.params.temperature;
  std::vector<float> order = bench.logits;
  std::sort(order.begin(), order.end(), std::greater<>());
  long double total = 0;
  for (float l : order) total += expl((l - best) / t);
  long double above = 0;
  float last_in = order[0], first_out = -INFINITY;  // of the sure ones
  for (int i = 0; i < n;) {
    const float l = order[i];
    const long double share = above / total, slack = 1e-9L + (long double)n * 0x1p-45L;
    if (share < bench.params.top_p - slack) last_in = l;
    if (share > bench.params.top_p + slack && first_out == -INFINITY) first_out = l;
    for (; i < n && order[i] == l; ++i) above += expl((l - best) / t);
  }
  for (int i = 0; i < n; ++i) {
    const float l = bench.logits[i];
    const bool survives = row.logits[i] >= row.threshold;
    CHECK(survives || l < last_in || l == -INFINITY, level.name, ", ", where, ": id ", i, " of ", n, " is cut");
    CHECK(!survives || l > first_out, level.name, ", ", where, ": id ", i, " of ", n, " stays");
  }
}

enum PairKind { kEqual, kNearlyEqual, kDisjoint, kCertainTarget, kCertainDraft, kFarApart, kSpread, kPairKinds };

// What the target and the draft think of one token each, logit by logit.
void fill_pair(PairKind kind, std::mt19937& random, std::vector<float>& target, std::vector<float>& draft) {
  std::normal_distribution<float> normal(0, 3);
  const int n = int(target.size());
  for (int i = 0; i < n; ++i) {
    target[i] = normal(random);
    draft[i] = kind == kEqual || kind == kNearlyEqual ? target[i] : normal(random);
    if (kind == kNearlyEqual && random() % 2) draft[i] = std::nextafterf(draft[i], 100.0f);
    if (kind == kFarApart) target[i] *= 300, draft[i] *= 300;
    if (kind == kSpread) target[i] *= 1e37f, draft[i] *= 1e-37f;
  }
  if (kind == kDisjoint && n > 1)
    for (int i = 0; i < n; ++i) (i % 2 ? target : draft)[i] = -INFINITY;
  if (kind == kCertainTarget) target[random() % n] = 1000;
  if (kind == kCertainDraft) draft[random() % n] = 1000;
}

}  // namespace

// A draft that is the target is always accepted; what a rejection leaves is never a token that the target gives nothing, never one of
// which the draft has offered as much, and never no token at all.
TEST(a_rejection_draws_what_the_target_owes) {
  for (const Level& level : levels()) {
    const SamplingKernels& k = *level.kernels;
    std::mt19937 random(3);
    long fallbacks = 0, owed_draws = 0;
    for (int round = 0; round < 2000; ++round) {
      const PairKind kind = PairKind(round % kPairKinds);
      const int n = round < 60 ? 1 + round / 6 : 1 + int(random() % 1000);
      const double temperature = round % 5 == 4 ? 0.0 : round % 5 == 3 ? 1e30 : 0.7;
      Bench target(n, temperature, 1), draft(n, temperature, 2);
      fill_pair(kind, random, target.logits, draft.logits);
      const ProcessedRow t = target.process(k), d = draft.process(k);
      CHECK(t.fault == kRowSound && d.fault == kRowSound);
      const uint64_t t_mass = k.mass(t), d_mass = k.mass(d);
      CHECK(t_mass > 0 && d_mass > 0);
      bool owes = false;
      for (int i = 0; i < n; ++i) {
        const double of_t = k.probability(t, t_mass, i), of_d = k.probability(d, d_mass, i);
        CHECK(of_t >= 0 && of_t <= 1 && of_d >= 0 && of_d <= 1, level.name, ": ", of_t, " ", of_d);
        owes = owes || residual(of_t, of_d) > 0;
        if (kind == kEqual && of_d > 0) CHECK(accepts(of_t, of_d, 1 - 0x1p-53), level.name, ": a draft equal to the target is rejected");
        if (of_t == 0) CHECK(!accepts(of_t, of_d, 0.0), level.name, ": a token without probability is accepted");
      }
      for (uint32_t draw = 0; draw < 10; ++draw) {
        const NoiseAddress at{uint64_t(round), draw, 0, Purpose::token, 0};
        const int32_t got = k.choose_residual(t, t_mass, d, d_mass, at);
        CHECK(got >= 0 && got < n, level.name, ": id ", got, " of ", n);
        const double of_t = k.probability(t, t_mass, got), of_d = k.probability(d, d_mass, got);
        CHECK(of_t > 0, level.name, ", kind ", int(kind), ": id ", got, " has no probability");
        if (owes) CHECK(residual(of_t, of_d) > 0, level.name, ", kind ", int(kind), ": id ", got, " is not owed");
        else CHECK(got == k.choose(t, at), level.name, ", kind ", int(kind), ": nothing is owed, the target is to be drawn from");
        ++(owes ? owed_draws : fallbacks);
      }
    }
    CHECK(owed_draws > 5000 && fallbacks > 2000, owed_draws, " ", fallbacks);
  }
}

TEST(logprobs_and_top_p_are_those_of_long_double) {
  for (const Level& level : levels()) {
    std::mt19937 random(11);
    for (int round = 0; round < 2000; ++round) {
      Bench bench(1 + int(random() % 1500), 0.2 + 0.01 * (round % 150), round, 0.1 * (1 + round % 60));
      bench.params.top_p = round % 3 ? 0.001 * (1 + random() % 999) : 1 - 1e-9;
      check_log_softmax(level, bench.logits, message("round ", round));
      check_top_p(level, bench, message("round ", round));
    }
    for (double spread : {0.01, 1.0, 8.0}) {
      Bench bench(kLarge, 1, 5, spread);
      for (double top_p : {0.1, 0.9, 0.999, 1 - 1e-7}) {
        bench.params.top_p = top_p;
        check_top_p(level, bench, message("spread ", spread, ", top-p ", top_p));
      }
      check_log_softmax(level, bench.logits, message("spread ", spread));
    }
  }
}

TEST(crafted_rows_of_a_large_vocabulary) {
  for (const Level& level : levels()) {
    Bench bench(kLarge, 1, 5);
    bench.params.top_p = 0.5;
    const auto survivors = [](const ProcessedRow& row) {
      return std::count_if(row.logits, row.logits + row.n, [&](float l) { return l >= row.threshold; });
    };

    std::fill(bench.logits.begin(), bench.logits.end(), -3.5f);  // all alike: ties stay, the lowest id is the best
    check_log_softmax(level, bench.logits, "all alike");
    ProcessedRow row = bench.process(*level.kernels);
    CHECK(row.argmax == 0 && survivors(row) == kLarge, level.name, ": ", survivors(row));
    CHECK(level.kernels->mass(row) == uint64_t(kLarge) << 45);

    for (size_t i = 0; i < bench.logits.size(); ++i) bench.logits[i] = i % 2 ? 1e4f : -1e4f;  // two camps
    check_log_softmax(level, bench.logits, "two camps");
    row = bench.process(*level.kernels);
    CHECK(row.argmax == 1 && survivors(row) == kLarge / 2, level.name, ": ", survivors(row));

    bench.logits.assign(kLarge, 0.0f);
    bench.logits[kLarge - 1] = -INFINITY;  // one that cannot be chosen
    check_log_softmax(level, bench.logits, "one masked");
    row = bench.process(*level.kernels);
    CHECK(row.fault == kRowSound && survivors(row) == kLarge - 1, level.name, ": ", survivors(row));

    bench.logits.assign(kLarge, -INFINITY);
    CHECK(bench.process(*level.kernels).fault == kRowEmpty, level.name);
    bench.logits[kLarge - 1] = 3.4e38f;  // and one alone that can, as large as a float is
    row = bench.process(*level.kernels);
    CHECK(row.fault == kRowSound && row.argmax == kLarge - 1 && level.kernels->choose(row, {}) == kLarge - 1, level.name);
  }
}

TEST_MAIN()
