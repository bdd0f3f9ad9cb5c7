// Drawing from processed rows.
//
//   draw     argmax of fma(T, Gumbel, l - l_max) over the survivors, per chunk      grid (chunks of V, rows)
//   weigh    mass = sum of floor(2^45 e^((l - l_max) / T)) over the survivors       grid (chunks of V, rows)   `rejection` only
//   pending  the race of max(target - draft, 0) and the target's own, per chunk     grid (chunks of V, slots)  `rejection` only
//
// Bytes 4 V in per row (pending: 8 V). One Philox of ten rounds serves four ids; the second one, logarithms and exponentials in double
// are paid for the few ids that can still win, each thread going by the argmax and by what it has met itself. Greedy rows leave at
// once. Oracle: tests/simt/sampling_test.cc, the CPU engine bit for bit. Not measured.
#include "backend/cuda/kernels/sampling.cuh"

#include "backend/cuda/kernels/processors.cuh"

namespace paceline::cuda {
namespace {

struct DrawRoom {
  Best warp[kSweepThreads / kWarp];
  double exponential;
};

// Runs body(id, high noise word) for the ids of this block's chunk that belong to this thread.
template <class Body>
__device__ __forceinline__ void for_each_id(const NoiseAddress& at, int n, Body body) {
  const int first = int(blockIdx.x) * kChunk, end = smaller(first + kChunk, n);
  for (int id = first + 4 * int(threadIdx.x); id < end; id += 4 * kSweepThreads) {
    const PhiloxWords high = noise_words(at, uint32_t(id) >> 2, 0);
    for (int j = 0; j < 4; ++j)
      if (id + j < end) body(id + j, word_of(high, uint32_t(j)));
  }
}

// A race that starts with the argmax; by the whole block.
__device__ __forceinline__ Race start_race(const ProcessedRow& row, const NoiseAddress& at, DrawRoom* room) {
  if (threadIdx.x == 0) room->exponential = exponential(at, uint32_t(row.argmax), high_word(at, uint32_t(row.argmax)));
  __syncthreads();  // there before it is read
  Race race{row, at, 0.0f, 0.0, {0.0, 0}};
  race.start(room->exponential);
  return race;
}

__global__ void draw_kernel(ChoosingRows rows, Purpose purpose) {
  take_turn();
  ChoosingRow row;
  const int index = int(blockIdx.y);
  if (!find_row(rows, index, &row)) return;
  const ProcessedRow from = processed(rows, index, row);
  if (from.fault || is_certain(from)) return;
  auto* room = shared_memory<DrawRoom>();
  Race race = start_race(from, address(row, rows.state.length[row.slot], purpose), room);
  for_each_id(race.at, from.n, [&race](int id, uint32_t high) { race.enter(id, high); });
  const Best best = best_of_block(race.best, room->warp);
  if (threadIdx.x == 0) rows.drawn[size_t(index) * gridDim.x + blockIdx.x] = best;
}

// ------------------------------------------------------------------------------------------------ drafts

// One warp per slot.
__global__ void propose_kernel(ChoosingRows rows) {
  take_turn();
  ChoosingRow row;
  const int slot = int(blockIdx.x), chunks = chunks_of(rows.row_size);
  if (!find_row(rows, slot, &row)) return;
  const ProcessedRow from = processed(rows, slot, row);
  const int32_t token = from.fault ? 0 : chosen(from, rows.drawn + size_t(slot) * chunks, chunks);
  if (threadIdx.x != 0) return;
  if (from.fault) {  // no proposal: verify what there is
    rows.state.drafting[slot] = rows.step;
    rows.state.draft_fault[slot] = 1;
  } else {
    rows.state.tokens[size_t(slot) * rows.state.tokens_stride + row.position] = token;
  }
}

// ------------------------------------------------------------------------------------------------ `rejection`

__global__ void weigh_kernel(ChoosingRows targets, Scratch scratch) {
  take_turn();
  ChoosingRow row;
  const int index = int(blockIdx.y);
  if (!find_row(targets, index, &row) || row.place >= targets.state.drafting[row.slot] || targets.known[index].fault) return;
  auto* room = shared_memory<uint64_t>();
  weigh(processed(targets, index, row), room, &targets.known[index].mass);
  if (targets.state.proposed[row.slot] > 0) return;  // a point mass
  const ChoosingRows drafts = draft_rows(targets.state, scratch, row.place);
  weigh(processed(drafts, row.slot, row_at(drafts, row.slot)), room, &drafts.known[row.slot].mass);
}

// A token of the residual's race: the smallest e / owed wins, so its negative is the score. The CPU engine looks no further than
// quotients of 1e30, and so do we.
__device__ __forceinline__ void enter_residual(Best* best, const NoiseAddress& at, double owed, int id, uint32_t high) {
  const double quotient = -best->score;
  if (!(owed > 0.0) || !contends(high, float(owed), quotient < 1e30 ? quotient : 1e30)) return;
  *best = better(*best, {-(exponential(at, uint32_t(id), high) / owed), id});
}

// Both races of the row at which the slot's walk stopped: when the residual is empty, what is owed is the target itself.
__global__ void draw_pending_kernel(ChoosingRows targets, Scratch scratch) {
  take_turn();
  const int slot = int(blockIdx.y), place = scratch.walks[slot].result.emitted, index = slot * targets.width + place;
  if (!scratch.walks[slot].pending) return;
  const ChoosingRow row = row_at(targets, index);
  const WeighedRow target = weighed(targets, index, row);
  if (is_certain(target.row)) return;
  auto* room = shared_memory<DrawRoom>();
  Race race = start_race(target.row, address(row, targets.state.length[slot], Purpose::token), room);
  Best residue{-__builtin_inf(), kNoToken};
  if (place < targets.state.drafting[slot]) {
    const WeighedRow draft = proposal(targets, scratch, row);
    for_each_id(race.at, target.row.n, [&](int id, uint32_t high) {
      race.enter(id, high);
      enter_residual(&residue, race.at, residual(target(id), draft(id)), id, high);
    });
  } else {
    for_each_id(race.at, target.row.n, [&race](int id, uint32_t high) { race.enter(id, high); });
  }
  const Best own = best_of_block(race.best, room->warp), owed = best_of_block(residue, room->warp);
  if (threadIdx.x != 0) return;
  const size_t at = size_t(slot) * gridDim.x + blockIdx.x;
  targets.drawn[at] = own;
  targets.drawn[size_t(targets.state.num_slots) * gridDim.x + at] = owed;
}

}  // namespace

size_t sampling_scratch_bytes(int num_slots, int tau_max, Acceptance acceptance, int vocab_size) {
  return cut_up(nullptr, num_slots, tau_max, acceptance, vocab_size).bytes;
}

void draw_rows(cudaStream_t stream, const ChoosingRows& rows, int count, Purpose purpose) {
  launch(draw_kernel, dim3(unsigned(chunks_of(rows.row_size)), unsigned(count)), kSweepThreads, sizeof(DrawRoom), stream, rows, purpose);
}

void weigh_rows(cudaStream_t stream, const ChoosingRows& targets, const Scratch& scratch) {
  const dim3 blocks(unsigned(chunks_of(targets.row_size)), unsigned(targets.state.num_slots * targets.width));
  launch(weigh_kernel, blocks, kSweepThreads, kSweepThreads / kWarp * sizeof(uint64_t), stream, targets, scratch);
}

void draw_pending(cudaStream_t stream, const ChoosingRows& targets, const Scratch& scratch) {
  const dim3 blocks(unsigned(chunks_of(targets.row_size)), unsigned(targets.state.num_slots));
  launch(draw_pending_kernel, blocks, kSweepThreads, sizeof(DrawRoom), stream, targets, scratch);
}

void sample_draft(cudaStream_t stream, const CycleState& state, int step, const SamplingScratch& memory) {
  const ChoosingRows rows = draft_rows(state, cut_up(state, memory), step);
  process_rows(stream, rows, state.num_slots);
  if (state.may_stop_early) stop_early(stream, rows);
  draw_rows(stream, rows, state.num_slots, state.acceptance == Acceptance::coupled ? Purpose::token : Purpose::draft);
  launch(propose_kernel, dim3(unsigned(state.num_slots)), kWarp, 0, stream, rows);
}

}  // namespace paceline::cuda
