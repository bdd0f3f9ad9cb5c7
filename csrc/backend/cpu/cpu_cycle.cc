// The cycle's operations on the CPU: planning rows, drawing drafts, accepting. State is plain host memory here; the
// arithmetic is math/'s, the loops over a row are kernels/sampling's.
#include <chrono>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cycle_rows.h"
#include "math/cycle_rules.h"

namespace paceline::cpu {
namespace {

// All that a proposal from nowhere gives probability to: the row of a draft that is certain of it.
ProcessedRow point_mass(int token, int vocab_limit) { return {nullptr, vocab_limit, 0.0f, 0.0f, token, kRowSound, 0.0}; }

int planned_tau(const CycleState& state, int slot, int start) {
  return paceline::planned_tau(state.wanted_tau[slot], state.proposed[slot], start, state.params[slot].end_length, state.draft_cached[slot],
                               state.draft_max_len);
}

void append(const Rows& rows, int slot, int position, int token) {
  const int row = (*rows.live)++;
  rows.slot[row] = slot;
  rows.position[row] = position;
  rows.token[row] = token;
}

bool is_stop(const SlotParams& params, int token) {
  for (int i = 0; i < params.num_stop; ++i)
    if (params.stop_id[i] == token) return true;
  return false;
}

// The token of one row of the verify pass: the draft when it is accepted, else the target's own.
struct Choice {
  int32_t token;
  bool accepted;
};

Choice judge(const SamplingKernels& kernels, const CycleState& state, int slot, int i, const ProcessedRow& target,
             const SamplingScratch& draft_scratch) {
  const SlotParams& params = state.params[slot];
  const int start = state.length[slot], position = start + i;
  const bool drafted = i < state.drafting[slot];
  const int32_t draft = state.tokens[size_t(slot) * state.tokens_stride + position];
  const NoiseAddress own = address(params, position, start, Purpose::token);
  if (!drafted || state.acceptance == Acceptance::coupled) {
    const int32_t token = kernels.choose(target, own);
    return {token, drafted && token == draft};
  }
  const ProcessedRow proposed = state.proposed[slot] > 0 ? point_mass(draft, state.vocab_limit)
                                                         : kernels.process(draft_task(state, slot, i, start), draft_scratch);
  if (proposed.fault) return {kernels.choose(target, own), false};  // fail closed: a token is drawn from the target alone
  const uint64_t target_mass = kernels.mass(target), draft_mass = kernels.mass(proposed);
  const double u = state.uniforms ? state.uniforms[size_t(slot) * state.tau_max + i]
                                  : accept_uniform_at(address(params, position, start, Purpose::accept));
  if (accepts(kernels.probability(target, target_mass, draft), kernels.probability(proposed, draft_mass, draft), u)) return {draft, true};
  return {kernels.choose_residual(target, target_mass, proposed, draft_mass, own), false};
}

}  // namespace

void CpuBackend::begin_cycle(const CycleState& state) {
  for (int slot = 0; slot < state.num_slots; ++slot) {
    state.proposed[slot] = state.running[slot] ? state.offered[slot] : 0;
    state.drafting[slot] = state.running[slot] ? planned_tau(state, slot, state.length[slot]) : 0;
    state.draft_fed[slot] = state.draft_cached[slot];
    state.draft_fault[slot] = state.looked[slot] = 0;
    int32_t* drafts = state.tokens + size_t(slot) * state.tokens_stride + state.length[slot];
    for (int i = 0; i < smaller(state.proposed[slot], state.drafting[slot]); ++i) drafts[i] = state.offers[slot * state.tau_max + i];
  }
}

void CpuBackend::plan_draft(const CycleState& state, int step, const Rows& rows) {
  *rows.live = 0;
  for (int slot = 0; slot < state.num_slots; ++slot) {
    if (state.drafting[slot] <= step || state.proposed[slot] > 0) continue;
    const int last = state.length[slot] - 1 + step;
    if (step == 0) state.draft_row_of(kCatchUp, slot) = state.draft_fed[slot] < last ? *rows.live : -1;
    const int32_t* tokens = state.tokens + size_t(slot) * state.tokens_stride;
    for (int position = state.draft_fed[slot]; position <= last; ++position)
      append(rows, slot, position, tokens[position] < state.draft_vocab_size ? tokens[position] : 0);
    state.draft_fed[slot] = last + 1;
    state.draft_row_of(step, slot) = *rows.live - 1;
  }
}

// Whether a slot drafts here is decided before anything is drawn, by its row and what was drafted before it: never by the token.
void CpuBackend::sample_draft(const CycleState& state, int step) {
  if (state.may_stop_early) stop_early(state, step);
  pool_->run([&](int thread, int num_threads) {
    for (int slot = thread; slot < state.num_slots; slot += num_threads) {
      if (state.drafting[slot] <= step || state.proposed[slot] > 0) continue;
      const int start = state.length[slot];
      const ProcessedRow row = sampling_->process(draft_task(state, slot, step, start), scratch(thread));
      if (row.fault) {  // no proposal: verify what there is
        state.drafting[slot] = step;
        state.draft_fault[slot] = 1;
        continue;
      }
      const Purpose purpose = state.acceptance == Acceptance::coupled ? Purpose::token : Purpose::draft;
      state.tokens[size_t(slot) * state.tokens_stride + start + step] =
          sampling_->choose(row, address(state.params[slot], start + step, start, purpose));
    }
  });
}

void CpuBackend::stop_early(const CycleState& state, int step) {
  const int budget = *state.verify_budget;
  pool_->run([&](int thread, int num_threads) {
    for (int slot = thread; slot < state.num_slots; slot += num_threads) {
      if (state.drafting[slot] <= step || state.proposed[slot] > 0 || !(budget || state.stop_below[slot] > 0)) continue;
      const ProcessedRow row = sampling_->process(draft_task(state, slot, step, state.length[slot]), scratch(thread));
      const double confidence = row.fault ? 0.0 : sampling_->confidence(row);
      state.confidence[slot] = step ? state.confidence[slot] * confidence : confidence;
      state.row_confidence[size_t(slot) * state.tau_max + state.looked[slot]++] = float(confidence);
      if (!row.fault && confidence < double(state.stop_below[slot])) state.drafting[slot] = step;
    }
  });
  if (!budget) return;
  // One after the other: whoever is refused has as many that may go on before it, so those after it are none the wiser.
  for (int slot = 0; slot < state.num_slots; ++slot)
    if (state.drafting[slot] > step && !within_budget(budget, state.num_slots, state.running, state.drafting, state.confidence, step, slot))
      state.drafting[slot] = step;
}

void CpuBackend::plan_verify(const CycleState& state, const Rows& rows) {
  *rows.live = 0;
  for (int slot = 0; slot < state.num_slots; ++slot) {
    if (!state.running[slot]) continue;
    state.first_row[slot] = *rows.live;
    const int32_t* tokens = state.tokens + size_t(slot) * state.tokens_stride;
    for (int i = 0; i <= state.drafting[slot]; ++i) append(rows, slot, state.length[slot] - 1 + i, tokens[state.length[slot] - 1 + i]);
  }
}

void CpuBackend::accept(const CycleState& state, const float* logits, int vocab_size, const CycleResults& results) {
  pool_->run([&](int thread, int num_threads) {
    for (int slot = thread; slot < state.num_slots; slot += num_threads)
      if (state.running[slot]) accept_slot(state, slot, logits + size_t(state.first_row[slot]) * vocab_size, vocab_size, results, thread);
  });
}

// Walk the slot's rows while they are reached: the first mismatch, stop or limit ends the cycle, and later rows, conditioned
// on tokens that do not exist, are never looked at.
void CpuBackend::accept_slot(const CycleState& state, int slot, const float* logits, int vocab_size, const CycleResults& results,
                             int thread) {
  const SlotParams& params = state.params[slot];
  const int start = state.length[slot], tau = state.drafting[slot];
  CycleResult& result = results.slot[slot];
  result = {};
  result.first_position = start;
  result.tau = tau;
  int32_t* tokens = state.tokens + size_t(slot) * state.tokens_stride;

  bool goes_on = true;
  while (goes_on) {
    const int i = result.emitted, position = start + i;
    const float* row = logits + size_t(i) * vocab_size;
    const ProcessedRow target =
        sampling_->process(row_task(state, slot, position, row, vocab_size, state.vocab_limit), scratch(thread));
    if (target.fault) {
      result.fault = target.fault;
      result.finish = kNumericFault;
      break;
    }
    const Choice choice = judge(*sampling_, state, slot, i, target, draft_scratch(thread));
    report(row, vocab_size, choice.token, state, slot, i, results);
    tokens[position] = choice.token;
    result.accepted += choice.accepted;
    ++result.emitted;
    if (is_stop(params, choice.token)) result.finish = kStopToken;
    else if (position + 1 >= params.end_length) result.finish = kLengthLimit;
    goes_on = choice.accepted && result.finish == kRunning;
  }

  result.draft_fault = state.draft_fault[slot];
  result.looked = state.looked[slot];
  for (int i = 0; i < result.looked; ++i) results.confidence[slot * state.tau_max + i] = state.row_confidence[slot * state.tau_max + i];

  // Commit: lengths move, and with them both caches.
  const int length = start + result.emitted;
  state.length[slot] = length;
  state.target_cached[slot] = result.target_cached = cached_after(start + tau, length);
  state.draft_cached[slot] = result.draft_cached = cached_after(state.draft_fed[slot], length);
  if (result.finish != kRunning) state.running[slot] = 0;
}

// What the caller hears of an emitted token besides its id: raw logprobs, and a hash of the row when debugging.
void CpuBackend::report(const float* row, int vocab_size, int token, const CycleState& state, int slot, int i, const CycleResults& results) {
  const size_t at = size_t(slot) * (state.tau_max + 1) + i;
  results.tokens[at] = token;
  if (results.row_hashes) results.row_hashes[at] = sampling_->hash(row, vocab_size);
  const int k = state.params[slot].num_logprobs;
  if (k < 0) return;
  double l_max, log_sum;
  sampling_->normaliser(row, vocab_size, &l_max, &log_sum);
  const auto logprob = [&](int id) { return float((double(row[id]) - l_max) - log_sum); };
  results.logprobs[at] = logprob(token);
  const int count = smaller(k, state.vocab_limit);
  int32_t* ids = results.top_ids + at * kMaxTopLogprobs;
  if (count > 0) sampling_->top(row, state.vocab_limit, count, ids);
  for (int j = 0; j < count; ++j) results.top_logprobs[at * kMaxTopLogprobs + j] = logprob(ids[j]);
}

void CpuBackend::log_softmax(const Rows& rows, const float* logits, int v, float* out) {
  pool_->run([&](int thread, int num_threads) {
    for (int row = thread; row < *rows.live; row += num_threads) sampling_->log_softmax(logits + size_t(row) * v, v, out + size_t(row) * v);
  });
}

void CpuBackend::timestamp(int64_t* nanoseconds) {
  *nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace paceline::cpu
