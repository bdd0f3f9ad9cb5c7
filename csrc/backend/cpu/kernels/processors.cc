// The processors of a row: sampling.h. Loops are written so that the compiler vectorises them (no early exit, no calls); that
// cannot change a bit, since no sum of floats is reordered: maxima are exact and masses are integers.
#include "backend/cpu/kernels/sampling.h"

#include "math/bfloat16.h"
#include "math/fixed_sum.h"

namespace paceline::cpu::PACELINE_ISA {
namespace {

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

// The histogram of the first `bits` of all keys, by weight. Sixty-four at a time, so that weights come from vectors and only adding them
// up does not. Returns the highest bucket in use.
template <class Weight>
int first_digits(const float* l, int n, float from, int bits, uint64_t* histogram, Weight weight) {
  uint32_t highest = 0;
  for (int first = 0; first < n; first += 64) {
    const int count = n - first < 64 ? n - first : 64;
    uint32_t any = 0;
    for (int i = 0; i < count; ++i) any |= l[first + i] >= from ? 1u : 0u;
    if (!any) continue;  // most, behind a top-k
    uint64_t part[64];
    uint32_t bucket[64];
    for (int i = 0; i < count; ++i) part[i] = weight(l[first + i]);  // of all: a condition here would be a branch
    for (int i = 0; i < count; ++i) part[i] = l[first + i] >= from ? part[i] : 0;
    for (int i = 0; i < count; ++i) bucket[i] = key_of(l[first + i]) >> (32 - bits);
    for (int i = 0; i < count; ++i) highest = bucket[i] > highest ? bucket[i] : highest;
    for (int i = 0; i < count; ++i) histogram[bucket[i]] += part[i];
  }
  return int(highest);
}

// The same of the next `bits`, of the tokens whose first ones are `prefix`.
template <class Weight>
int next_digits(const float* l, int n, float from, uint32_t prefix, int fixed_bits, int bits, uint64_t* histogram, Weight weight) {
  int highest = 0;
  for (int first = 0; first < n; first += 64) {
    const int count = n - first < 64 ? n - first : 64;
    uint8_t is_one[64] = {};
    for (int i = 0; i < count; ++i) is_one[i] = (l[first + i] >= from) & (key_of(l[first + i]) >> (32 - fixed_bits) == prefix);
    uint64_t mask = 0;
    for (int i = 0; i < 64; ++i) mask |= uint64_t(is_one[i]) << i;
    for (; mask; mask &= mask - 1) {  // few have them all
      const float logit = l[first + __builtin_ctzll(mask)];
      const int bucket = (key_of(logit) >> (32 - fixed_bits - bits)) & ((1 << bits) - 1);
      histogram[bucket] += weight(logit);
      highest = bucket > highest ? bucket : highest;
    }
  }
  return highest;
}

// The smallest logit that survives a cut "the weight strictly above it is below limit(total weight)", among tokens at or above `from`.
// Radix select from the top bits of the key: three sweeps instead of sorting the vocabulary, or four of fewer buckets for rows so
// short that clearing 2048 of them would cost more than a sweep.
template <class Weight, class Limit>
float upper_cut(const float* l, int n, float from, uint64_t* histogram, Weight weight, Limit limit_of) {
  uint64_t above = 0;
  double limit = 0;
  uint32_t prefix = 0;
  const int digit = n <= 4096 ? 8 : 11;
  for (int fixed_bits = 0, bits; fixed_bits < 32; fixed_bits += bits) {
    bits = 32 - fixed_bits < digit ? 32 - fixed_bits : digit;
    memset(histogram, 0, sizeof(uint64_t) << bits);
    // Walks start at the highest bucket in use: rows of few tokens do not pay for one down from the top.
    int bucket = fixed_bits == 0 ? first_digits(l, n, from, bits, histogram, weight)
                                 : next_digits(l, n, from, prefix, fixed_bits, bits, histogram, weight);
    if (fixed_bits == 0) {
      uint64_t total = 0;
      for (int i = 0; i <= bucket; ++i) total += histogram[i];
      limit = limit_of(total);
    }
    while (bucket >= 0 && double(above + histogram[bucket]) < limit) above += histogram[bucket--];
    if (bucket < 0) return from;  // the limit is never reached: nothing is cut
    prefix = prefix << bits | uint32_t(bucket);
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

}  // namespace

float max_of(const float* l, int n) {
  constexpr int kLanes = 16;
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
  if (p.top_k > 0 && p.top_k < n) row.threshold = upper_cut(l, n, row.threshold, scratch.histogram, one, [&p](uint64_t) { return double(p.top_k); });
  if (p.top_p < 1.0)
    row.threshold = upper_cut(l, n, row.threshold, scratch.histogram, weight, [&p](uint64_t total) { return p.top_p * double(total); });
  if (p.min_p >= 2.3e-308) {  // below the smallest normal number nothing could be cut
    const float cut = min_p_cut(row.l_max, p.temperature, p.min_p);
    row.threshold = cut > row.threshold ? cut : row.threshold;
  }
  return row;
}

}  // namespace paceline::cpu::PACELINE_ISA
