// Attention of the rows of one sequence over its pages, for heads that share one KV head.
//
//   out[t, h] = softmax(q[t, h] . K[0 .. position_t] / sqrt(Dh)) . V[0 .. position_t]
//
// Traffic   2 Dh (position + 1) values per KV head: a page is fetched once for up to kTaskQueries queries (rows x heads)
// Rounding  with bf16 keys and values the queries and the weights 2^(score - maximum) are rounded to bf16 as well; sums are fp32
// Order     a group of eight pages is reduced from its first position up, page after page; groups are merged in ascending
//           order. All of it is fixed by absolute positions: who computes which group cannot change a bit.
// Masking   whatever lies beyond the row's position, in a score vector or a pair of values, is dropped before it is used.
// Source    online softmax, Milakov and Gimelshein 2018 (arXiv:1805.02867). Oracle: tests/reference/attention.h
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/simd.h"
#include "math/bfloat16.h"

namespace paceline::cpu::PACELINE_ISA {
namespace {

constexpr int kPage = 64;
constexpr int kTogether = 4;  // queries that share one load of a key or value vector

// Vectors of keys or values in flight: with four queries enough sums to hide the latency of a multiply-add.
#if defined(PACELINE_ISA_avx2)
constexpr int kVectors = 1;
#else
constexpr int kVectors = 4;
#endif

using State = AttentionState;

struct Query {
  const float* q;         // [Dh] as it enters the scores: rounded to bf16 where the keys are
  const uint32_t* pairs;  // [Dh / 2] bf16 pairs, where the level multiplies them
  int position;
};

// The queries of a task, ready for its pages.
struct Queries {
  Query query[kTaskQueries];
  alignas(64) float rounded[kTaskQueries][kLongestHead];
  uint32_t pairs[kTaskQueries][kLongestHead / 2];
  int count = 0, last_position = 0;

  explicit Queries(const AttentionTask& task) {
    for (int row = 0; row < task.rows; ++row)
      for (int head = 0; head < task.heads; ++head, ++count) {
        const float* q = task.q + size_t(row) * task.stride + size_t(head) * task.head_dim;
        query[count] = {q, pairs[count], task.position[row]};
        last_position = task.position[row] > last_position ? task.position[row] : last_position;
        if (task.dtype == DType::fp32) continue;
        for (int d = 0; d < task.head_dim; ++d) rounded[count][d] = from_bf16(to_bf16(q[d]));
        for (int d = 0; d < task.head_dim; d += 2) pairs[count][d / 2] = uint32_t(to_bf16(q[d])) | uint32_t(to_bf16(q[d + 1])) << 16;
        query[count].q = rounded[count];
      }
  }
};

// How the elements of a page are read. A step is the part of the head dimension that lies together for 16 positions.
struct Fp32 {
  static constexpr int kStep = 1;
  template <int Q, int V>
  static void step(const char* keys, const Query* query, int step, F32 (&sum)[Q][V]) {
    const float* k = reinterpret_cast<const float*>(keys) + size_t(step) * kPage;
    F32 key[V];
    for (int v = 0; v < V; ++v) key[v] = load(k + v * kLanes);
    for (int i = 0; i < Q; ++i) {
      const F32 q = splat(query[i].q[step]);
      for (int v = 0; v < V; ++v) sum[i][v] = fma(key[v], q, sum[i][v]);
    }
  }
  static constexpr int kPositions = 1;  // of a value vector
  static void add(F32& sum, F32 value, const float* weights, int at) { sum = fma(value, splat(weights[at]), sum); }
  static F32 first_position(F32 value) { return value; }
  static void store_weights(float* weights, int at, F32 weight) { store(weights + at, weight); }
};

struct Bf16 {
  static constexpr int kStep = 2;
  template <int Q, int V>
  static void step(const char* keys, const Query* query, int step, F32 (&sum)[Q][V]) {
    const uint32_t* k = reinterpret_cast<const uint32_t*>(keys) + size_t(step) * kPage;
#if defined(PACELINE_ISA_avx512_bf16)
    __m512bh key[V];
    for (int v = 0; v < V; ++v) key[v] = (__m512bh)_mm512_loadu_si512(k + v * kLanes);
    for (int i = 0; i < Q; ++i) {
      const __m512bh q = (__m512bh)_mm512_set1_epi32(int(query[i].pairs[step]));
      for (int v = 0; v < V; ++v) sum[i][v].v = _mm512_dpbf16_ps(sum[i][v].v, key[v], q);
    }
#else
    for (int v = 0; v < V; ++v) {
      const F32 low = load_even(k + v * kLanes), high = load_odd(k + v * kLanes);
      for (int i = 0; i < Q; ++i) {
        const float* q = query[i].q + 2 * step;
        sum[i][v] = fma(high, splat(q[1]), fma(low, splat(q[0]), sum[i][v]));
      }
    }
#endif
  }
  static constexpr int kPositions = 2;
  // Weights are kept as bf16 pairs where the level multiplies those, else as the floats they round to.
#if defined(PACELINE_ISA_avx512_bf16)
  static void add(F32& sum, F32 value, const float* weights, int at) {
    const __m512bh pair = (__m512bh)_mm512_set1_epi32(reinterpret_cast<const int32_t*>(weights)[at]);
    sum.v = _mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_castps_si512(value.v), pair);
  }
  static void store_weights(float* weights, int at, F32 weight) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights) + at / kLanes, (__m256i)_mm512_cvtneps_pbh(weight.v));
  }
#else
  static void add(F32& sum, F32 value, const float* weights, int at) {
    sum = fma(odd_of(value), splat(weights[2 * at + 1]), fma(even_of(value), splat(weights[2 * at]), sum));
  }
  static void store_weights(float* weights, int at, F32 weight) { store(weights + at, rounded_to_bf16(weight)); }
#endif
  static F32 first_position(F32 value) { return low_halves(value); }
};

// Pages lie anywhere, which the hardware cannot foresee: while one is read, its successor is fetched, line for line.
void fetch(const char* at, int bytes) {
  for (int i = 0; i < bytes; i += 64) _mm_prefetch(at + i, _MM_HINT_T1);
}

// Scores of Q queries at positions [first, first + 16 V) of a page.
template <class Kv, int Q, int V>
void scores_of(const Query* query, const char* keys, const char* next_keys, int head_dim, int first, float (*scores)[kPage]) {
  F32 sum[Q][V];
  for (int i = 0; i < Q; ++i)
    for (int v = 0; v < V; ++v) sum[i][v] = splat(0.0f);
  for (int step = 0; step < head_dim / Kv::kStep; ++step) {
    Kv::template step<Q, V>(keys + first * 4, query, step, sum);
    if (next_keys) fetch(next_keys + (size_t(step) * kPage + first) * 4, V * 64);
  }
  for (int i = 0; i < Q; ++i)
    for (int v = 0; v < V; ++v) store(scores[i] + first + v * kLanes, sum[i][v]);
}

// Turn `visible` scores into weights 2^(score - maximum), in place, where the maximum is that of the group so far, and add them to the
// state's sum. Returns what the state's values so far are to be multiplied with.
template <class Kv, bool IsWhole>
float soften(float* scores, int visible, float scale, State& state) {
  constexpr int kVectorsOfPage = kPage / kLanes;
  const auto seen = [visible](int v, F32 a, float otherwise) { return IsWhole ? a : select_first(visible - v * kLanes, a, splat(otherwise)); };
  F32 scaled[kVectorsOfPage], weight[kVectorsOfPage];
  for (int v = 0; v < kVectorsOfPage; ++v) scaled[v] = seen(v, load(scores + v * kLanes) * splat(scale), -__builtin_inff());
  const float page = max_of(max(max(scaled[0], scaled[1]), max(scaled[2], scaled[3])));
  const float maximum = page > state.maximum ? page : state.maximum;
  for (int v = 0; v < kVectorsOfPage; ++v) {
    weight[v] = seen(v, exp2_of(scaled[v] - splat(maximum)), 0.0f);
    Kv::store_weights(scores, v * kLanes, weight[v]);
  }
  const float keep = state.sum == 0.0f ? 0.0f : first_of(exp2_of(splat(state.maximum - maximum)));
  state.maximum = maximum;
  state.sum = state.sum * keep + sum_of((weight[0] + weight[1]) + (weight[2] + weight[3]));
  return keep;
}

// out = keep x out + sum over visible positions of weight x value, in ascending order, for V vectors of the head from d; V = 1 may be
// the last, narrower one. Positions below `common` are visible to every query.
template <class Kv, int Q, int V>
void weigh_columns(const int* visible, int common, int longest, const float (*weights)[kPage], const char* values,
                   const char* next_values, int head_dim, int d, const float* keep, State* states) {
  constexpr int kPositions = Kv::kPositions;
  const int width = head_dim - d;
  const auto value_at = [&](int step, int v) {
    const float* at = reinterpret_cast<const float*>(values) + size_t(step) * head_dim + d + v * kLanes;
    return V > 1 || width >= kLanes ? load(at) : load_first(at, width);
  };
  F32 sum[Q][V], value[V];
  for (int i = 0; i < Q; ++i)
    for (int v = 0; v < V; ++v) sum[i][v] = load(states[i].out + d + v * kLanes) * splat(keep[i]);
  for (int step = 0; step < common / kPositions; ++step) {
    for (int v = 0; v < V; ++v) value[v] = value_at(step, v);
    for (int i = 0; i < Q; ++i)
      for (int v = 0; v < V; ++v) Kv::add(sum[i][v], value[v], weights[i], step);
    if (next_values) fetch(next_values + (size_t(step) * head_dim + d) * 4, 4 * (V > 1 || width >= kLanes ? V * kLanes : width));
  }
  for (int step = common / kPositions; step * kPositions < longest; ++step) {
    for (int v = 0; v < V; ++v) value[v] = value_at(step, v);
    for (int i = 0; i < Q; ++i) {
      const int seen = visible[i] - step * kPositions;
      for (int v = 0; v < V && seen > 0; ++v) Kv::add(sum[i][v], seen >= kPositions ? value[v] : Kv::first_position(value[v]), weights[i], step);
    }
  }
  for (int i = 0; i < Q; ++i)
    for (int v = 0; v < V; ++v) store(states[i].out + d + v * kLanes, sum[i][v]);
}

// a becomes the softmax over both ranges; b comes after a.
void merge(State& a, const State& b, int head_dim) {
  if (b.sum == 0.0f) return;
  if (a.sum == 0.0f) {
    a.maximum = b.maximum, a.sum = b.sum;
    for (int d = 0; d < head_dim; d += kLanes) store(a.out + d, load(b.out + d));
    return;
  }
  // One of the two factors is 2^0 = 1, exactly.
  const float difference = b.maximum - a.maximum;
  const F32 factor = exp2_of(splat(difference > 0.0f ? -difference : difference)), one = splat(1.0f);
  const F32 keep = difference > 0.0f ? factor : one, take = difference > 0.0f ? one : factor;
  a.maximum = difference > 0.0f ? b.maximum : a.maximum;
  a.sum = first_of(splat(a.sum) * keep + splat(b.sum) * take);
  for (int d = 0; d < head_dim; d += kLanes) store(a.out + d, load(a.out + d) * keep + load(b.out + d) * take);
}

// One page for Q queries, added to their groups' states.
template <class Kv, int Q>
void visit(const AttentionTask& task, const Query* query, int page, int next_page, bool fetches, float scale, State* states) {
  const size_t at = size_t(task.pages[page]) * task.page_bytes, next = size_t(task.pages[next_page]) * task.page_bytes;
  const char *keys = task.keys + at, *values = task.values + at;
  const char *next_keys = fetches ? task.keys + next : nullptr, *next_values = fetches ? task.values + next : nullptr;
  int visible[Q], longest = 0, common = kPage;
  for (int i = 0; i < Q; ++i) {
    const int left = query[i].position + 1 - page * kPage;
    visible[i] = left < 0 ? 0 : (left < kPage ? left : kPage);
    longest = visible[i] > longest ? visible[i] : longest;
    common = visible[i] < common ? visible[i] : common;
  }
  if (longest == 0) return;
  alignas(64) float scores[Q][kPage];
  float keep[Q];
  int first = 0;
  for (; longest - first > (kVectors - 1) * kLanes; first += kVectors * kLanes)
    scores_of<Kv, Q, kVectors>(query, keys, next_keys, task.head_dim, first, scores);
  for (; first < longest; first += kLanes) scores_of<Kv, Q, 1>(query, keys, next_keys, task.head_dim, first, scores);
  for (int i = 0; i < Q; ++i) {
    if (visible[i] == kPage) keep[i] = soften<Kv, true>(scores[i], kPage, scale, states[i]);
    else keep[i] = visible[i] ? soften<Kv, false>(scores[i], visible[i], scale, states[i]) : 1.0f;
  }
  int d = 0;
  for (; task.head_dim - d >= kVectors * kLanes; d += kVectors * kLanes)
    weigh_columns<Kv, Q, kVectors>(visible, common, longest, scores, values, next_values, task.head_dim, d, keep, states);
  for (; d < task.head_dim; d += kLanes)
    weigh_columns<Kv, Q, 1>(visible, common, longest, scores, values, next_values, task.head_dim, d, keep, states);
}

// The pages of one group that some query sees, in ascending order.
template <class Kv>
void group_states(const AttentionTask& task, const Queries& queries, int group, State* states) {
  const float scale = 1.44269504f / __builtin_sqrtf(float(task.head_dim));  // scores are exponents of 2
  for (int i = 0; i < queries.count; ++i) {
    states[i].maximum = -__builtin_inff(), states[i].sum = 0.0f;
    for (int d = 0; d < task.head_dim; d += kLanes) store(states[i].out + d, splat(0.0f));
  }
  const int first = group * kGroupPages, last = queries.last_position / kPage;
  for (int page = first; page < first + kGroupPages && page <= last; ++page) {
    const int next = page < last ? page + 1 : page;
    for (int i = 0; i < queries.count; i += kTogether) switch (queries.count - i) {
        case 1: visit<Kv, 1>(task, queries.query + i, page, next, i == 0, scale, states + i); break;
        case 2: visit<Kv, 2>(task, queries.query + i, page, next, i == 0, scale, states + i); break;
        case 3: visit<Kv, 3>(task, queries.query + i, page, next, i == 0, scale, states + i); break;
        default: visit<Kv, kTogether>(task, queries.query + i, page, next, i == 0, scale, states + i);
      }
  }
}

void group_states(const AttentionTask& task, const Queries& queries, int group, State* states) {
  if (task.dtype == DType::bf16) group_states<Bf16>(task, queries, group, states);
  else group_states<Fp32>(task, queries, group, states);
}

}  // namespace

void attention_group(const AttentionTask& task, int group, AttentionState* states) {
  group_states(task, Queries(task), group, states);
}

void attention_merge(const AttentionTask& task, const AttentionState* states, AttentionState* totals) {
  for (int i = 0; i < task.rows * task.heads; ++i) merge(totals[i], states[i], task.head_dim);
}

void attention_finish(const AttentionTask& task, const AttentionState* totals) {
  for (int i = 0; i < task.rows * task.heads; ++i) {
    float* out = task.out + size_t(i / task.heads) * task.out_stride + size_t(i % task.heads) * task.head_dim;
    for (int d = 0; d < task.head_dim; d += kLanes)
      store_first(out + d, task.head_dim - d, load(totals[i].out + d) / splat(totals[i].sum));
  }
}

void attention(const AttentionTask& task) {
  const Queries queries(task);
  State totals[kTaskQueries], states[kTaskQueries];
  group_states(task, queries, 0, totals);
  for (int group = 1; group <= queries.last_position / (kPage * kGroupPages); ++group) {
    group_states(task, queries, group, states);
    attention_merge(task, states, totals);
  }
  attention_finish(task, totals);
}

}  // namespace paceline::cpu::PACELINE_ISA
