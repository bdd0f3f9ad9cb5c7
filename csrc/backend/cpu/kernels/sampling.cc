// Choosing from a processed row, and what is reported of a raw one: sampling.h. As in processors.cc, no sum of floats is reordered.
#include "backend/cpu/kernels/sampling.h"

#include "backend/cpu/kernels/noise.h"
#include "math/acceptance.h"
#include "math/bfloat16.h"
#include "math/fixed_sum.h"

namespace paceline::cpu::PACELINE_ISA {
namespace {

// ------------------------------------------------------------------------------------------------ drawing

// 2^t in fp32 to about 1e-6 for t <= 0; only ever compared with a margin of 1e-3.
inline float rough_exp2(float t) {
  t = t > -126.0f ? t : -126.0f;
  const float shifted = t + 12582912.0f, n = shifted - 12582912.0f, r = t - n;
  float p = 1.5403530e-4f;
  p = p * r + 1.3333558e-3f;
  p = p * r + 9.6181291e-3f;
  p = p * r + 5.5504109e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  return float_from_bits(paceline::bits_of(p) + (paceline::bits_of(shifted) << 23));
}

double exponential(const NoiseAddress& at, uint32_t id, uint32_t high) {
  return exponential_of(high, noise_words(at, id >> 2, 1).word[id & 3]);
}

// Which of 64 ids can still win a race of exponentials e / weight against the smallest quotient so far: not those with
// y (1 - 1e-4) > best (1 + 1e-3) weight, because e >= y >= hi 2^-32. Exact: the margins cover the rough weights.
uint64_t contenders(const uint32_t* high, const float* weight, int count, double best) {
  const float bound = float(best) * 1.001f;
  uint8_t keep[64];
  for (int j = 0; j < 64; ++j) keep[j] = float(high[j]) * (0.9999f * 0x1p-32f) <= bound * weight[j];
  uint64_t mask = 0;
  for (int j = 0; j < count; ++j) mask |= uint64_t(keep[j]) << j;
  return mask;
}

int32_t choose(const ProcessedRow& row, const NoiseAddress& at) {
  if (row.temperature == 0.0) return row.argmax;
  const float* l = row.logits;
  const auto gumbel_score = [&](int id, double e) { return fma(row.temperature, gumbel_of(e), double(l[id]) - double(row.l_max)); };
  int32_t winner = row.argmax;
  double quotient = exponential_at(at, winner);  // e / w, its weight is 1
  double score = gumbel_score(winner, quotient);
  const float log2e_over_t = float(1.4426950408889634 / row.temperature);
  for (int first = 0; first < row.n; first += 64) {
    const int count = row.n - first < 64 ? row.n - first : 64;
    uint32_t high[64];
    float weight[64] = {};
    high_words(at, first, high);
    for (int j = 0; j < count; ++j) {
      const float x = l[first + j] == row.l_max ? 0.0f : (l[first + j] - row.l_max) * log2e_over_t;
      weight[j] = rough_exp2(x);
    }
    for (uint64_t mask = contenders(high, weight, count, quotient); mask; mask &= mask - 1) {
      const int j = __builtin_ctzll(mask), id = first + j;
      if (!(l[id] >= row.threshold) || id == row.argmax) continue;
      const double e = exponential(at, id, high[j]), s = gumbel_score(id, e);
      if (s > score || (s == score && id < winner)) winner = id, score = s;
      const double q = e / exp_of(scaled(row, l[id]));
      quotient = q < quotient ? q : quotient;
    }
  }
  return winner;
}

// ------------------------------------------------------------------------------------------------ rejection

uint64_t weight_of(const ProcessedRow& row, int32_t id) {
  if (id >= row.n) return 0;
  if (row.temperature == 0.0) return id == row.argmax;
  return row.logits[id] >= row.threshold ? fixed_weight(scaled(row, row.logits[id])) : 0;
}

// Of the 64 ids from `first` on; those that do not exist have none. Step by step and without a branch, which makes vectors of it: 32,000 weights
// take a quarter of the time.
void weights_from(const ProcessedRow& row, int first, uint64_t weight[64]) {
  if (row.temperature == 0.0) {
    for (int j = 0; j < 64; ++j) weight[j] = first + j == row.argmax;
    return;
  }
  const int count = row.n - first < 64 ? row.n - first : 64;
  float l[64];
  for (float& each : l) each = kMinusInfinity;
  for (int j = 0; j < count; ++j) l[j] = row.logits[first + j] >= row.threshold ? row.logits[first + j] : kMinusInfinity;
  for (int j = 0; j < 64; ++j) weight[j] = fixed_weight(scaled(row, l[j]));
}

uint64_t mass(const ProcessedRow& row) {
  uint64_t total = 0, weight[64];
  for (int first = 0; first < row.n; first += 64) {
    weights_from(row, first, weight);
    for (const uint64_t each : weight) total += each;
  }
  return total;
}

double confidence(const ProcessedRow& row) {
  ProcessedRow warm = row;
  if (row.temperature == 0.0) warm.temperature = 1.0;
  return double(weight_of(warm, row.argmax)) / double(mass(warm));
}

double probability(const ProcessedRow& row, uint64_t total, int32_t id) { return double(weight_of(row, id)) / double(total); }

int32_t choose_residual(const ProcessedRow& target, uint64_t target_mass, const ProcessedRow& draft, uint64_t draft_mass,
                        const NoiseAddress& at) {
  int32_t winner = -1;
  double quotient = 0x1p1000;
  for (int first = 0; first < target.n; first += 64) {
    const int count = target.n - first < 64 ? target.n - first : 64;
    uint32_t high[64];
    uint64_t of_target[64], of_draft[64];
    double owed[64];
    float rough[64];
    weights_from(target, first, of_target);
    weights_from(draft, first, of_draft);
    for (int j = 0; j < 64; ++j) {
      owed[j] = residual(double(of_target[j]) / double(target_mass), double(of_draft[j]) / double(draft_mass));
      rough[j] = float(owed[j]);
    }
    high_words(at, first, high);
    for (uint64_t mask = contenders(high, rough, count, quotient < 1e30 ? quotient : 1e30); mask; mask &= mask - 1) {
      const int j = __builtin_ctzll(mask);
      if (!(owed[j] > 0.0)) continue;
      const double q = exponential(at, first + j, high[j]) / owed[j];
      if (q < quotient) winner = first + j, quotient = q;
    }
  }
  return winner >= 0 ? winner : choose(target, at);  // equal rows, or rounding emptied it: what is owed is the target itself
}

// ------------------------------------------------------------------------------------------------ raw rows

void normaliser(const float* l, int32_t n, double* l_max, double* log_sum) {
  const double m = double(max_of(l, n));
  uint64_t total = 0;
  for (int i = 0; i < n; ++i) total += fixed_weight(double(l[i]) - m);
  *l_max = m;
  *log_sum = log_of_sum(total);
}

void log_softmax(const float* l, int32_t n, float* out) {
  double l_max, log_sum;
  normaliser(l, n, &l_max, &log_sum);
  for (int i = 0; i < n; ++i) out[i] = float((double(l[i]) - l_max) - log_sum);
}

void top(const float* l, int32_t n, int32_t k, int32_t* ids) {
  int held = 0;
  for (int i = 0; i < n; ++i) {
    if (held == k && !(l[i] > l[ids[k - 1]])) continue;
    int at = held < k ? held++ : k - 1;
    for (; at > 0 && l[i] > l[ids[at - 1]]; --at) ids[at] = ids[at - 1];
    ids[at] = i;
  }
}

uint64_t hash(const float* l, int32_t n) {
  uint64_t h = 0x243F6A8885A308D3u;
  for (int i = 0; i < n; ++i) h = (h ^ paceline::bits_of(l[i])) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
  return h;
}

}  // namespace

const SamplingKernels& sampling_kernels() {
  static constexpr SamplingKernels kernels{process, choose, mass, confidence, probability, choose_residual, normaliser, log_softmax, top, hash};
  return kernels;
}

}  // namespace paceline::cpu::PACELINE_ISA
