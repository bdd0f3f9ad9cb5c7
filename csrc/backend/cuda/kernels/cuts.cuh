// Top-k, top-p and min-p of one row: which is the smallest logit that survives.
//
// A cut is "the weight strictly above a logit is below a limit", so ties stay. Radix select from the top bits of the ordered keys: three
// sweeps of at most 11 bits each instead of sorting the vocabulary. Weights are integers and add up exactly in any order. The first
// sweep of a row's first cut weighs all ids, which is most of the work: many blocks share it. One block does the rest.
#pragma once

#include "backend/cuda/kernels/choosing.cuh"
#include "math/fixed_sum.h"

namespace paceline::cuda {

__device__ __forceinline__ bool cuts_top_k(const SlotParams& p, int n) { return p.top_k > 0 && p.top_k < n; }
__device__ __forceinline__ bool cuts_top_p(const SlotParams& p) { return p.top_p < 1.0; }
// Below the smallest normal number nothing could be cut.
__device__ __forceinline__ bool cuts_min_p(const SlotParams& p) { return p.min_p >= 2.3e-308; }

// Weights are integers: whatever is below 1 is reached with the best token. So is zero on the CPU, which a top_p below the normal
// numbers is in its floating-point mode.
__device__ __forceinline__ double top_p_limit(const SlotParams& p, uint64_t total) {
  const double limit = p.top_p * double(total);
  return limit < 1.0 ? 1.0 : limit;
}

// Shared memory of a block that cuts.
struct CutRoom {
  uint32_t low[kBuckets], high[kBuckets];  // 64-bit sums in two words: shared memory adds 32 bits at a time
  uint64_t warp_sum[32];
  uint64_t above;  // weight strictly above the bucket that was found
  int32_t bucket;  // -1: none
};

__device__ __forceinline__ void add_weight(CutRoom* room, uint32_t bucket, uint64_t weight) {
  const uint32_t low = uint32_t(weight), before = atomicAdd(&room->low[bucket], low);
  const uint32_t high = uint32_t(weight >> 32) + (before + low < before ? 1u : 0u);
  if (high) atomicAdd(&room->high[bucket], high);
}

__device__ __forceinline__ uint64_t weight_in(const CutRoom* room, int bucket) {
  return uint64_t(room->high[bucket]) << 32 | room->low[bucket];
}

__device__ __forceinline__ void clear_buckets(CutRoom* room) {
  for (int i = int(threadIdx.x); i < kBuckets; i += int(blockDim.x)) room->low[i] = room->high[i] = 0;
}

// Adds the weights of a chunk's ids, by the first digit of their keys, to histogram [kBuckets].
template <class Weight>
__device__ void add_first_digits(const float* l, int first, int end, float from, CutRoom* room, uint64_t* histogram, Weight weight) {
  clear_buckets(room);
  __syncthreads();  // empty before anything is weighed
  for (int i = first + int(threadIdx.x); i < end; i += int(blockDim.x))
    if (l[i] >= from) add_weight(room, key_of(l[i]) >> (32 - kDigitBits), weight(l[i]));
  __syncthreads();  // complete before it is handed on
  for (int i = int(threadIdx.x); i < kBuckets; i += int(blockDim.x))
    if (const uint64_t sum = weight_in(room, i))
      atomicAdd(reinterpret_cast<unsigned long long*>(histogram + i), static_cast<unsigned long long>(sum));
}

// Inclusive prefix sum over the threads of the block; *total that of all.
__device__ inline uint64_t sum_upto(uint64_t value, CutRoom* room, uint64_t* total) {
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const uint64_t before = __shfl_up_sync(kWholeWarp, value, distance);
    if (lane_of() >= distance) value += before;
  }
  if (lane_of() == kWarp - 1) room->warp_sum[warp_of()] = value;
  __syncthreads();
  *total = 0;
  for (int warp = 0; warp < int(blockDim.x) / kWarp; ++warp) {
    if (warp == warp_of()) value += *total;
    *total += room->warp_sum[warp];
  }
  return value;
}

// The highest bucket at which the weight from the top, `above` included, reaches the limit. Each thread looks after a run of buckets,
// thread 0 after the highest ones. limit_of(total) is asked where *limit is not known yet.
template <class Limit>
__device__ void find_bucket(CutRoom* room, uint64_t above, bool limit_is_known, double* limit, Limit limit_of) {
  const int run = kBuckets / int(blockDim.x), highest = kBuckets - 1 - int(threadIdx.x) * run;
  uint64_t own = 0, total;
  for (int i = 0; i < run; ++i) own += weight_in(room, highest - i);
  const uint64_t upto = sum_upto(own, room, &total);
  if (!limit_is_known) *limit = limit_of(total);
  uint64_t here = above + upto - own;
  if (threadIdx.x != 0 && !(double(here) < *limit)) return;  // found further up
  for (int i = 0; i < run; ++i) {
    const uint64_t next = here + weight_in(room, highest - i);
    if (!(double(next) < *limit)) {
      room->bucket = highest - i;
      room->above = here;
      return;
    }
    here = next;
  }
}

// The weights of the row by their next digit, among ids whose first ones are `prefix`.
template <class Weight>
__device__ void add_next_digits(const float* l, int n, float from, uint32_t prefix, int fixed_bits, int bits, CutRoom* room,
                                Weight weight) {
  clear_buckets(room);
  __syncthreads();  // empty before anything is added
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
    const uint32_t key = key_of(l[i]);
    const bool counts = l[i] >= from && (fixed_bits == 0 || key >> (32 - fixed_bits) == prefix);
    if (counts) add_weight(room, key >> (32 - fixed_bits - bits) & ((1u << bits) - 1), weight(l[i]));
  }
}

// The smallest logit that survives, among those at or above `from`. Called by whole blocks of at most kBuckets threads.
// first_digits: the row's weights by the first digit, or nullptr where they are not known yet.
template <class Weight, class Limit>
__device__ float upper_cut(const float* l, int n, float from, const uint64_t* first_digits, CutRoom* room, Weight weight, Limit limit_of) {
  uint64_t above = 0;
  double limit = 0;
  uint32_t prefix = 0;
  for (int fixed_bits = 0; fixed_bits < 32;) {
    const int bits = 32 - fixed_bits < kDigitBits ? 32 - fixed_bits : kDigitBits;
    if (threadIdx.x == 0) room->bucket = -1;
    if (fixed_bits == 0 && first_digits) {
      for (int i = int(threadIdx.x); i < kBuckets; i += int(blockDim.x)) {
        room->low[i] = uint32_t(first_digits[i]);
        room->high[i] = uint32_t(first_digits[i] >> 32);
      }
    } else {
      add_next_digits(l, n, from, prefix, fixed_bits, bits, room, weight);
    }
    __syncthreads();  // complete before it is summed up
    find_bucket(room, above, fixed_bits > 0, &limit, limit_of);
    __syncthreads();  // found before it is read
    const int bucket = room->bucket;
    above = room->above;
    __syncthreads();  // read before the next digit clears it
    if (bucket < 0) return from;  // the limit is never reached: nothing is cut
    prefix = prefix << bits | uint32_t(bucket);
    fixed_bits += bits;
  }
  return value_of(prefix);
}

// The smallest logit with (l - l_max) / T >= log(min_p), by bisection over the ordered keys.
__device__ inline float min_p_cut(float l_max, double temperature, double min_p) {
  const double lowest = log_of(min_p);
  uint32_t low = key_of(-kLargest), high = key_of(l_max);  // high survives always
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if ((double(value_of(middle)) - double(l_max)) / temperature >= lowest) high = middle;
    else low = middle + 1;
  }
  return value_of(high);
}

// Of a sound row at a temperature above 0. first_digits belong to the first cut it makes.
__device__ inline float threshold_of(const ProcessedRow& row, const SlotParams& p, const uint64_t* first_digits, CutRoom* room) {
  float threshold = row.threshold;
  if (cuts_top_k(p, row.n)) {
    threshold = upper_cut(row.logits, row.n, threshold, first_digits, room, [](float) { return uint64_t(1); },
                          [&p](uint64_t) { return double(p.top_k); });
    first_digits = nullptr;
  }
  if (cuts_top_p(p))
    threshold = upper_cut(row.logits, row.n, threshold, first_digits, room,
                          [&row](float logit) { return fixed_weight(scaled(row, logit)); },
                          [&p](uint64_t total) { return top_p_limit(p, total); });
  if (cuts_min_p(p) && threadIdx.x == 0) {
    const float cut = min_p_cut(row.l_max, p.temperature, p.min_p);
    threshold = cut > threshold ? cut : threshold;
  }
  return threshold;  // thread 0's counts
}

}  // namespace paceline::cuda
