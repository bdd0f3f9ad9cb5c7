// Sampling kernels: see sampling.h. Loops are written so that the compiler vectorises them (no early exit, no calls);
// that cannot change a bit, since no sum of floats is reordered: maxima are exact and masses are integers.
#include "backend/cpu/kernels/sampling.h"

#include "core/bfloat16.h"
#include "math/acceptance.h"
#include "math/fixed_sum.h"

namespace paceline::cpu::PACELINE_ISA {
namespace {

constexpr float kLargest = 3.402823466e+38f, kMinusInfinity = -__builtin_inff();
constexpr int kLanes = 16;

float max_of(const float* l, int n) {
  float lane[kLanes];
  for (float& m : lane) m = kMinusInfinity;
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lane[j] = l[i + j] > lane[j] ? l[i + j] : lane[j];
  for (int j = 0; i < n; ++i, ++j) lane[j] = l[i] > lane[j] ? l[i] : lane[j];
  float m = lane[0];
  for (int j = 1; j < kLanes; ++j) m = lane[j] > m ? lane[j] : m;
  return m;
}

int first_index_of(const float* l, int n, float value) {
  for (int i = 0; i < n; ++i)
    if (l[i] == value) return i;
  return 0;
}

bool holds_nan_or_infinity(const float* l, int n) {
  uint32_t bad = 0;
  for (int i = 0; i < n; ++i) bad |= l[i] <= kLargest ? 0u : 1u;  // -inf is a masked token, not a fault
  return bad != 0;
}

// Order-preserving key of a float; -0 and +0 are one value.
uint32_t key_of(float value) {
  const uint32_t bits = paceline::bits_of(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
float value_of(uint32_t key) { return float_from_bits(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// The smallest logit that survives a cut "the weight strictly above it is below limit", among tokens at or above `from`.
// Radix select from the top bits of the key: three sweeps instead of sorting the vocabulary, or four of fewer buckets for rows so
// short that clearing 2048 of them would cost more than a sweep.
template <class Weight>
float upper_cut(const float* l, int n, float from, double limit, uint64_t* histogram, Weight weight) {
  uint64_t above = 0;
  uint32_t prefix = 0;
  int fixed_bits = 0;
  const int digit = n <= 4096 ? 8 : 11;
  while (fixed_bits < 32) {
    const int bits = 32 - fixed_bits < digit ? 32 - fixed_bits : digit, shift = 32 - fixed_bits - bits, buckets = 1 << bits;
    memset(histogram, 0, buckets * sizeof(uint64_t));
    int bucket = 0;  // the highest in use: rows of few tokens do not pay for a walk down from the top
    for (int i = 0; i < n; ++i) {
      const uint32_t key = key_of(l[i]);
      if (!(l[i] >= from && (fixed_bits == 0 || key >> (32 - fixed_bits) == prefix))) continue;
      const int own = (key >> shift) & (buckets - 1);
      histogram[own] += weight(l[i]);
      bucket = own > bucket ? own : bucket;
    }
    while (bucket >= 0 && double(above + histogram[bucket]) < limit) above += histogram[bucket--];
    if (bucket < 0) return from;  // the limit is never reached: nothing is cut
    prefix = prefix << bits | uint32_t(bucket);
    fixed_bits += bits;
  }
  return value_of(prefix);
}

// The smallest logit with (l - l_max) / T >= log(min_p), by bisection over the ordered keys.
float min_p_cut(float l_max, double temperature, double min_p) {
  const double lowest = log_of(min_p);
  uint32_t low = key_of(-kLargest), high = key_of(l_max);  // high survives always
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if ((double(value_of(middle)) - double(l_max)) / temperature >= lowest) high = middle;
    else low = middle + 1;
  }
  return value_of(high);
}

double scaled(const ProcessedRow& row, float logit) { return (double(logit) - double(row.l_max)) / row.temperature; }

bool changes_logits(const RowTask& task) {
  const SlotParams& p = *task.params;
  return task.history_length < p.min_length || p.num_bias || p.repetition_penalty != 1.0f || p.frequency_penalty != 0.0f ||
         p.presence_penalty != 0.0f;
}

// Steps 2 to 5 of the processors on a copy of the row.
void change_logits(const RowTask& task, float* l, int32_t* counts) {
  const SlotParams& p = *task.params;
  const int n = task.vocab_limit;
  if (task.history_length < p.min_length)
    for (int i = 0; i < p.num_stop; ++i)
      if (p.stop_id[i] < n) l[p.stop_id[i]] = kMinusInfinity;
  for (int i = 0; i < p.num_bias; ++i)
    if (p.bias_id[i] < n) l[p.bias_id[i]] += p.bias[i];
  if (p.repetition_penalty != 1.0f) {
    for (int i = 0; i < task.history_length; ++i) {
      const int32_t id = task.history[i];
      if (id < n && counts[id]++ == 0) l[id] = repetition_penalised(l[id], p.repetition_penalty);
    }
    for (int i = 0; i < task.history_length; ++i)
      if (task.history[i] < n) counts[task.history[i]] = 0;
  }
  if (p.frequency_penalty != 0.0f || p.presence_penalty != 0.0f) {
    for (int i = p.prompt_length; i < task.history_length; ++i)
      if (task.history[i] < n) ++counts[task.history[i]];
    for (int i = p.prompt_length; i < task.history_length; ++i) {
      const int32_t id = task.history[i];
      if (id >= n || counts[id] == 0) continue;
      l[id] = count_penalised(l[id], p.frequency_penalty, p.presence_penalty, counts[id]);
      counts[id] = 0;
    }
  }
}

ProcessedRow process(const RowTask& task, const SamplingScratch& scratch) {
  const SlotParams& p = *task.params;
  const int n = task.vocab_limit;
  ProcessedRow row{task.logits, n, kMinusInfinity, -kLargest, 0, kRowSound, p.temperature};
  if (holds_nan_or_infinity(task.logits, task.row_size)) {
    row.fault = kRowNotFinite;
    return row;
  }
  if (changes_logits(task)) {
    memcpy(scratch.logits, task.logits, n * sizeof(float));
    change_logits(task, scratch.logits, scratch.counts);
    row.logits = scratch.logits;
  }
  const float* l = row.logits;
  row.l_max = max_of(l, n);
  if (!(row.l_max > kMinusInfinity)) {
    row.fault = kRowEmpty;
    return row;
  }
  row.argmax = first_index_of(l, n, row.l_max);
  if (p.temperature == 0.0) return row;

  const auto one = [](float) { return uint64_t(1); };
  const auto weight = [&row](float logit) { return fixed_weight(scaled(row, logit)); };
  if (p.top_k > 0 && p.top_k < n) row.threshold = upper_cut(l, n, row.threshold, p.top_k, scratch.histogram, one);
  if (p.top_p < 1.0) {
    uint64_t total = 0;
    for (int i = 0; i < n; ++i) total += l[i] >= row.threshold ? weight(l[i]) : 0;
    row.threshold = upper_cut(l, n, row.threshold, p.top_p * double(total), scratch.histogram, weight);
  }
  if (p.min_p >= 2.3e-308) {  // below the smallest normal number nothing could be cut
    const float cut = min_p_cut(row.l_max, p.temperature, p.min_p);
    row.threshold = cut > row.threshold ? cut : row.threshold;
  }
  return row;
}

// ------------------------------------------------------------------------------------------------ drawing

// High noise words of 64 ids from `first`, a multiple of 64: sixteen Philox counters side by side.
void high_words(const NoiseAddress& at, uint32_t first, uint32_t* words) {
  uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
  const uint32_t cycle = at.purpose == Purpose::token ? 0 : at.cycle_start;
  for (int g = 0; g < kLanes; ++g) {
    c0[g] = first / 4 + g;
    c1[g] = at.position;
    c2[g] = cycle;
    c3[g] = uint32_t(at.purpose) + (at.sample_index << 16);
  }
  uint32_t k0 = uint32_t(at.seed), k1 = uint32_t(at.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int g = 0; g < kLanes; ++g) {
      const uint64_t a = uint64_t(0xD2511F53u) * c0[g], b = uint64_t(0xCD9E8D57u) * c2[g];
      c0[g] = uint32_t(b >> 32) ^ c1[g] ^ k0;
      c1[g] = uint32_t(b);
      c2[g] = uint32_t(a >> 32) ^ c3[g] ^ k1;
      c3[g] = uint32_t(a);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int g = 0; g < kLanes; ++g) {
    words[4 * g + 0] = c0[g];
    words[4 * g + 1] = c1[g];
    words[4 * g + 2] = c2[g];
    words[4 * g + 3] = c3[g];
  }
}

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

uint64_t mass(const ProcessedRow& row) {
  if (row.temperature == 0.0) return 1;
  uint64_t total = 0;
  for (int i = 0; i < row.n; ++i) total += row.logits[i] >= row.threshold ? fixed_weight(scaled(row, row.logits[i])) : 0;
  return total;
}

double probability(const ProcessedRow& row, uint64_t total, int32_t id) { return double(weight_of(row, id)) / double(total); }

int32_t choose_residual(const ProcessedRow& target, uint64_t target_mass, const ProcessedRow& draft, uint64_t draft_mass,
                        const NoiseAddress& at) {
  int32_t winner = -1;
  double quotient = 0x1p1000;
  for (int first = 0; first < target.n; first += 64) {
    const int count = target.n - first < 64 ? target.n - first : 64;
    uint32_t high[64];
    double owed[64];
    float rough[64] = {};
    for (int j = 0; j < count; ++j) {
      owed[j] = residual(probability(target, target_mass, first + j), probability(draft, draft_mass, first + j));
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
  static constexpr SamplingKernels kernels{process, choose, mass, probability, choose_residual, normaliser, log_softmax, top, hash};
  return kernels;
}

}  // namespace paceline::cpu::PACELINE_ISA
