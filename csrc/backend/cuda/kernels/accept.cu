// Acceptance and commit: walk each slot's rows while they are reached. The first mismatch, stop or limit ends the cycle, and later
// rows, conditioned on tokens that do not exist, are never looked at - their faults least of all.
//
//   coupled     all rows drawn, then   walk: accept while the draft is the target's own choice; commit               grid (slots)
//   rejection   all rows weighed, then walk: accept while u draft < target; then the last token's races; finish: commit   grid (slots)
//
// Bytes per slot: 16 V / kChunk per row and a few integers. One warp judges a row, all rows of a slot at once; the walk over them is
// then a few steps of one thread. Oracle: tests/simt/sampling_test.cc, the CPU engine bit for bit. Not measured.
#include "backend/cuda/kernels/processors.cuh"
#include "backend/cuda/kernels/report.cuh"
#include "backend/cuda/kernels/sampling.cuh"

namespace paceline::cuda {
namespace {

constexpr int kThreads = 128;

// What a row would do if it is reached.
struct Verdict {
  int32_t token, accepted, stops, fault;
  int32_t pending;  // the token is still to be drawn
};

// By one warp.
__device__ bool is_stop(const SlotParams& p, int token) {
  bool found = false;
  for (int i = lane_of(); i < p.num_stop; i += kWarp) found |= p.stop_id[i] == token;
  return __any_sync(kWholeWarp, found);
}

// By one warp. Called for sound rows of either rule.
__device__ Verdict judge(const ChoosingRows& targets, const Scratch& scratch, const ChoosingRow& row, int index) {
  const CycleState& state = targets.state;
  const bool drafted = row.place < state.drafting[row.slot];
  const int32_t draft = row.history[row.position];  // behind the row's own history
  if (state.acceptance == Acceptance::coupled) {
    const int chunks = chunks_of(targets.row_size);
    const int32_t token = chosen(processed(targets, index, row), targets.drawn + size_t(index) * chunks, chunks);
    return {token, drafted && token == draft, is_stop(*row.params, token), 0, 0};
  }
  if (!drafted) return {0, 0, 0, 0, 1};
  const double u = state.uniforms ? state.uniforms[size_t(row.slot) * state.tau_max + row.place]
                                  : accept_uniform_at(address(row, state.length[row.slot], Purpose::accept));
  const bool accepted = accepts(weighed(targets, index, row)(draft), proposal(targets, scratch, row)(draft), u);
  return {draft, accepted, is_stop(*row.params, draft), 0, !accepted};
}

// Emits a token; whether the walk goes on.
__device__ bool take(const CycleState& state, int slot, const Verdict& verdict, CycleResult* result, const CycleResults& results) {
  const int position = result->first_position + result->emitted;
  results.tokens[size_t(slot) * (state.tau_max + 1) + result->emitted] = verdict.token;
  state.tokens[size_t(slot) * state.tokens_stride + position] = verdict.token;
  result->accepted += verdict.accepted;
  ++result->emitted;
  if (verdict.stops) result->finish = kStopToken;
  else if (position + 1 >= state.params[slot].end_length) result->finish = kLengthLimit;
  return verdict.accepted && result->finish == kRunning;
}

// Lengths move, and with them both caches.
__device__ void commit(const CycleState& state, int slot, CycleResult result, const CycleResults& results) {
  const int length = result.first_position + result.emitted;
  state.length[slot] = length;
  state.target_cached[slot] = result.target_cached = cached_after(result.first_position + result.tau, length);
  state.draft_cached[slot] = result.draft_cached = cached_after(state.draft_fed[slot], length);
  if (result.finish != kRunning) state.running[slot] = 0;
  for (int i = 0; i < result.looked; ++i) results.confidence[slot * state.tau_max + i] = state.row_confidence[slot * state.tau_max + i];
  results.slot[slot] = result;
}

// By one thread: over the verdicts up to the end of the cycle, or to a row whose token is still to be drawn.
__device__ Walk walk(const CycleState& state, int slot, const Verdict* verdicts, const CycleResults& results) {
  Walk so_far{};
  CycleResult& result = so_far.result;
  result.first_position = state.length[slot];
  result.tau = state.drafting[slot];
  result.draft_fault = state.draft_fault[slot];
  result.looked = state.looked[slot];
  for (bool goes_on = true; goes_on;) {
    const Verdict& verdict = verdicts[result.emitted];
    if (verdict.fault) {
      result.fault = verdict.fault;
      result.finish = kNumericFault;
      break;
    }
    so_far.pending = verdict.pending;
    goes_on = !verdict.pending && take(state, slot, verdict, &result, results);
  }
  so_far.emitted = result.emitted;
  return so_far;
}

__global__ void walk_kernel(ChoosingRows targets, Scratch scratch, CycleResults results) {
  take_turn();
  const int slot = int(blockIdx.x);
  if (!targets.state.running[slot]) {
    if (threadIdx.x == 0) scratch.walks[slot] = Walk{};
    return;
  }
  auto* verdicts = shared_memory<Verdict>();
  for (int place = warp_of(); place <= targets.state.drafting[slot]; place += kThreads / kWarp) {
    const int index = slot * targets.width + place;
    const ChoosingRow row = row_at(targets, index);
    const int32_t fault = targets.known[index].fault;
    const Verdict verdict = fault ? Verdict{0, 0, 0, fault, 0} : judge(targets, scratch, row, index);
    if (lane_of() == 0) verdicts[place] = verdict;
  }
  __syncthreads();  // all are there, and nobody reads what the commit changes
  if (threadIdx.x != 0) return;
  const Walk done = walk(targets.state, slot, verdicts, results);
  if (!done.pending) commit(targets.state, slot, done.result, results);
  scratch.walks[slot] = done;
}

// By one warp per slot: the token that ends a cycle of `rejection`.
__global__ void finish_kernel(ChoosingRows targets, Scratch scratch, CycleResults results) {
  take_turn();
  const int slot = int(blockIdx.x), chunks = chunks_of(targets.row_size);
  if (!scratch.walks[slot].pending) return;
  CycleResult result = scratch.walks[slot].result;
  const int index = slot * targets.width + result.emitted;
  const ChoosingRow row = row_at(targets, index);
  const ProcessedRow target = processed(targets, index, row);
  const Best* own = targets.drawn + size_t(slot) * chunks;
  int32_t token = chosen(target, own, chunks);
  if (!is_certain(target)) {
    const Best owed = best_of_chunks(own + size_t(targets.state.num_slots) * chunks, chunks);
    if (owed.id != kNoToken) token = owed.id;  // else equal rows, or rounding emptied it: what is owed is the target itself
  }
  const bool stops = is_stop(*row.params, token);
  if (threadIdx.x != 0) return;
  take(targets.state, slot, {token, 0, stops, 0, 0}, &result, results);
  commit(targets.state, slot, result, results);
  scratch.walks[slot].emitted = result.emitted;
}

}  // namespace

void accept(cudaStream_t stream, const CycleState& state, const float* logits, int vocab_size, const CycleResults& results,
            const SamplingScratch& memory) {
  const Scratch scratch = cut_up(state, memory);
  const ChoosingRows targets = verify_rows(state, scratch, logits, vocab_size);
  const int count = state.num_slots * targets.width;
  const dim3 slots(unsigned(state.num_slots));
  const size_t verdicts = size_t(targets.width) * sizeof(Verdict);

  process_rows(stream, targets, count);
  if (state.acceptance == Acceptance::coupled) {
    draw_rows(stream, targets, count, Purpose::token);
    launch(walk_kernel, slots, kThreads, verdicts, stream, targets, scratch, results);
  } else {
    weigh_rows(stream, targets, scratch);
    launch(walk_kernel, slots, kThreads, verdicts, stream, targets, scratch, results);
    draw_pending(stream, targets, scratch);
    launch(finish_kernel, slots, kWarp, 0, stream, targets, scratch, results);
  }
  report_rows(stream, targets, scratch, results);
}

}  // namespace paceline::cuda
