// Where a slot's drafts end before this step's token is drawn, by the draft's row alone: never by the token.
//
//   warm_mass   sum of floor(2^45 e^((l - l_max) / T)) over the survivors, T = 1 where the row is greedy   grid (chunks of V, slots)
//   decide      confidence = largest probability; stop where it is below the slot's threshold; then the budget of the verify pass   one block
//
// Bytes 4 V in per row. The budget ranks slots by the product of their confidences: O(S^2) comparisons of a block. Oracle:
// tests/simt/sampling_test.cc, the CPU engine bit for bit. Not measured.
#include "backend/cuda/kernels/processors.cuh"
#include "backend/cuda/kernels/sampling.cuh"

namespace paceline::cuda {
namespace {

__device__ bool may_stop(const CycleState& state, int slot) { return *state.verify_budget > 0 || state.stop_below[slot] > 0.0f; }

// The row as confidence sees it.
__device__ ProcessedRow warmed(const ChoosingRows& drafts, int slot, const ChoosingRow& row) {
  ProcessedRow warm = processed(drafts, slot, row);
  if (is_greedy(warm.temperature)) warm.temperature = 1.0;
  return warm;
}

__global__ void warm_mass_kernel(ChoosingRows drafts) {
  take_turn();
  ChoosingRow row;
  const int slot = int(blockIdx.y);
  if (!may_stop(drafts.state, slot) || !find_row(drafts, slot, &row) || drafts.known[slot].fault) return;
  weigh(warmed(drafts, slot, row), shared_memory<uint64_t>(), &drafts.known[slot].warm_mass);
}

// All of a block's threads read what the others have written only behind its barriers.
__global__ void decide_kernel(ChoosingRows drafts) {
  take_turn();
  const CycleState& state = drafts.state;
  const int budget = *state.verify_budget, slot = int(threadIdx.x), step = drafts.step;
  ChoosingRow row;
  if (slot < state.num_slots && may_stop(state, slot) && find_row(drafts, slot, &row)) {
    const RowState& known = drafts.known[slot];
    const double confidence = known.fault ? 0.0 : probability(warmed(drafts, slot, row), known.warm_mass, known.argmax);
    state.confidence[slot] = step ? state.confidence[slot] * confidence : confidence;
    state.row_confidence[slot * state.tau_max + state.looked[slot]++] = float(confidence);
    if (!known.fault && confidence < double(state.stop_below[slot])) state.drafting[slot] = step;
  }
  if (!budget) return;
  __syncthreads();  // every slot's confidence is there
  const bool may = slot >= state.num_slots || within_budget(budget, state.num_slots, state.running, state.drafting, state.confidence, step, slot);
  __syncthreads();  // all answers before the first change
  if (slot < state.num_slots && state.drafting[slot] > step && !may) state.drafting[slot] = step;
}

}  // namespace

void stop_early(cudaStream_t stream, const ChoosingRows& drafts) {
  const unsigned slots = unsigned(drafts.state.num_slots);
  launch(warm_mass_kernel, dim3(unsigned(chunks_of(drafts.row_size)), slots), kSweepThreads, kSweepThreads / kWarp * sizeof(uint64_t), stream, drafts);
  launch(decide_kernel, dim3(1), kMaxSlots, 0, stream, drafts);
}

}  // namespace paceline::cuda
