// Sampling kernels of every instruction level against the definition written the plain way, and against each other bit for bit.
#include <algorithm>
#include <cfloat>
#include <set>

#include "cpp/sampling_bench.h"
#include "cpp/test.h"
#include "math/acceptance.h"
#include "math/fixed_sum.h"

using namespace paceline;
using namespace paceline::test;

namespace {

// Survivors by the definition of design section 3, steps 7 to 10, by sorting.
std::set<int> survivors(const float* l, int n, const SlotParams& p) {
  std::vector<int> order;
  for (int i = 0; i < n; ++i)
    if (l[i] > -INFINITY) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return l[a] > l[b]; });
  const double l_max = l[order[0]];
  std::set<int> kept;
  const auto strictly_greater = [&](int i) { return std::count_if(order.begin(), order.end(), [&](int j) { return l[j] > l[i]; }); };
  for (int i : order)
    if (p.top_k == 0 || strictly_greater(i) < p.top_k) kept.insert(i);
  const auto weight = [&](int i) { return fixed_weight((l[i] - l_max) / p.temperature); };
  uint64_t total = 0;
  for (int i : kept) total += weight(i);
  std::set<int> result;
  for (int i : kept) {
    uint64_t above = 0;
    for (int j : kept)
      if (l[j] > l[i]) above += weight(j);
    const bool in_p = p.top_p >= 1 || double(above) < p.top_p * double(total);
    const bool in_min_p = p.min_p <= 0 || (l[i] - l_max) / p.temperature >= log_of(p.min_p);
    if (in_p && in_min_p) result.insert(i);
  }
  return result;
}

int32_t plain_choice(const ProcessedRow& row, const NoiseAddress& at) {
  int32_t winner = -1;
  double best = -DBL_MAX;
  for (int i = 0; i < row.n; ++i) {
    if (!(row.logits[i] >= row.threshold)) continue;
    const double score = fma(row.temperature, gumbel_of(exponential_at(at, i)), double(row.logits[i]) - double(row.l_max));
    if (score > best) winner = i, best = score;
  }
  return winner;
}

}  // namespace

TEST(cuts_keep_exactly_the_survivors_of_the_definition) {
  for (const Level& level : levels())
    for (int seed = 0; seed < 60; ++seed) {
      Bench bench(1 + seed * 7, 0.3 + 0.1 * (seed % 13), seed);
      const int n = int(bench.logits.size());
      if (seed % 3 == 1) bench.params.top_k = 1 + seed % 9;
      if (seed % 2 == 1) bench.params.top_p = 0.05 + 0.015 * seed;
      if (seed % 5 == 1) bench.params.min_p = 0.002 * seed;
      if (seed % 7 == 2 && n > 2) bench.logits[1] = -INFINITY;
      const ProcessedRow row = bench.process(*level.kernels);
      const std::set<int> want = survivors(bench.logits.data(), n, bench.params);
      for (int i = 0; i < n; ++i)
        CHECK((row.logits[i] >= row.threshold) == (want.count(i) > 0), level.name, " seed ", seed, " id ", i, " of ", n);
    }
}

TEST(a_negative_zero_ties_with_zero) {
  for (const Level& level : levels()) {
    Bench bench(4, 1, 1);
    bench.logits = {-0.0f, 0.0f, -1.0f, -0.0f};
    bench.params.top_k = 1;
    const ProcessedRow row = bench.process(*level.kernels);
    CHECK(row.argmax == 0);
    for (int i : {0, 1, 3}) CHECK(row.logits[i] >= row.threshold, i);
    CHECK(!(row.logits[2] >= row.threshold));
  }
}

TEST(skipping_tokens_never_changes_the_choice) {
  for (const Level& level : levels())
    for (double temperature : {1e-300, 1e-30, 1e-3, 0.5, 1.0, 4.0, 100.0, 1e30, 1e300})
      for (int seed = 0; seed < 40; ++seed) {
        Bench bench(3 + seed * 50, temperature, seed, seed % 4 == 3 ? 0.0 : 4.0);
        if (seed % 3 == 1) bench.params.top_p = 0.7;
        const ProcessedRow row = bench.process(*level.kernels);
        const NoiseAddress at{uint64_t(seed) * 977, uint32_t(seed), 3, seed % 2 ? Purpose::draft : Purpose::token, 0};
        const int32_t got = level.kernels->choose(row, at), want = plain_choice(row, at);
        CHECK(got == want, level.name, " T ", temperature, " seed ", seed, ": ", got, " instead of ", want);
      }
}

// At this address (found by search: one in 2^32) the high noise word is 0 and the low word alone says that the Gumbel noise is
// 23.4. Without it the noise would be 22.9, or 45.
TEST(the_low_word_decides_in_the_tail) {
  const NoiseAddress at{338854499, 7, 0, Purpose::token, 0};
  constexpr int kId = 15;
  CHECK(noise_words(at, kId >> 2, 0).word[kId & 3] == 0 && std::fabs(gumbel_of(exponential_at(at, kId)) - 23.4) < 0.1);
  for (const Level& level : levels()) {
    int won = 0;
    for (int i = 0; i < 200; ++i) {
      Bench bench(16, 1, 1, 0.0);
      bench.logits.assign(16, 0.0f);
      bench.logits[kId] = -10.0f - 0.1f * float(i);
      const ProcessedRow row = bench.process(*level.kernels);
      const int32_t got = level.kernels->choose(row, at);
      CHECK(got == plain_choice(row, at), level.name, ": logit ", bench.logits[kId], ": ", got);
      won += got == kId;
    }
    CHECK(won > 20 && won < 180, level.name, ": ", won);
  }
}

TEST(temperature_zero_is_the_lowest_argmax) {
  for (const Level& level : levels()) {
    Bench bench(300, 0, 5);
    bench.logits[70] = bench.logits[200] = 50;
    const ProcessedRow row = bench.process(*level.kernels);
    CHECK(level.kernels->choose(row, {}) == 70);
    CHECK(level.kernels->probability(row, level.kernels->mass(row), 70) == 1.0);
    CHECK(level.kernels->probability(row, level.kernels->mass(row), 200) == 0.0);
  }
}

TEST(penalties_follow_the_history_of_the_row) {
  for (const Level& level : levels()) {
    Bench bench(8, 1, 1);
    bench.logits = {1, -1, 2, 0.5f, 0, 0, 0, 0};
    bench.history = {0, 1, 2, 2, 7};
    bench.params.prompt_length = 2;
    bench.params.repetition_penalty = 2;
    bench.params.frequency_penalty = 0.25f;
    bench.params.presence_penalty = 0.5f;
    bench.params.num_bias = 1;
    bench.params.bias_id[0] = 2;
    bench.params.bias[0] = 3;
    const ProcessedRow row = bench.process(*level.kernels);
    const float want[] = {0.5f, -2, 2.5f - 0.5f - 0.5f, 0.5f, 0, 0, 0, -0.75f};
    for (int i = 0; i < 8; ++i) CHECK(row.logits[i] == want[i], level.name, " id ", i, ": ", row.logits[i]);
    for (int32_t count : bench.counts) CHECK(count == 0, "scratch is left clean");
  }
}

TEST(stop_tokens_are_masked_below_min_tokens) {
  for (const Level& level : levels()) {
    Bench bench(4, 0, 1);
    bench.logits = {9, 1, 2, 3};
    bench.params.num_stop = 1;
    bench.params.min_length = 2;  // history of one token: position 1 is below it
    CHECK(bench.process(*level.kernels).argmax == 3);
    bench.params.min_length = 1;
    CHECK(bench.process(*level.kernels).argmax == 0);
  }
}

TEST(faults_are_named) {
  for (const Level& level : levels()) {
    for (float bad : {NAN, INFINITY}) {
      Bench bench(100, 1, 1);
      bench.logits[77] = bad;
      CHECK(bench.process(*level.kernels).fault == kRowNotFinite, level.name);
    }
    Bench one(100, 1, 1);
    one.logits[3] = -INFINITY;
    CHECK(one.process(*level.kernels).fault == kRowSound, "a masked token is not a fault");
    Bench none(5, 1, 1);
    std::fill(none.logits.begin(), none.logits.end(), -INFINITY);
    CHECK(none.process(*level.kernels).fault == kRowEmpty);
  }
}

TEST(residual_draws_never_pick_what_is_not_owed) {
  for (const Level& level : levels()) {
    const SamplingKernels& k = *level.kernels;
    std::vector<int> drawn(6);
    Bench target(6, 1, 3), draft(6, 1, 4);
    const ProcessedRow t = target.process(k), d = draft.process(k);
    const uint64_t tm = k.mass(t), dm = k.mass(d);
    double owed[6], total = 0;
    for (int i = 0; i < 6; ++i) total += owed[i] = residual(k.probability(t, tm, i), k.probability(d, dm, i));
    const int draws = 40000;
    for (int i = 0; i < draws; ++i) ++drawn[k.choose_residual(t, tm, d, dm, {uint64_t(i), 9, 0, Purpose::token, 0})];
    for (int i = 0; i < 6; ++i) {
      const double p = owed[i] / total;
      CHECK(std::fabs(drawn[i] - draws * p) <= 5.5 * std::sqrt(draws * p * (1 - p)), level.name, " id ", i, ": ", drawn[i], " of ", draws * p);
    }
    const NoiseAddress at{5, 9, 0, Purpose::token, 0};
    CHECK(k.choose_residual(t, tm, t, tm, at) == k.choose(t, at), "equal rows: the target itself is owed");
  }
}

// Rounding can leave a rejected draft with nothing owed: then the target itself is what is drawn from.
TEST(an_empty_residual_is_a_draw_from_the_target) {
  for (const Level& level : levels()) {
    const SamplingKernels& k = *level.kernels;
    Bench bench(100, 1, 3);
    const ProcessedRow row = bench.process(k);
    for (uint32_t position = 1; position < 200; ++position) {
      const NoiseAddress at{5, position, 0, Purpose::token, 0};
      CHECK(k.choose_residual(row, k.mass(row), row, k.mass(row), at) == k.choose(row, at), level.name, ", position ", position);
    }
  }
}

TEST(every_level_gives_the_same_bits) {
  const auto all = levels();
  for (int seed = 0; seed < 50; ++seed) {
    Bench bench(5 + 37 * seed, 0.8, seed);
    bench.params.top_p = seed % 2 ? 0.9 : 1.0;
    const int n = int(bench.logits.size());
    const NoiseAddress at{uint64_t(seed), 5, 2, Purpose::token, 0};
    std::vector<float> first(n), out(n);
    const ProcessedRow row0 = bench.process(*all[0].kernels);
    const auto mass0 = all[0].kernels->mass(row0);
    const int choice0 = all[0].kernels->choose(row0, at);
    all[0].kernels->log_softmax(bench.logits.data(), n, first.data());
    for (const Level& level : all) {
      const ProcessedRow row = bench.process(*level.kernels);
      CHECK(row.threshold == row0.threshold && level.kernels->mass(row) == mass0 && level.kernels->choose(row, at) == choice0, level.name);
      level.kernels->log_softmax(bench.logits.data(), n, out.data());
      CHECK(!std::memcmp(out.data(), first.data(), n * sizeof(float)), level.name);
    }
  }
}

TEST(log_softmax_is_right_and_top_is_sorted) {
  for (const Level& level : levels()) {
    Bench bench(5000, 1, 8);
    std::vector<float> out(5000);
    level.kernels->log_softmax(bench.logits.data(), 5000, out.data());
    long double sum = 0;
    for (float l : bench.logits) sum += expl(l);
    for (int i = 0; i < 5000; ++i) CHECK(std::fabs(out[i] - double(bench.logits[i] - logl(sum))) <= 2e-6, level.name, " ", i);
    int32_t ids[20];
    level.kernels->top(bench.logits.data(), 5000, 20, ids);
    std::vector<int> order(5000);
    for (int i = 0; i < 5000; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return bench.logits[a] > bench.logits[b]; });
    for (int i = 0; i < 20; ++i) CHECK(ids[i] == order[i], level.name, " ", i);
  }
}

TEST_MAIN()
