// What is reported of raw rows.
//
//   summarise    sum of floor(2^45 e^(l - l_max)), and the k largest of each chunk      grid (chunks of V, rows)   bytes 4 V in per row
//   tell         logprob of the emitted token, k largest of all chunks with theirs      grid (rows)                bytes 8 k V / kChunk in
//   hash         of the raw bits, in order: one thread, for debugging only              grid (rows)
//   log_softmax  whole rows, for `verify`                                               grid (rows)                bytes 12 V in, 4 V out
//
// Rows that were not emitted, or whose request wants no logprobs, leave at once. The k largest are found one after the other: the
// largest below the last one found. Oracle: tests/simt/sampling_test.cc, the CPU engine bit for bit. Not measured.
#include "backend/cuda/kernels/report.cuh"

#include "math/cycle_rules.h"
#include "math/fixed_sum.h"

namespace paceline::cuda {
namespace {

constexpr int kRowThreads = 512;

// A row whose token was emitted in this cycle.
struct Emitted {
  const float* raw;
  const SlotParams* params;
  int top;    // alternatives wanted
  size_t at;  // its place in the results
};

// False: the row was not emitted. The commit has moved lengths and may have stopped the slot, so find_row cannot tell any more.
__device__ bool find_emitted(const ChoosingRows& targets, const Scratch& scratch, int index, Emitted* row) {
  const int slot = index / targets.width, place = index % targets.width;
  if (place >= scratch.walks[slot].emitted) return false;
  const SlotParams& p = targets.state.params[slot];
  *row = {targets.logits + size_t(targets.state.first_row[slot] + place) * targets.row_size, &p,
          larger(smaller(p.num_logprobs, targets.vocab_limit), 0), size_t(index)};
  return true;
}

__device__ uint64_t larger_of(uint64_t a, uint64_t b) { return a > b ? a : b; }
__device__ uint64_t sum_of(uint64_t a, uint64_t b) { return a + b; }

// The k largest of at(0 .. n-1), all different but for 0 = nothing, to out in descending order.
template <class At>
__device__ void largest(int n, int k, At at, uint64_t* room, uint64_t* out) {
  uint64_t last = ~uint64_t(0);
  for (int found = 0; found < k; ++found) {
    uint64_t best = 0;
    for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
      const uint64_t value = at(i);
      if (value < last && value > best) best = value;
    }
    last = reduce_block(best, room, larger_of);
    if (threadIdx.x == 0) out[found] = last;
  }
}

__global__ void summarise_kernel(ChoosingRows targets, Scratch scratch) {
  take_turn();
  Emitted row;
  const int index = int(blockIdx.y), first = int(blockIdx.x) * kChunk;
  if (!find_emitted(targets, scratch, index, &row) || row.params->num_logprobs < 0) return;
  auto* room = shared_memory<uint64_t>();
  RowState& known = targets.known[index];
  const double l_max = double(known.raw_max);
  uint64_t sum = 0;
  for (int i = first + int(threadIdx.x); i < smaller(first + kChunk, targets.row_size); i += kSweepThreads)
    sum += fixed_weight(double(row.raw[i]) - l_max);
  add_sum(sum, room, &known.raw_sum);
  const int ids = larger(smaller(kChunk, targets.vocab_limit - first), 0);
  uint64_t* top = scratch.top + (size_t(index) * gridDim.x + blockIdx.x) * kMaxTopLogprobs;
  largest(ids, row.top, [&](int i) { return ranked(row.raw[first + i], first + i); }, room, top);
}

__global__ void tell_kernel(ChoosingRows targets, Scratch scratch, CycleResults results) {
  take_turn();
  Emitted row;
  const int index = int(blockIdx.x), chunks = chunks_of(targets.row_size);
  if (!find_emitted(targets, scratch, index, &row) || row.params->num_logprobs < 0) return;
  auto* room = shared_memory<uint64_t>();
  uint64_t* winners = room + kSweepThreads / kWarp;
  const double l_max = double(targets.known[index].raw_max), log_sum = log_of_sum(targets.known[index].raw_sum);
  const auto logprob = [&](int id) { return logprob_of(row.raw[id], l_max, log_sum); };
  if (threadIdx.x == 0) results.logprobs[row.at] = logprob(results.tokens[row.at]);
  if (row.top == 0) return;
  const uint64_t* top = scratch.top + size_t(index) * chunks * kMaxTopLogprobs;
  largest(chunks * row.top, row.top, [&](int i) { return top[size_t(i / row.top) * kMaxTopLogprobs + i % row.top]; }, room, winners);
  __syncthreads();  // thread 0 has written the last one
  const int j = int(threadIdx.x);
  if (j >= row.top) return;
  const int id = id_of(winners[j]);
  results.top_ids[row.at * kMaxTopLogprobs + j] = id;
  results.top_logprobs[row.at * kMaxTopLogprobs + j] = logprob(id);
}

__global__ void hash_kernel(ChoosingRows targets, Scratch scratch, uint64_t* hashes) {
  take_turn();
  Emitted row;
  if (!find_emitted(targets, scratch, int(blockIdx.x), &row)) return;
  uint64_t h = 0x243F6A8885A308D3u;
  for (int i = 0; i < targets.row_size; ++i) h = (h ^ paceline::bits_of(row.raw[i])) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
  hashes[row.at] = h;
}

__global__ void __launch_bounds__(kRowThreads) log_softmax_kernel(Rows rows, const float* logits, int v, float* out) {
  take_turn();
  const int row = int(blockIdx.x);
  if (row >= *rows.live) return;
  auto* room = shared_memory<uint64_t>();
  const float* l = logits + size_t(row) * v;
  uint64_t best = key_of(kMinusInfinity), sum = 0;  // of nothing but NaN it is what is left
  for (int i = int(threadIdx.x); i < v; i += kRowThreads) best = larger_of(best, key_of(l[i]));
  const double l_max = double(value_of(uint32_t(reduce_block(best, room, larger_of))));
  for (int i = int(threadIdx.x); i < v; i += kRowThreads) sum += fixed_weight(double(l[i]) - l_max);
  const double log_sum = log_of_sum(reduce_block(sum, room, sum_of));
  for (int i = int(threadIdx.x); i < v; i += kRowThreads) out[size_t(row) * v + i] = logprob_of(l[i], l_max, log_sum);
}

}  // namespace

void report_rows(cudaStream_t stream, const ChoosingRows& targets, const Scratch& scratch, const CycleResults& results) {
  const unsigned count = unsigned(targets.state.num_slots * targets.width), chunks = unsigned(chunks_of(targets.row_size));
  constexpr size_t kRoom = kSweepThreads / kWarp * sizeof(uint64_t);
  launch(summarise_kernel, dim3(chunks, count), kSweepThreads, kRoom, stream, targets, scratch);
  launch(tell_kernel, dim3(count), kSweepThreads, kRoom + kMaxTopLogprobs * sizeof(uint64_t), stream, targets, scratch, results);
  if (results.row_hashes) launch(hash_kernel, dim3(count), 1, 0, stream, targets, scratch, results.row_hashes);
}

void log_softmax(cudaStream_t stream, const Rows& rows, const float* logits, int v, float* out) {
  constexpr size_t kRoom = kRowThreads / kWarp * sizeof(uint64_t);
  launch(log_softmax_kernel, dim3(unsigned(rows.capacity)), kRowThreads, kRoom, stream, rows, logits, v, out);
}

}  // namespace paceline::cuda
