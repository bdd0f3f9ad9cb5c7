// The processors of all rows that choose a token in a pass (math/processors.h), whether or not they will be reached.
//
//   sweep    raw scan for NaN and +inf, masks, bias, penalties, maximum and lowest argmax      grid (chunks of V, rows)
//            bytes 4 V in per row, 4 V out and 4 history V / kChunk in where logits change
//   settle   chunks put together                                                               grid (rows)
//            bytes 16 V / kChunk in per row
//   digits   all ids weighed for the first digit of the first cut                              grid (chunks of V, rows)
//   cut      the rest of top-k, top-p, min-p                                                   grid (rows)
//            bytes 4 V in for digits, 8 V for cut, 12 V more where there are both cuts; rows without them leave at once
//
// Penalties need no list of distinct ids: a block marks what the history holds of its own chunk in shared memory - in the prompt,
// and how often after it - and then looks at each id once. A mark costs one atomic word, so that history may be read in any order.
// Oracle: tests/simt/sampling_test.cc, the CPU engine bit for bit. Not measured.
#include "backend/cuda/kernels/processors.cuh"

#include "backend/cuda/kernels/cuts.cuh"
#include "math/cycle_rules.h"

namespace paceline::cuda {
namespace {

// ------------------------------------------------------------------------------------------------ sweep

// What is to be done to an id of the chunk; below these bits, how often it is in the output and earlier drafts.
constexpr uint32_t kMasked = 1u << 31, kInPrompt = 1u << 30, kCount = kInPrompt - 1;

struct SweepRoom {
  uint64_t warp[kSweepThreads / kWarp];
  float logit[kChunk];
  uint32_t mark[kChunk];
};

struct Chunk {
  int first, size;  // size counts ids that exist: 0 in padding
  __device__ bool holds(int id) const { return id >= first && id < first + size; }
};

__device__ uint64_t raw_part(float logit) { return uint64_t(logit <= kLargest ? 0 : 1) << 32 | key_of(logit); }
__device__ uint64_t larger_of(uint64_t a, uint64_t b) { return a > b ? a : b; }

__device__ void mark_masked(const ChoosingRow& row, const Chunk& chunk, SweepRoom* room) {
  if (row.position >= row.params->min_length) return;
  for (int i = int(threadIdx.x); i < row.params->num_stop; i += kSweepThreads) {
    const int id = row.params->stop_id[i];
    if (chunk.holds(id)) atomicOr(&room->mark[id - chunk.first], kMasked);
  }
}

// The ids of a bias are distinct.
__device__ void add_bias(const SlotParams& p, const Chunk& chunk, SweepRoom* room) {
  for (int i = int(threadIdx.x); i < p.num_bias; i += kSweepThreads)
    if (chunk.holds(p.bias_id[i])) room->logit[p.bias_id[i] - chunk.first] += p.bias[i];
}

__device__ void mark_history(const ChoosingRow& row, const Chunk& chunk, SweepRoom* room) {
  const SlotParams& p = *row.params;
  const bool counts = p.frequency_penalty != 0.0f || p.presence_penalty != 0.0f;
  if (p.repetition_penalty == 1.0f && !counts) return;
  for (int i = int(threadIdx.x); i < row.position; i += kSweepThreads) {
    const int id = row.history[i];
    if (!chunk.holds(id)) continue;
    if (i < p.prompt_length) atomicOr(&room->mark[id - chunk.first], kInPrompt);
    else atomicAdd(&room->mark[id - chunk.first], 1u);
  }
}

__device__ float changed_logit(float logit, uint32_t mark, const SlotParams& p) {
  if (mark & kMasked) return kMinusInfinity;
  if (p.repetition_penalty != 1.0f && mark) logit = repetition_penalised(logit, p.repetition_penalty);
  if (p.frequency_penalty != 0.0f || p.presence_penalty != 0.0f)
    logit = count_penalised(logit, p.frequency_penalty, p.presence_penalty, int(mark & kCount));
  return logit;
}

// The largest of the chunk after its changes; `changed` is the row's processed copy.
__device__ uint64_t change(const ChoosingRow& row, const Chunk& chunk, SweepRoom* room, float* changed) {
  for (int i = int(threadIdx.x); i < chunk.size; i += kSweepThreads) {
    room->logit[i] = row.raw[chunk.first + i];
    room->mark[i] = 0;
  }
  __syncthreads();  // there before it is marked
  mark_masked(row, chunk, room);
  add_bias(*row.params, chunk, room);
  mark_history(row, chunk, room);
  __syncthreads();  // all marks are set
  uint64_t best = 0;
  for (int i = int(threadIdx.x); i < chunk.size; i += kSweepThreads) {
    const float logit = changed_logit(room->logit[i], room->mark[i], *row.params);
    changed[chunk.first + i] = logit;
    best = larger_of(best, ranked(logit, chunk.first + i));
  }
  return best;
}

__global__ void sweep_kernel(ChoosingRows rows) {
  take_turn();
  ChoosingRow row;
  const int index = int(blockIdx.y);
  if (!find_row(rows, index, &row)) return;
  auto* room = shared_memory<SweepRoom>();
  const int first = int(blockIdx.x) * kChunk, end = smaller(first + kChunk, rows.row_size);
  const Chunk chunk{first, larger(smaller(end, rows.vocab_limit) - first, 0)};
  uint64_t best = 0, raw = 0;
  for (int i = first + int(threadIdx.x); i < end; i += kSweepThreads) {
    raw = larger_of(raw, raw_part(row.raw[i]));
    if (i < rows.vocab_limit) best = larger_of(best, ranked(row.raw[i], i));
  }
  if (changes_logits(*row.params, row.position)) best = change(row, chunk, room, rows.changed + size_t(index) * rows.changed_stride);
  best = reduce_block(best, room->warp, larger_of);
  raw = reduce_block(raw, room->warp, larger_of);
  if (threadIdx.x == 0) rows.swept[size_t(index) * gridDim.x + blockIdx.x] = {best, raw};
}

// ------------------------------------------------------------------------------------------------ settle

// By one warp.
__device__ RowState put_together(const Swept* swept, int chunks) {
  uint64_t best = 0, raw = 0;
  for (int i = lane_of(); i < chunks; i += kWarp) {
    best = larger_of(best, swept[i].best);
    raw = larger_of(raw, swept[i].raw);
  }
  best = reduce_warp(best, larger_of);
  raw = reduce_warp(raw, larger_of);
  RowState known{};
  known.l_max = value_of(uint32_t(best >> 32));
  known.threshold = -kLargest;
  known.argmax = id_of(best);
  known.raw_max = value_of(uint32_t(raw));
  known.fault = raw >> 32 ? kRowNotFinite : known.l_max > kMinusInfinity ? kRowSound : kRowEmpty;
  return known;
}

constexpr int kCutThreads = 1024;  // of long rows

__device__ bool is_cut(const ProcessedRow& row, const SlotParams& p) {
  return !row.fault && !is_greedy(row.temperature) && (cuts_top_k(p, row.n) || cuts_top_p(p) || cuts_min_p(p));
}

__global__ void settle_kernel(ChoosingRows rows) {
  take_turn();
  ChoosingRow row;
  const int index = int(blockIdx.x), chunks = chunks_of(rows.row_size);
  if (!find_row(rows, index, &row)) return;
  for (int i = int(threadIdx.x); i < kBuckets; i += int(blockDim.x)) rows.digits[size_t(index) * kBuckets + i] = 0;
  if (warp_of() != 0) return;
  const RowState known = put_together(rows.swept + size_t(index) * chunks, chunks);
  if (lane_of() == 0) rows.known[index] = known;
}

// ------------------------------------------------------------------------------------------------ cuts

__global__ void first_digits_kernel(ChoosingRows rows) {
  take_turn();
  ChoosingRow row;
  const int index = int(blockIdx.y);
  if (!find_row(rows, index, &row)) return;
  const ProcessedRow from = processed(rows, index, row);
  const SlotParams& p = *row.params;
  if (!is_cut(from, p)) return;
  auto* room = shared_memory<CutRoom>();
  uint64_t* digits = rows.digits + size_t(index) * kBuckets;
  const int first = int(blockIdx.x) * kChunk, end = smaller(first + kChunk, from.n);
  if (cuts_top_k(p, from.n)) add_first_digits(from.logits, first, end, from.threshold, room, digits, [](float) { return uint64_t(1); });
  else if (cuts_top_p(p))
    add_first_digits(from.logits, first, end, from.threshold, room, digits, [&](float l) { return fixed_weight(scaled(from, l)); });
}

__global__ void __launch_bounds__(kCutThreads) cut_kernel(ChoosingRows rows) {
  take_turn();
  ChoosingRow row;
  const int index = int(blockIdx.x);
  if (!find_row(rows, index, &row)) return;
  const ProcessedRow from = processed(rows, index, row);
  if (!is_cut(from, *row.params)) return;
  const float threshold = threshold_of(from, *row.params, rows.digits + size_t(index) * kBuckets, shared_memory<CutRoom>());
  if (threadIdx.x == 0) rows.known[index].threshold = threshold;
}

}  // namespace

void process_rows(cudaStream_t stream, const ChoosingRows& rows, int count) {
  const dim3 chunks(unsigned(chunks_of(rows.row_size)), unsigned(count)), whole{unsigned(count)};
  launch(sweep_kernel, chunks, kSweepThreads, sizeof(SweepRoom), stream, rows);
  launch(settle_kernel, whole, kSweepThreads, 0, stream, rows);
  launch(first_digits_kernel, chunks, kSweepThreads, sizeof(CutRoom), stream, rows);
  launch(cut_kernel, whole, rows.row_size <= 4096 ? 128 : kCutThreads, sizeof(CutRoom), stream, rows);
}

}  // namespace paceline::cuda
