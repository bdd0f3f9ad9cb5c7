// Where the rows that choose tokens lie, what their history is, and which noise belongs to them.
#pragma once

#include "backend/backend.h"
#include "backend/cpu/kernels/sampling.h"

namespace paceline::cpu {

inline NoiseAddress address(const SlotParams& params, int position, int cycle_start, Purpose purpose) {
  return {params.seed, uint32_t(position), uint32_t(cycle_start), purpose, params.sample_index};
}

// The row that chooses the token at `position`: everything before it, drafts included, is its history.
inline RowTask row_task(const CycleState& state, int slot, int position, const float* logits, int row_size, int vocab_limit) {
  return {logits, row_size, vocab_limit, state.params + slot, state.tokens + size_t(slot) * state.tokens_stride, position};
}

inline const float* draft_row(const CycleState& state, int slot, int step) {
  const size_t row = state.draft_logits_row(step) + state.draft_row_of(step, slot);
  return state.draft_logits + row * state.draft_vocab_size;
}

// Of the cycle that began at position `start`.
inline RowTask draft_task(const CycleState& state, int slot, int step, int start) {
  return row_task(state, slot, start + step, draft_row(state, slot, step), state.draft_vocab_size, state.draft_vocab_limit);
}

}  // namespace paceline::cpu
