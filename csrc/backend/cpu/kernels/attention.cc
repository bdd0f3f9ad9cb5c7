// Attention of the rows of one sequence over its pages, for the heads that share one KV head.
//
//   out[t, h] = softmax(q[t, h] . K[0 .. position_t] / sqrt(Dh)) . V[0 .. position_t]
//
// Traffic   2 Dh (position + 1) values per KV head: a page is fetched once for up to kQueries queries (rows x heads of the group)
// Order     a page is reduced from position 0 up; pages are merged in ascending order inside groups of eight, groups in
//           ascending order. All of it is fixed by absolute positions: who computes what cannot change a bit.
// Masking   lanes of a score vector beyond the row's position are dropped before they are used; values beyond are never read.
// Source    online softmax, Milakov and Gimelshein 2018 (arXiv:1805.02867). Oracle: tests/reference/attention.h
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/simd.h"
#include "core/bfloat16.h"

namespace paceline::cpu::PACELINE_ISA {
namespace {

constexpr int kPage = 64, kGroup = 8, kMaxHeadDim = 256;
constexpr int kQueries = 32;  // queries that share one sweep of the pages; their states take 66 KB of stack
constexpr int kTogether = 4;  // queries that share one load of a key or value vector

// Softmax over some positions: maximum score, sum of e^(score - maximum), and the values weighted by the same. sum == 0: empty.
struct State {
  float maximum, sum;
  float out[kMaxHeadDim];
};

struct Query {
  const float* q;     // [Dh] as it enters the scores: rounded to bf16 where the keys are
  uint32_t* pairs;    // [Dh / 2] bf16 pairs, where the level multiplies them
  int position;
  float* out;
};

float exp_of(float x) {
  float lane[kLanes];
  store(lane, exp_of(splat(x)));
  return lane[0];
}

// a becomes the softmax over both ranges; b comes after a.
void merge(State& a, const State& b, int head_dim) {
  if (b.sum == 0.0f) return;
  if (a.sum == 0.0f) {
    a.maximum = b.maximum, a.sum = b.sum;
    for (int i = 0; i < head_dim; ++i) a.out[i] = b.out[i];
    return;
  }
  // One of the two factors is e^0 = 1, exactly.
  const float difference = b.maximum - a.maximum, factor = exp_of(difference > 0.0f ? -difference : difference);
  const float keep = difference > 0.0f ? factor : 1.0f, take = difference > 0.0f ? 1.0f : factor;
  a.maximum = difference > 0.0f ? b.maximum : a.maximum;
  a.sum = a.sum * keep + b.sum * take;
  for (int i = 0; i < head_dim; ++i) a.out[i] = a.out[i] * keep + b.out[i] * take;
}

// Sums in flight per query: enough to hide the latency of a multiply-add, few enough for the registers.
#if defined(PACELINE_ISA_avx2)
constexpr int kVectors = 1;
#else
constexpr int kVectors = 4;
#endif

// One step over the head dimension: V vectors of 16 keys against kTogether queries.
template <int V>
void step_fp32(const float* k, const float* const (&q)[kTogether], int d, F32 (&sum)[kTogether][V]) {
  F32 key[V];
  for (int v = 0; v < V; ++v) key[v] = load(k + v * kLanes);
  for (int i = 0; i < kTogether; ++i)
    for (int v = 0; v < V; ++v) sum[i][v] = fma(key[v], splat(q[i][d]), sum[i][v]);
}

template <int V>
void step_bf16(const uint32_t* k, const Query* const (&queries)[kTogether], int d, F32 (&sum)[kTogether][V]) {
#if defined(PACELINE_ISA_avx512_bf16)
  __m512bh key[V];
  for (int v = 0; v < V; ++v) key[v] = (__m512bh)_mm512_loadu_si512(k + v * kLanes);
  for (int i = 0; i < kTogether; ++i) {
    const __m512bh q = (__m512bh)_mm512_set1_epi32(int(queries[i]->pairs[d]));
    for (int v = 0; v < V; ++v) sum[i][v].v = _mm512_dpbf16_ps(sum[i][v].v, key[v], q);
  }
#else
  for (int v = 0; v < V; ++v) {
    const F32 low = load_even(k + v * kLanes), high = load_odd(k + v * kLanes);
    for (int i = 0; i < kTogether; ++i)
      sum[i][v] = fma(high, splat(queries[i]->q[2 * d + 1]), fma(low, splat(queries[i]->q[2 * d]), sum[i][v]));
  }
#endif
}

// Scores of `count` queries at positions [first, first + 16 V) of a page.
template <int V>
void scores_of(const Query* queries, int count, const char* keys, DType dtype, int head_dim, int first, float (*scores)[kPage]) {
  F32 sum[kTogether][V];
  const Query* query[kTogether];
  const float* q[kTogether];
  for (int i = 0; i < kTogether; ++i) {
    query[i] = queries + (i < count ? i : 0);
    q[i] = query[i]->q;
    for (int v = 0; v < V; ++v) sum[i][v] = splat(0.0f);
  }
  if (dtype == DType::fp32) {
    const float* k = reinterpret_cast<const float*>(keys) + first;
    for (int d = 0; d < head_dim; ++d) step_fp32<V>(k + size_t(d) * kPage, q, d, sum);
  } else {
    const uint32_t* k = reinterpret_cast<const uint32_t*>(keys) + first;
    for (int d = 0; d < head_dim / 2; ++d) step_bf16<V>(k + size_t(d) * kPage, query, d, sum);
  }
  for (int i = 0; i < count; ++i)
    for (int v = 0; v < V; ++v) store(scores[i] + first + v * kLanes, sum[i][v]);
}

// Turn `visible` scores into e^(score - maximum), in place, and start the page's state with their maximum and sum.
void soften(float* scores, int visible, float scale, State& page) {
  F32 highest = splat(-__builtin_inff()), sum = splat(0.0f);
  for (int i = 0; i < visible; i += kLanes) {
    const F32 scaled = load(scores + i) * splat(scale);
    store(scores + i, scaled);
    highest = max(highest, select_first(visible - i, scaled, splat(-__builtin_inff())));
  }
  page.maximum = max_of(highest);
  for (int i = 0; i < visible; i += kLanes) {
    const F32 weight = select_first(visible - i, exp_of(load(scores + i) - splat(page.maximum)), splat(0.0f));
    store(scores + i, weight);
    sum = sum + weight;
  }
  page.sum = sum_of(sum);
}

F32 value_at(const char* values, DType dtype, size_t index, int count) {
  if (dtype == DType::fp32) {
    const float* v = reinterpret_cast<const float*>(values) + index;
    return count >= kLanes ? load(v) : load_first(v, count);
  }
  const bf16* v = reinterpret_cast<const bf16*>(values) + index;
  if (count >= kLanes) return load_bf16(v);
  bf16 part[kLanes] = {};
  for (int i = 0; i < count; ++i) part[i] = v[i];
  return load_bf16(part);
}

// out = sum over visible positions of weight x value, position after position, for V vectors of the head from d.
template <int V>
void weigh_columns(const int* visible, int count, int common, int longest, const float (*weights)[kPage], const char* values, DType dtype,
                   int head_dim, int d, State* pages) {
  F32 sum[kTogether][V], value[V];
  int width[V];
  for (int v = 0; v < V; ++v) {
    const int left = head_dim - d - v * kLanes;
    width[v] = left < kLanes ? left : kLanes;
    for (int i = 0; i < kTogether; ++i) sum[i][v] = splat(0.0f);
  }
  for (int j = 0; j < common; ++j) {
    for (int v = 0; v < V; ++v) value[v] = value_at(values, dtype, size_t(j) * head_dim + d + v * kLanes, width[v]);
    for (int i = 0; i < kTogether; ++i)
      for (int v = 0; v < V; ++v) sum[i][v] = fma(value[v], splat(weights[i][j]), sum[i][v]);
  }
  for (int j = common; j < longest; ++j) {
    for (int v = 0; v < V; ++v) value[v] = value_at(values, dtype, size_t(j) * head_dim + d + v * kLanes, width[v]);
    for (int i = 0; i < count; ++i)
      for (int v = 0; v < V && j < visible[i]; ++v) sum[i][v] = fma(value[v], splat(weights[i][j]), sum[i][v]);
  }
  for (int i = 0; i < count; ++i)
    for (int v = 0; v < V; ++v) store_first(pages[i].out + d + v * kLanes, width[v], sum[i][v]);
}

void weigh(const int* visible, int count, const float (*weights)[kPage], const char* values, DType dtype, int head_dim, State* pages) {
  int common = kPage, longest = 0;
  for (int i = 0; i < count; ++i) {
    common = visible[i] < common ? visible[i] : common;
    longest = visible[i] > longest ? visible[i] : longest;
  }
  int d = 0;
  for (; head_dim - d > (kVectors - 1) * kLanes; d += kVectors * kLanes)
    weigh_columns<kVectors>(visible, count, common, longest, weights, values, dtype, head_dim, d, pages);
  for (; d < head_dim; d += kLanes) weigh_columns<1>(visible, count, common, longest, weights, values, dtype, head_dim, d, pages);
}

// One page for up to kTogether queries, merged into their groups' states.
void visit(const AttentionTask& task, const Query* queries, int count, int page, float scale, State* groups) {
  const char* keys = task.keys + size_t(task.pages[page]) * task.page_bytes;
  const char* values = task.values + size_t(task.pages[page]) * task.page_bytes;
  int visible[kTogether], longest = 0;
  for (int i = 0; i < count; ++i) {
    const int left = queries[i].position + 1 - page * kPage;
    visible[i] = left < 0 ? 0 : (left < kPage ? left : kPage);
    longest = visible[i] > longest ? visible[i] : longest;
  }
  if (longest == 0) return;
  alignas(64) float scores[kTogether][kPage];
  State pages[kTogether];
  int first = 0;
  for (; longest - first > (kVectors - 1) * kLanes; first += kVectors * kLanes)
    scores_of<kVectors>(queries, count, keys, task.dtype, task.head_dim, first, scores);
  for (; first < longest; first += kLanes) scores_of<1>(queries, count, keys, task.dtype, task.head_dim, first, scores);
  for (int i = 0; i < count; ++i) {
    if (visible[i]) soften(scores[i], visible[i], scale, pages[i]);
    else pages[i].sum = 0.0f;
  }
  for (int i = count; i < kTogether; ++i)
    for (int j = 0; j < longest; ++j) scores[i][j] = 0.0f;  // lanes nobody asked for, kept finite
  weigh(visible, count, scores, values, task.dtype, task.head_dim, pages);
  for (int i = 0; i < count; ++i) merge(groups[i], pages[i], task.head_dim);
}

void sweep(const AttentionTask& task, const Query* queries, int count) {
  const float scale = 1.0f / __builtin_sqrtf(float(task.head_dim));
  State totals[kQueries], groups[kQueries];
  int last = 0;
  for (int i = 0; i < count; ++i) {
    totals[i].sum = groups[i].sum = 0.0f;
    last = queries[i].position > last ? queries[i].position : last;
  }
  const int num_pages = last / kPage + 1;
  for (int page = 0; page < num_pages; ++page) {
    for (int i = 0; i < count; i += kTogether)
      visit(task, queries + i, count - i < kTogether ? count - i : kTogether, page, scale, groups + i);
    if (page % kGroup != kGroup - 1 && page != num_pages - 1) continue;
    for (int i = 0; i < count; ++i) {
      merge(totals[i], groups[i], task.head_dim);
      groups[i].sum = 0.0f;
    }
  }
  for (int i = 0; i < count; ++i)
    for (int d = 0; d < task.head_dim; ++d) queries[i].out[d] = totals[i].out[d] / totals[i].sum;
}

}  // namespace

void attention(const AttentionTask& task) {
  alignas(64) float rounded[kQueries][kMaxHeadDim];
  uint32_t pairs[kQueries][kMaxHeadDim / 2];
  Query queries[kQueries];
  int count = 0;
  for (int row = 0; row < task.rows; ++row)
    for (int head = 0; head < task.group; ++head) {
      const size_t offset = size_t(row) * task.stride + size_t(head) * task.head_dim;
      Query& query = queries[count];
      query = {task.q + offset, pairs[count], task.position[row], task.out + size_t(row) * task.out_stride + size_t(head) * task.head_dim};
      if (task.dtype == DType::bf16) {
        for (int d = 0; d < task.head_dim; ++d) rounded[count][d] = from_bf16(to_bf16(query.q[d]));
        for (int d = 0; d < task.head_dim; d += 2)
          pairs[count][d / 2] = uint32_t(to_bf16(query.q[d])) | uint32_t(to_bf16(query.q[d + 1])) << 16;
        query.q = rounded[count];
      }
      if (++count == kQueries) sweep(task, queries, count), count = 0;
    }
  if (count) sweep(task, queries, count);
}

}  // namespace paceline::cpu::PACELINE_ISA
