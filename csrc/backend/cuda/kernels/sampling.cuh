// Drawing a token from a processed row: the races of exponentials, and what a row gives a token. The formulas are the CPU engine's
// (cpu/kernels/sampling.h), and so are the bits.
#pragma once

#include "backend/cuda/kernels/choosing.cuh"
#include "backend/cuda/kernels/report.cuh"
#include "math/acceptance.h"
#include "math/cycle_rules.h"
#include "math/fixed_sum.h"
#include "math/noise.h"

namespace paceline::cuda {

constexpr int kNoToken = 0x7fffffff;

// drawn[] of `count` rows: the best token of each chunk. Rows that are greedy, or that have a fault, are left alone.
void draw_rows(cudaStream_t, const ChoosingRows&, int count, Purpose);
// known[].mass of the target rows that have a draft to judge, and of their draft rows.
void weigh_rows(cudaStream_t, const ChoosingRows& targets, const Scratch&);
// The last token of slots whose walk is pending: drawn[chunk] holds the target's own draw of the row that is reached, and
// drawn[S chunks + chunk] that from the residual.
void draw_pending(cudaStream_t, const ChoosingRows& targets, const Scratch&);
// early_stop.cu: drafting[] of slots whose drafts end before this step's token. The rows are processed.
void stop_early(cudaStream_t, const ChoosingRows& drafts);

__device__ __forceinline__ NoiseAddress address(const ChoosingRow& row, int cycle_start, Purpose purpose) {
  return {row.params->seed, uint32_t(row.position), uint32_t(cycle_start), purpose, row.params->sample_index};
}

// ------------------------------------------------------------------------------------------------ races

__device__ __forceinline__ Best better(Best a, Best b) { return b.score > a.score || (b.score == a.score && b.id < a.id) ? b : a; }

__device__ __forceinline__ Best best_of_warp(Best best) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    best = better(best, {__shfl_xor_sync(kWholeWarp, best.score, distance), __shfl_xor_sync(kWholeWarp, best.id, distance)});
  return best;
}

// To every thread of warp 0. `room` holds one Best per warp.
__device__ __forceinline__ Best best_of_block(Best best, Best* room) {
  best = best_of_warp(best);
  if (lane_of() == 0) room[warp_of()] = best;
  __syncthreads();
  for (int warp = 0; warp < int(blockDim.x) / kWarp; ++warp) best = better(best, room[warp]);
  __syncthreads();
  return best;
}

// By one warp: the best of all chunks.
__device__ __forceinline__ Best best_of_chunks(const Best* drawn, int chunks) {
  Best best{-__builtin_inf(), kNoToken};
  for (int i = lane_of(); i < chunks; i += kWarp) best = better(best, drawn[i]);
  return best_of_warp(best);
}

// No noise can change the choice: temperature 0, or a bias that reached infinity.
__device__ __forceinline__ bool is_certain(const ProcessedRow& row) { return is_greedy(row.temperature) || !(row.l_max <= kLargest); }

// By one warp: the token of a sound row.
__device__ __forceinline__ int32_t chosen(const ProcessedRow& row, const Best* drawn, int chunks) {
  return is_certain(row) ? row.argmax : best_of_chunks(drawn, chunks).id;
}

// 2^t in fp32 to about 1e-6 for t <= 0; only ever compared with a margin of 1e-3.
__device__ __forceinline__ float rough_exp2(float t) {
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

// Whether a token can still win against the smallest quotient e / weight so far: not with y (1 - 1e-4) > best (1 + 1e-3) weight,
// because e >= y >= hi 2^-32. Exact: the margins cover the rough weights.
__device__ __forceinline__ bool contends(uint32_t high, float rough_weight, double best) {
  return float(high) * (0.9999f * 0x1p-32f) <= float(best) * 1.001f * rough_weight;
}

// By name: for the sake of an index all four would lie in memory.
__device__ __forceinline__ uint32_t word_of(const PhiloxWords& words, uint32_t i) {
  const uint32_t low = i & 1 ? words.word[1] : words.word[0], high = i & 1 ? words.word[3] : words.word[2];
  return i & 2 ? high : low;
}

__device__ __forceinline__ uint32_t high_word(const NoiseAddress& at, uint32_t id) { return word_of(noise_words(at, id >> 2, 0), id & 3); }
__device__ __forceinline__ double exponential(const NoiseAddress& at, uint32_t id, uint32_t high) {
  return exponential_of(high, word_of(noise_words(at, id >> 2, 1), id & 3));
}

// argmax of fma(T, Gumbel, l - l_max) over the survivors, as one thread sees it.
struct Race {
  ProcessedRow row;
  NoiseAddress at;
  float log2e_over_t;
  double quotient;  // the smallest e / w so far
  Best best;

  __device__ __forceinline__ double score(int id, double e) const {
    return fma(row.temperature, gumbel_of(e), double(row.logits[id]) - double(row.l_max));
  }
  // e is the exponential of the argmax, whose weight is 1.
  __device__ __forceinline__ void start(double e) {
    log2e_over_t = float(1.4426950408889634 / row.temperature);
    quotient = e;
    best = {score(row.argmax, e), row.argmax};
  }
  __device__ __forceinline__ void enter(int id, uint32_t high) {
    const float logit = row.logits[id], x = logit == row.l_max ? 0.0f : (logit - row.l_max) * log2e_over_t;
    if (!contends(high, rough_exp2(x), quotient) || !(logit >= row.threshold) || id == row.argmax) return;
    const double e = exponential(at, id, high), q = e / paceline::exp_of(scaled(row, logit));  // not the one in fp32
    best = better(best, {score(id, e), id});
    quotient = q < quotient ? q : quotient;
  }
};

// ------------------------------------------------------------------------------------------------ weights

__device__ __forceinline__ uint64_t weight_of(const ProcessedRow& row, int32_t id) {
  if (id >= row.n) return 0;
  if (is_greedy(row.temperature)) return id == row.argmax;
  return row.logits[id] >= row.threshold ? fixed_weight(scaled(row, row.logits[id])) : 0;
}

__device__ __forceinline__ double probability(const ProcessedRow& row, uint64_t mass, int32_t id) {
  return double(weight_of(row, id)) / double(mass);
}

// By the whole block: adds what its chunk of the row weighs to *mass.
__device__ __forceinline__ void weigh(const ProcessedRow& row, uint64_t* room, uint64_t* mass) {
  if (is_greedy(row.temperature)) return;
  const int first = int(blockIdx.x) * kChunk, end = smaller(first + kChunk, row.n);
  uint64_t sum = 0;
  for (int i = first + int(threadIdx.x); i < end; i += kSweepThreads) sum += weight_of(row, i);
  add_sum(sum, room, mass);
}

// A processed row with its mass, under `rejection`.
struct WeighedRow {
  ProcessedRow row;
  uint64_t mass;
  __device__ __forceinline__ double operator()(int32_t id) const { return probability(row, mass, id); }
};

__device__ __forceinline__ WeighedRow weighed(const ChoosingRows& rows, int index, const ChoosingRow& row) {
  return {processed(rows, index, row), is_greedy(row.params->temperature) ? 1 : rows.known[index].mass};
}

// The draft row that proposed what the target row judges; of a proposal of the host's, one that is certain of it.
__device__ __forceinline__ WeighedRow proposal(const ChoosingRows& targets, const Scratch& scratch, const ChoosingRow& target) {
  if (targets.state.proposed[target.slot] > 0) return {{nullptr, targets.vocab_limit, 0.0f, 0.0f, target.history[target.position], kRowSound, 0.0}, 1};
  const ChoosingRows drafts = draft_rows(targets.state, scratch, target.place);
  return weighed(drafts, target.slot, row_at(drafts, target.slot));
}

}  // namespace paceline::cuda
