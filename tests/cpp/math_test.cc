// The shared arithmetic of math/: known answers, accuracy against long double, end points, and the rules of a cycle.
#include <cmath>
#include <random>

#include "cpp/test.h"
#include "math/acceptance.h"
#include "math/cycle_rules.h"
#include "math/fixed_sum.h"
#include "math/noise.h"

using namespace paceline;

namespace {

double ulps(double got, long double want) {
  const double spacing = std::nexttoward(std::fabs(double(want)), 1e308L) - std::fabs(double(want));
  return double(std::fabs((long double)got - want)) / spacing;
}

}  // namespace

TEST(philox_known_answers) {
  const PhiloxWords zeros = philox(0, 0, 0, 0, 0), ones = philox(~0ull, ~0u, ~0u, ~0u, ~0u);
  const uint32_t want_zeros[] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  const uint32_t want_ones[] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
  for (int i = 0; i < 4; ++i) {
    CHECK(zeros.word[i] == want_zeros[i], i);
    CHECK(ones.word[i] == want_ones[i], i);
  }
}

TEST(exp_and_log_are_within_3_ulp) {
  std::mt19937_64 random(1);
  double worst_exp = 0, worst_log = 0, worst_log1m = 0;
  for (int i = 0; i < 200000; ++i) {
    const double x = std::uniform_real_distribution<double>(-700, 0)(random);
    worst_exp = std::max(worst_exp, ulps(exp_of(x), expl(x)));
    const double near = std::uniform_real_distribution<double>(0.5, 2)(random), any = std::exp(x);
    worst_log = std::max({worst_log, ulps(log_of(near), logl(near)), ulps(log_of(any), logl(any))});
    const double y = std::ldexp(std::uniform_real_distribution<double>(0.5, 1)(random), -int(random() % 65));
    worst_log1m = std::max(worst_log1m, ulps(minus_log1m(y), -log1pl(-(long double)y)));
  }
  CHECK(worst_exp < 3, worst_exp);
  CHECK(worst_log < 3, worst_log);
  CHECK(worst_log1m < 3, worst_log1m);
  CHECK(exp_of(0) == 1.0);
  CHECK(exp_of(-INFINITY) == 0.0);
  CHECK(exp_of(-1e300) == 0.0);
  CHECK(log_of(1.0) == 0.0);
}

TEST(the_noise_map_is_monotone_and_finite_at_both_ends) {
  const double lowest = exponential_of(0, 0), highest = exponential_of(~0u, ~0u);
  CHECK(lowest > 0 && std::isfinite(lowest));
  CHECK(highest > 36 && std::isfinite(highest));
  CHECK(gumbel_of(lowest) >= 44, gumbel_of(lowest));
  double before = 0;
  for (uint64_t hi = 0; hi < (1ull << 32); hi += 65537) {
    const double e = exponential_of(uint32_t(hi), 0x80000000u);
    CHECK(e > before, hi);
    CHECK(e >= double(hi) * 0x1p-32, "e >= y lets tokens be skipped by their high word");
    before = e;
  }
}

// P(Gumbel > g) = 1 - exp(-e^-g): the number of k with Gumbel above g must be that share of 2^64, to the k.
TEST(the_tails_of_the_noise_have_their_exact_weight) {
  for (double g : {20.0, 25.0, 30.0}) {
    uint64_t low = 0, high = ~0ull;  // gumbel falls with k: find the first k at or below g
    while (low < high) {
      const uint64_t middle = low + (high - low) / 2;
      if (gumbel_of(exponential_of(uint32_t(middle >> 32), uint32_t(middle))) > g) low = middle + 1;
      else high = middle;
    }
    const double want = -std::expm1(-std::exp(-g)) * 0x1p64;
    CHECK(std::fabs(double(low) - want) <= 1 + want * 1e-12, g, low, want);
  }
}

TEST(noise_addresses_do_not_overlap) {
  const NoiseAddress token{7, 100, 90, Purpose::token, 0};
  NoiseAddress other = token;
  other.cycle_start = 91;
  CHECK(noise_words(token, 3, 0).word[0] == noise_words(other, 3, 0).word[0], "token noise belongs to the position alone");
  const NoiseAddress draft{7, 100, 90, Purpose::draft, 0};
  NoiseAddress redraft = draft;
  redraft.cycle_start = 91;
  CHECK(noise_words(draft, 3, 0).word[0] != noise_words(redraft, 3, 0).word[0], "a position drafted again gets fresh noise");
  CHECK(noise_words(draft, 3, 0).word[0] != noise_words(token, 3, 0).word[0]);
  NoiseAddress sample = token;
  sample.sample_index = 1;
  CHECK(noise_words(sample, 3, 0).word[0] != noise_words(token, 3, 0).word[0]);
  CHECK(noise_words(token, 3, 1).word[0] != noise_words(token, 3, 0).word[0]);
}

TEST(acceptance_end_points) {
  CHECK(!accepts(0.0, 0.3, 0.0), "a token the target gives 0 is never accepted, not even at u = 0");
  CHECK(accepts(0.3, 0.3, 1.0 - 0x1p-53), "target >= draft is always accepted");
  CHECK(accepts(0x1p-60, 1.0, 0.0));
  CHECK(!accepts(0.5, 1.0, 0.5));
  CHECK(accepts(0.5, 1.0, 0.5 - 0x1p-53));
  for (double p : {1e-300, 0x1p-45, 0.25, 1.0}) {
    for (double u : {0.0, 0x1p-53, 0x1p-24, 0.5, 1 - 0x1p-24, 1 - 0x1p-53}) {
      CHECK(accepts(p, p, u), "draft and target alike: ", p, " ", u);
      CHECK(!accepts(0.0, p, u), "nothing to accept: ", p, " ", u);
      CHECK(!accepts(p, 0.0, u) && !accepts(p, NAN, u), "no row that it was drawn from: ", p, " ", u);
      CHECK(accepts(p / 2, p, u) == (u < 0.5), p, " ", u);
    }
  }
  CHECK(residual(0.2, 0.5) == 0.0);
  CHECK(residual(0.5, 0.2) == 0.5 - 0.2);
}

TEST(fixed_weights_add_exactly) {
  CHECK(fixed_weight(0.0) == 1ull << 45);
  CHECK(fixed_weight(-INFINITY) == 0);
  CHECK(fixed_weight(-32.5) == 0);
  CHECK(std::fabs(log_of_sum(1ull << 45)) == 0.0);
  CHECK(std::fabs(log_of_sum(1ull << 63) - 18 * std::log(2.0)) < 1e-14);
  CHECK(uint64_t(kMaxVocabSize) << 45 == 1ull << 63, "the largest vocabulary cannot overflow a sum");
}

TEST(tau_is_clamped_once) {
  CHECK(clamped_tau(4, 10, 100, 9, 100) == 4);
  CHECK(clamped_tau(4, 10, 100, 8, 100) == 4, "one row behind: the first draft pass has two rows");
  CHECK(clamped_tau(4, 10, 100, 7, 100) == 0, "further behind: catch up first");
  CHECK(clamped_tau(4, 10, 13, 9, 100) == 2, "tau + 1 tokens may be emitted");
  CHECK(clamped_tau(4, 10, 11, 9, 100) == 0);
  CHECK(clamped_tau(4, 10, 100, 9, 12) == 3, "the draft is fed up to length + tau - 2");
  CHECK(clamped_tau(4, 14, 100, 13, 12) == 0);
  CHECK(cached_after(13, 12) == 11);
  CHECK(cached_after(10, 15) == 10);
}

TEST_MAIN()
