// The plan of a cycle: which rows the next pass has.
//
//   begin_cycle   drafting[s] = planned_tau(...) where the slot runs, else 0; what the host offers goes behind the committed tokens
//   plan_draft    rows (slot, position, token) the draft lacks up to its next token, in slot order
//   plan_verify   rows of the last committed token and of all drafts, in slot order
//   timestamp     when the device gets here
//   count_up      counter += 1, after everything before it can be read by the host
//
// A few integers per slot in and out; one block. Rows are numbered by a prefix sum over the slots' counts, a tile of slots at a
// time, so that the order is that of the slots whichever thread writes. Oracle: tests/simt/cycle_test.cc. Not measured.
#include "backend/cuda/device.cuh"
#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/ptx.cuh"
#include "math/cycle_rules.h"

namespace paceline::cuda {
namespace {

constexpr int kThreads = 256;

struct Numbered {
  int first;  // sum of the counts of the threads before this one
  int total;  // of all threads
};

// `room` holds one int per warp; it may be used again after the call.
__device__ Numbered number(int count, int* room) {
  int upto = count;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int before = __shfl_up_sync(kWholeWarp, upto, distance);
    if (lane_of() >= distance) upto += before;
  }
  if (lane_of() == kWarp - 1) room[warp_of()] = upto;
  __syncthreads();
  int earlier = 0, total = 0;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) {
    if (warp < warp_of()) earlier += room[warp];
    total += room[warp];
  }
  __syncthreads();
  return {earlier + upto - count, total};
}

__device__ void put(const Rows& rows, int row, int slot, int position, int token) {
  rows.slot[row] = slot;
  rows.position[row] = position;
  rows.token[row] = token;
}

__global__ void begin_cycle_kernel(CycleState state) {
  take_turn();
  for (int slot = int(threadIdx.x); slot < state.num_slots; slot += kThreads) {
    const bool runs = state.running[slot];
    const int length = state.length[slot], offered = runs ? state.offered[slot] : 0;
    const int tau = planned_tau(state.wanted_tau[slot], offered, length, state.params[slot].end_length, state.draft_cached[slot], state.draft_max_len);
    state.proposed[slot] = offered;
    state.drafting[slot] = runs ? tau : 0;
    state.draft_fed[slot] = state.draft_cached[slot];
    state.draft_fault[slot] = state.looked[slot] = 0;
    int32_t* drafts = state.tokens + size_t(slot) * state.tokens_stride + length;
    for (int i = 0; i < smaller(offered, tau); ++i) drafts[i] = state.offers[slot * state.tau_max + i];
  }
}

__global__ void plan_draft_kernel(CycleState state, int step, Rows rows) {
  take_turn();
  int* const room = shared_memory<int>();
  int live = 0;
  for (int tile = 0; tile < state.num_slots; tile += kThreads) {
    const int slot = tile + int(threadIdx.x);
    const bool drafts = slot < state.num_slots && state.drafting[slot] > step && state.proposed[slot] == 0;
    const int fed = drafts ? state.draft_fed[slot] : 0, end = drafts ? state.length[slot] + step : 0;
    const Numbered rank = number(larger(end - fed, 0), room);
    if (drafts) {
      const int32_t* tokens = state.tokens + size_t(slot) * state.tokens_stride;
      int row = live + rank.first;
      if (step == 0) state.draft_row_of(kCatchUp, slot) = fed < end - 1 ? row : -1;
      for (int position = fed; position < end; ++position)
        put(rows, row++, slot, position, tokens[position] < state.draft_vocab_size ? tokens[position] : 0);
      state.draft_fed[slot] = end;
      state.draft_row_of(step, slot) = row - 1;
    }
    live += rank.total;
  }
  if (threadIdx.x == 0) *rows.live = live;
}

__global__ void plan_verify_kernel(CycleState state, Rows rows) {
  take_turn();
  int* const room = shared_memory<int>();
  int live = 0;
  for (int tile = 0; tile < state.num_slots; tile += kThreads) {
    const int slot = tile + int(threadIdx.x);
    const bool runs = slot < state.num_slots && state.running[slot];
    const int count = runs ? state.drafting[slot] + 1 : 0;
    const Numbered rank = number(count, room);
    if (runs) {
      const int last = state.length[slot] - 1;
      const int32_t* tokens = state.tokens + size_t(slot) * state.tokens_stride;
      state.first_row[slot] = live + rank.first;
      for (int i = 0; i < count; ++i) put(rows, live + rank.first + i, slot, last + i, tokens[last + i]);
    }
    live += rank.total;
  }
  if (threadIdx.x == 0) *rows.live = live;
}

__global__ void timestamp_kernel(int64_t* nanoseconds) {
  take_turn();  // before the clock is read
  *nanoseconds = global_timer();
}

// What earlier kernels wrote, this one sees; the fence passes that on to whoever sees the counter.
__global__ void count_up_kernel(int64_t* counter) {
  take_turn();
  __threadfence_system();
  *static_cast<volatile int64_t*>(counter) = *counter + 1;
}

}  // namespace

void begin_cycle(cudaStream_t stream, const CycleState& state) { launch(begin_cycle_kernel, dim3(1), kThreads, 0, stream, state); }

void plan_draft(cudaStream_t stream, const CycleState& state, int step, const Rows& rows) {
  launch(plan_draft_kernel, dim3(1), kThreads, kThreads / kWarp * sizeof(int), stream, state, step, rows);
}

void plan_verify(cudaStream_t stream, const CycleState& state, const Rows& rows) {
  launch(plan_verify_kernel, dim3(1), kThreads, kThreads / kWarp * sizeof(int), stream, state, rows);
}

void count_up(cudaStream_t stream, int64_t* counter) { launch(count_up_kernel, dim3(1), 1, 0, stream, counter); }

cudaError_t code_for_device() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(count_up_kernel));
}

void timestamp(cudaStream_t stream, int64_t* nanoseconds) { launch(timestamp_kernel, dim3(1), 1, 0, stream, nanoseconds); }

}  // namespace paceline::cuda
