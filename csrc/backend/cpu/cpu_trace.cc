// What the trace notes of a cycle: how likely each model held the drafts, and whether the draft would have proposed what was emitted.
#include <algorithm>
#include <limits>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cycle_rows.h"

namespace paceline::cpu {
namespace {

constexpr float kUnknown = std::numeric_limits<float>::quiet_NaN();

float logprob(const SamplingKernels& kernels, const float* row, int size, int32_t token) {
  double l_max, log_sum;
  kernels.normaliser(row, size, &l_max, &log_sum);
  return float((double(row[token]) - l_max) - log_sum);
}

double probability(const SamplingKernels& kernels, const ProcessedRow& row, int32_t token) {
  return row.fault ? 0.0 : kernels.probability(row, kernels.mass(row), token);
}

}  // namespace

// The row that was fed again saw what came before the last token, so it says whether the draft would have proposed that: where all drafts
// of the cycle before were accepted, nothing else does.
void CpuBackend::record_catch_up(const CycleState& state, const CycleEvidence& evidence) {
  pool_->run([&](int thread, int num_threads) {
    for (int slot = thread; slot < state.num_slots; slot += num_threads) {
      evidence.catch_up_agreement[slot] = kUnknown;
      const int position = state.length[slot] - 1;
      const SlotParams& params = state.params[slot];
      if (state.drafting[slot] == 0 || state.proposed[slot] > 0 || state.draft_row_of(kCatchUp, slot) < 0 || position < params.prompt_length) continue;
      const int32_t token = state.tokens[size_t(slot) * state.tokens_stride + position];
      const ProcessedRow row = sampling_->process(draft_task(state, slot, kCatchUp, position + 1), scratch(thread));
      evidence.catch_up_agreement[slot] =
          state.acceptance == Acceptance::coupled
              ? float(!row.fault && sampling_->choose(row, address(params, position, position, Purpose::token)) == token)
              : agreement(probability(*sampling_, row, token), evidence.extra_probability[slot]);
    }
  });
}

void CpuBackend::record_cycle(const CycleState& state, const Rows& rows, const float* logits, int vocab_size, const CycleResults& results,
                              const CycleEvidence& evidence) {
  *evidence.rows = *rows.live;
  const int per_slot = state.tau_max + 1;
  pool_->run([&](int thread, int num_threads) {
    for (int task = thread; task < state.num_slots * per_slot; task += num_threads) {
      const int slot = task / per_slot, i = task % per_slot, first = state.first_row[slot];
      if (first >= *rows.live || rows.slot[first] != slot) continue;
      record_row(state, slot, i, rows.token + first, logits + size_t(first) * vocab_size, vocab_size, results, evidence, thread);
    }
  });
}

// Row i of the slot's verify pass. `fed` are the tokens of its rows: behind the first, the drafts.
void CpuBackend::record_row(const CycleState& state, int slot, int i, const int32_t* fed, const float* logits, int vocab_size,
                            const CycleResults& results, const CycleEvidence& evidence, int thread) {
  const CycleResult& result = results.slot[slot];
  const bool weighed = state.acceptance == Acceptance::rejection && i < result.emitted;
  const float* row = logits + size_t(i) * vocab_size;
  const int position = result.first_position + i;
  const int32_t emitted = i < result.emitted ? results.tokens[size_t(slot) * (state.tau_max + 1) + i] : -1;
  double target = 0;
  if (weighed) {
    const RowTask task = row_task(state, slot, position, row, vocab_size, state.vocab_limit);
    target = probability(*sampling_, sampling_->process(task, scratch(thread)), emitted);
  }
  if (i == result.tau) evidence.extra_probability[slot] = weighed ? target : kUnknown;
  if (i >= state.tau_max) return;

  const size_t at = size_t(slot) * state.tau_max + i;
  const bool drafted = i < result.tau;
  const int32_t draft = drafted ? fed[i + 1] : -1;
  evidence.drafted[at] = draft;
  evidence.draft_logprob[at] = evidence.target_logprob[at] = evidence.agreement[at] = kUnknown;
  if (!drafted) return;
  const bool by_draft = state.proposed[slot] == 0;  // else there is no row
  if (by_draft) evidence.draft_logprob[at] = logprob(*sampling_, draft_row(state, slot, i), state.draft_vocab_size, draft);
  if (i >= result.emitted) return;
  evidence.target_logprob[at] = logprob(*sampling_, row, vocab_size, draft);
  if (!weighed || !by_draft) {
    evidence.agreement[at] = float(emitted == draft);
    return;
  }
  const ProcessedRow proposed = sampling_->process(draft_task(state, slot, i, result.first_position), scratch(thread));
  evidence.agreement[at] = agreement(probability(*sampling_, proposed, emitted), target);
}

}  // namespace paceline::cpu
