// The vector layer where the oracles of whole operations are too coarse: the exponential over its whole range, and the tree
// in which lanes are added. The AVX2 spelling; the others differ only in the names of the instructions.
#include <immintrin.h>

#include <cmath>
#include <random>

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define PACELINE_ISA under_test
#define PACELINE_ISA_avx2
#include "backend/cpu/kernels/simd.h"

namespace simd = paceline::cpu::under_test;

static void exp_of_sixteen(const float* x, float* y) { simd::store(y, simd::exp_of(simd::load(x))); }
static float sum_of_sixteen(const float* x) { return simd::sum_of(simd::load(x)); }
static float max_of_sixteen(const float* x) { return simd::max_of(simd::load(x)); }
#pragma GCC pop_options

#include "cpp/test.h"

namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

TEST(the_exponential_is_good_to_two_units_and_clamped) {
  if (!has_avx2()) return;
  float x[16], y[16];
  double worst = 0;
  for (int i = 0; i < 1 << 17; ++i) {
    for (int lane = 0; lane < 16; ++lane) x[lane] = -87.0f + 175.0f * float(i * 16 + lane) / float(1 << 21);
    exp_of_sixteen(x, y);
    for (int lane = 0; lane < 16; ++lane) worst = std::fmax(worst, std::fabs(y[lane] / std::exp(double(x[lane])) - 1));
  }
  CHECK(worst < 2 * 0x1p-23, worst);
  const float special[16] = {0.0f, -0.0f, -1000, 1000, -INFINITY, INFINITY, NAN, -87, 88};
  exp_of_sixteen(special, y);
  CHECK(y[0] == 1 && y[1] == 1);
  CHECK(y[2] == y[7] && y[4] == y[7] && y[7] > 0, y[2]);
  CHECK(y[3] == y[8] && y[5] == y[8] && std::isfinite(y[8]), y[3]);
  CHECK(std::isnan(y[6]));
}

TEST(lanes_are_added_half_to_half) {
  if (!has_avx2()) return;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (int round = 0; round < 1000; ++round) {
    float x[16], lane[16];
    for (int i = 0; i < 16; ++i) x[i] = lane[i] = normal(random);
    for (int half = 8; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) lane[i] = lane[i] + lane[i + half];
    CHECK(sum_of_sixteen(x) == lane[0], sum_of_sixteen(x), " ", lane[0]);
    float highest = x[0];
    for (float v : x) highest = std::fmax(highest, v);
    CHECK(max_of_sixteen(x) == highest);
  }
}

TEST_MAIN()
