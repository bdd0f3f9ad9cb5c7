// What the trace notes of a cycle: how likely each model held the drafts, and whether the draft would have proposed what was emitted.
//
//   catch_up   agreement of the row that the draft caught up with: processed and drawn (or weighed) as any draft row   grid (slots)
//   maxima     largest raw logit of draft rows and of target rows that were reached         grid (chunks of V, slots 2 tau_max)   bytes 4 V in per row
//   sums       sum of floor(2^45 e^(l - l_max)) of the same rows                            grid (chunks of V, slots 2 tau_max)   bytes 4 V in per row
//   weigh_bonus  mass of the row that gave a bonus token, where `rejection` asks            grid (chunks of V, slots)
//   tell       logprobs and agreement, one warp per row                                     grid (slots)
//
// Nothing the cycle goes on with waits for it but the next cycle. Rows that no draft was judged by leave at once. Oracle:
// tests/simt/sampling_test.cc, the CPU engine bit for bit. Not measured.
#include "backend/cuda/kernels/processors.cuh"
#include "backend/cuda/kernels/report.cuh"
#include "backend/cuda/kernels/sampling.cuh"

namespace paceline::cuda {
namespace {

constexpr int kThreads = 128;

__device__ float unknown() { return float_from_bits(0x7fc00000u); }

// One of a draft's two rows, raw. Of a slot first the draft's tau_max, then the target's.
struct RawRow {
  const float* logits;
  int size;
};

// The commit has moved lengths and may have stopped the slot; its walk still tells what the cycle was.
__device__ bool find_raw_row(const ChoosingRows& targets, const Scratch& scratch, int index, RawRow* row) {
  const CycleState& state = targets.state;
  const int slot = index / (2 * state.tau_max), i = index % state.tau_max;
  const bool of_draft = index % (2 * state.tau_max) < state.tau_max;
  const Walk& walk = scratch.walks[slot];
  if (i >= walk.result.tau || (of_draft ? state.proposed[slot] > 0 : i >= walk.emitted)) return false;
  if (of_draft) {
    const size_t in_passes = size_t(state.draft_logits_row(i) + state.draft_row_of(i, slot));
    *row = {state.draft_logits + in_passes * state.draft_vocab_size, state.draft_vocab_size};
  } else {
    *row = {targets.logits + size_t(state.first_row[slot] + i) * targets.row_size, targets.row_size};
  }
  return true;
}

__device__ uint32_t larger_of(uint32_t a, uint32_t b) { return a > b ? a : b; }
__device__ uint64_t sum_of(uint64_t a, uint64_t b) { return a + b; }

__global__ void maxima_kernel(ChoosingRows targets, Scratch scratch) {
  take_turn();
  RawRow row;
  const int index = int(blockIdx.y), first = int(blockIdx.x) * kChunk;
  if (!find_raw_row(targets, scratch, index, &row)) return;
  uint32_t best = 0;
  for (int i = first + int(threadIdx.x); i < smaller(first + kChunk, row.size); i += kSweepThreads) best = larger_of(best, key_of(row.logits[i]));
  best = reduce_block(best, shared_memory<uint32_t>(), larger_of);
  if (threadIdx.x == 0) scratch.raw_parts[size_t(index) * gridDim.x + blockIdx.x].key = best;
}

// By one warp: the largest logit of a row whose chunks are there.
__device__ double largest_of(const RawPart* parts, int chunks) {
  uint32_t best = 0;
  for (int i = lane_of(); i < chunks; i += kWarp) best = larger_of(best, parts[i].key);
  return double(value_of(reduce_warp(best, larger_of)));
}

__global__ void sums_kernel(ChoosingRows targets, Scratch scratch) {
  take_turn();
  RawRow row;
  const int index = int(blockIdx.y), first = int(blockIdx.x) * kChunk;
  if (!find_raw_row(targets, scratch, index, &row)) return;
  RawPart* parts = scratch.raw_parts + size_t(index) * gridDim.x;
  const double l_max = largest_of(parts, int(gridDim.x));
  uint64_t sum = 0;
  for (int i = first + int(threadIdx.x); i < smaller(first + kChunk, row.size); i += kSweepThreads)
    sum += fixed_weight(double(row.logits[i]) - l_max);
  sum = reduce_block(sum, shared_memory<uint64_t>(), sum_of);
  if (threadIdx.x == 0) parts[blockIdx.x].sum = sum;
}

// By one warp.
__device__ float told_logprob(const ChoosingRows& targets, const Scratch& scratch, int chunks, int index, int token) {
  RawRow row;
  if (!find_raw_row(targets, scratch, index, &row)) return unknown();
  const RawPart* parts = scratch.raw_parts + size_t(index) * chunks;
  uint64_t sum = 0;
  for (int i = lane_of(); i < chunks; i += kWarp) sum += parts[i].sum;
  return logprob_of(row.logits[token], largest_of(parts, chunks), log_of_sum(reduce_warp(sum, sum_of)));
}

// A row of the cycle that has been committed.
__device__ ChoosingRow row_of_walk(const ChoosingRows& rows, int index, int position) {
  ChoosingRow row = row_at(rows, index);
  row.position = position;
  return row;
}

__device__ double given_to(const ChoosingRows& rows, int index, int position, int token) {
  if (rows.known[index].fault) return 0.0;
  return weighed(rows, index, row_of_walk(rows, index, position))(token);
}

__global__ void weigh_bonus_kernel(ChoosingRows targets, Scratch scratch) {
  take_turn();
  const int slot = int(blockIdx.y);
  const Walk& walk = scratch.walks[slot];
  if (walk.emitted <= walk.result.tau) return;
  const int place = walk.result.tau, index = slot * targets.width + place;
  const ChoosingRow row = row_of_walk(targets, index, walk.result.first_position + place);
  weigh(processed(targets, index, row), shared_memory<uint64_t>(), &targets.known[index].mass);
}

// chunks: of the raw rows.
__global__ void tell_kernel(ChoosingRows targets, Scratch scratch, Rows rows, CycleEvidence evidence, int chunks) {
  take_turn();
  const CycleState& state = targets.state;
  const int slot = int(blockIdx.x), first_row = state.first_row[slot];
  if (slot == 0 && threadIdx.x == 0) *evidence.rows = *rows.live;
  if (first_row >= *rows.live || rows.slot[first_row] != slot) return;
  const Walk& walk = scratch.walks[slot];
  const bool rejects = state.acceptance == Acceptance::rejection, tells = lane_of() == 0;
  for (int i = warp_of(); i <= state.tau_max; i += kThreads / kWarp) {
    const int position = walk.result.first_position + i, draft = i < walk.result.tau ? rows.token[first_row + 1 + i] : -1;
    const bool emitted = i < walk.emitted;
    const int token = state.tokens[size_t(slot) * state.tokens_stride + position];
    const double target = rejects && emitted ? given_to(targets, slot * targets.width + i, position, token) : double(unknown());
    if (i == walk.result.tau && tells) evidence.extra_probability[slot] = target;
    if (i == state.tau_max) continue;
    const size_t at = size_t(slot) * state.tau_max + i;
    const int raw = slot * 2 * state.tau_max + i;
    const float draft_logprob = told_logprob(targets, scratch, chunks, raw, draft);
    const float target_logprob = told_logprob(targets, scratch, chunks, raw + state.tau_max, draft);
    float agreed = unknown();
    if (draft >= 0 && emitted)
      agreed = rejects && state.proposed[slot] == 0 ? agreement(given_to(draft_rows(state, scratch, i), slot, position, token), target) : float(token == draft);
    if (!tells) continue;
    evidence.drafted[at] = draft;
    evidence.draft_logprob[at] = draft_logprob;
    evidence.target_logprob[at] = target_logprob;
    evidence.agreement[at] = agreed;
  }
}

__global__ void weigh_catch_up_kernel(ChoosingRows rows) {
  take_turn();
  ChoosingRow row;
  const int slot = int(blockIdx.y);
  if (!find_row(rows, slot, &row) || rows.known[slot].fault) return;
  weigh(processed(rows, slot, row), shared_memory<uint64_t>(), &rows.known[slot].mass);
}

// One warp per slot.
__global__ void catch_up_kernel(ChoosingRows rows, CycleEvidence evidence) {
  take_turn();
  ChoosingRow row;
  const int slot = int(blockIdx.x), chunks = chunks_of(rows.row_size);
  float agreed = unknown();
  if (find_row(rows, slot, &row) && row.position >= row.params->prompt_length) {
    const ProcessedRow from = processed(rows, slot, row);
    const int32_t token = row.history[row.position];
    if (rows.state.acceptance == Acceptance::coupled)
      agreed = float(!from.fault && chosen(from, rows.drawn + size_t(slot) * chunks, chunks) == token);
    else agreed = agreement(from.fault ? 0.0 : weighed(rows, slot, row)(token), evidence.extra_probability[slot]);
  }
  if (threadIdx.x == 0) evidence.catch_up_agreement[slot] = agreed;
}

constexpr size_t kSumRoom = kSweepThreads / kWarp * sizeof(uint64_t);

}  // namespace

void record_catch_up(cudaStream_t stream, const CycleState& state, const CycleEvidence& evidence, const SamplingScratch& memory) {
  const ChoosingRows rows = draft_rows(state, cut_up(state, memory), kCatchUp);
  const unsigned slots = unsigned(state.num_slots);
  process_rows(stream, rows, state.num_slots);
  if (state.acceptance == Acceptance::coupled) draw_rows(stream, rows, state.num_slots, Purpose::token);
  else launch(weigh_catch_up_kernel, dim3(unsigned(chunks_of(rows.row_size)), slots), kSweepThreads, kSumRoom, stream, rows);
  launch(catch_up_kernel, dim3(slots), kWarp, 0, stream, rows, evidence);
}

void record_cycle(cudaStream_t stream, const CycleState& state, const Rows& rows, const float* logits, int vocab_size,
                  const CycleEvidence& evidence, const SamplingScratch& memory) {
  const Scratch scratch = cut_up(state, memory);
  const ChoosingRows targets = verify_rows(state, scratch, logits, vocab_size);
  const unsigned slots = unsigned(state.num_slots), chunks = unsigned(chunks_of(larger(vocab_size, state.draft_vocab_size)));
  const dim3 sweep(chunks, slots * 2 * unsigned(state.tau_max));
  if (state.tau_max > 0) {
    launch(maxima_kernel, sweep, kSweepThreads, kSweepThreads / kWarp * sizeof(uint32_t), stream, targets, scratch);
    launch(sums_kernel, sweep, kSweepThreads, kSumRoom, stream, targets, scratch);
  }
  if (state.acceptance == Acceptance::rejection)
    launch(weigh_bonus_kernel, dim3(unsigned(chunks_of(vocab_size)), slots), kSweepThreads, kSumRoom, stream, targets, scratch);
  launch(tell_kernel, dim3(slots), kThreads, 0, stream, targets, scratch, rows, evidence, int(chunks));
}

}  // namespace paceline::cuda
