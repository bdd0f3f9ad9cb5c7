// The rows that choose tokens - one per slot in a step of the draft, up to tau_max + 1 per slot in the verify pass - and where what is
// known of them lies between kernels.
//
// A row of V logits is swept by chunks_of(V) blocks, whose partial results a later kernel combines. Partials are maxima and integer
// sums, or have a total order, so that neither the chunks nor who comes first can change a bit.
#pragma once

#include "backend/cuda/device.cuh"
#include "backend/cuda/kernels/kernels.h"
#include "math/bfloat16.h"

namespace paceline::cuda {

constexpr int kChunk = 2048;  // ids per block of a sweep
constexpr int kSweepThreads = 256;

constexpr int kDigitBits = 11, kBuckets = 1 << kDigitBits;  // of the keys of logits, where rows are cut

constexpr int chunks_of(int vocab_size) { return (vocab_size + kChunk - 1) / kChunk; }

// Order-preserving key of a float; -0 and +0 are one value. NaN counts as nothing, as in a maximum by `>`.
PACELINE_HD uint32_t key_of(float value) {
  if (value != value) return 0;
  const uint32_t bits = paceline::bits_of(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
PACELINE_HD float value_of(uint32_t key) { return float_from_bits(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// A logit and its id in one integer: the larger logit is larger, of equal ones that of the lower id.
PACELINE_HD uint64_t ranked(float logit, int id) { return uint64_t(key_of(logit)) << 32 | uint32_t(~id); }
PACELINE_HD int id_of(uint64_t ranked) { return int(~uint32_t(ranked)); }

// Of one chunk.
struct Swept {
  uint64_t best;  // ranked: the largest processed logit
  uint64_t raw;   // key of the largest raw logit, and above it 1 if there is a NaN or +inf
};

// A token that may win; the higher score does, of equal ones the lower id.
struct Best {
  double score;
  int32_t id;
};

// What is known of a row once its chunks are put together.
struct RowState {
  float l_max, threshold;  // as in ProcessedRow
  int32_t argmax, fault;
  float raw_max;
  uint64_t mass;     // of the survivors, where `rejection` asks
  uint64_t raw_sum;  // of fixed weights of the raw row, where logprobs are asked for
  uint64_t warm_mass;  // of a draft row's survivors as confidence sees them: at temperature 1 where the row is greedy
};

// Of one chunk of a raw row.
struct RawPart {
  uint64_t sum;  // of fixed weights
  uint32_t key;  // of the largest logit
};

// A slot's walk over its rows, kept while `rejection` draws the token that ends it.
struct Walk {
  CycleResult result;
  int32_t pending;  // 1: the token of row result.emitted is still to be drawn
  int32_t emitted;  // of this cycle; 0 where the slot does not run
};

// Draft rows whose processed logits are kept at a time: `rejection` judges all of a cycle.
constexpr int kept_draft_rows(int num_slots, int tau_max, Acceptance acceptance) {
  return acceptance == Acceptance::rejection ? num_slots * tau_max : num_slots;
}

// The scratch, cut up. Rows of the verify pass are numbered slot (tau_max + 1) + place, those of the draft by slot.
struct Scratch {
  int vocab_size;           // distance between rows of logits
  RowState* target_rows;    // [S (tau_max + 1)]
  RowState* draft_rows;     // [kept draft rows]
  Walk* walks;              // [S]
  Swept* swept;             // [S (tau_max + 1), chunks]
  uint64_t* digits;         // [S (tau_max + 1), kBuckets]
  Best* drawn;              // [max(S (tau_max + 1), 2 S), chunks]
  RawPart* raw_parts;       // [S, 2 tau_max, chunks] of a cycle's draft rows and of the target's that judged them, for the trace
  uint64_t* top;            // [S (tau_max + 1), chunks, kMaxTopLogprobs]
  float* target_logits;     // [S (tau_max + 1), V] of rows that processors change
  float* draft_logits;      // [kept draft rows, V]
  size_t bytes;
};

inline Scratch cut_up(void* memory, int num_slots, int tau_max, Acceptance acceptance, int vocab_size) {
  const size_t target = size_t(num_slots) * (tau_max + 1), draft = kept_draft_rows(num_slots, tau_max, acceptance);
  const size_t chunks = chunks_of(vocab_size), races = target > 2 * size_t(num_slots) ? target : 2 * size_t(num_slots);
  Scratch s{};
  s.vocab_size = vocab_size;
  const auto take = [&]<class T>(T*& part, size_t count) {
    part = reinterpret_cast<T*>(static_cast<char*>(memory) + s.bytes);
    s.bytes += (count * sizeof(T) + 255) / 256 * 256;
  };
  take(s.target_rows, target);
  take(s.draft_rows, draft);
  take(s.walks, size_t(num_slots));
  take(s.swept, target * chunks);
  take(s.digits, target * kBuckets);
  take(s.drawn, races * chunks);
  take(s.raw_parts, size_t(num_slots) * 2 * tau_max * chunks);
  take(s.top, target * chunks * kMaxTopLogprobs);
  take(s.target_logits, target * vocab_size);
  take(s.draft_logits, draft * vocab_size);
  return s;
}

inline Scratch cut_up(const CycleState& state, const SamplingScratch& scratch) {
  return cut_up(scratch.memory, state.num_slots, state.tau_max, state.acceptance, scratch.vocab_size);
}

// A set of rows, as kernels take it.
struct ChoosingRows {
  CycleState state;
  const float* logits;  // of the pass [rows, row_size]
  int row_size;         // columns, padding included
  int vocab_limit;      // ids that exist, <= row_size
  int step;             // of the draft; kCatchUp: the rows it caught up with
  int width;            // rows per slot; more than one only in the verify pass
  bool verifies;
  RowState* known;      // [S width]
  float* changed;       // [S width, changed_stride]
  int changed_stride;
  Swept* swept;         // [S width, chunks]
  uint64_t* digits;     // [S width, kBuckets] weights by the first digit of the key, of rows that are cut
  Best* drawn;          // [S width, chunks]
};

PACELINE_HD ChoosingRows draft_rows(const CycleState& state, const Scratch& scratch, int step) {
  const size_t first = state.acceptance == Acceptance::rejection && step > 0 ? size_t(step) * state.num_slots : 0;
  return {state, state.draft_logits + size_t(state.draft_logits_row(step)) * state.draft_vocab_size, state.draft_vocab_size,
          state.draft_vocab_limit, step, 1, false, scratch.draft_rows + first, scratch.draft_logits + first * scratch.vocab_size,
          scratch.vocab_size, scratch.swept, scratch.digits, scratch.drawn};
}

PACELINE_HD ChoosingRows verify_rows(const CycleState& state, const Scratch& scratch, const float* logits, int vocab_size) {
  return {state, logits, vocab_size, state.vocab_limit, 0, state.tau_max + 1, true, scratch.target_rows, scratch.target_logits,
          scratch.vocab_size, scratch.swept, scratch.digits, scratch.drawn};
}

// One of them.
struct ChoosingRow {
  int slot, place;      // place: row of its slot in this pass
  int position;         // of the token to be chosen; everything before it, drafts included, is its history
  const float* raw;     // [row_size]
  const SlotParams* params;
  const int32_t* history;  // [position]
};

// A row that is known to exist in this cycle.
__device__ __forceinline__ ChoosingRow row_at(const ChoosingRows& rows, int index) {
  const CycleState& state = rows.state;
  const int slot = index / rows.width, place = index % rows.width;
  const int in_pass = rows.verifies ? state.first_row[slot] + place : state.draft_row_of(rows.step, slot);
  return {slot, place, state.length[slot] + rows.step + place, rows.logits + size_t(in_pass) * rows.row_size, state.params + slot,
          state.tokens + size_t(slot) * state.tokens_stride};
}

// False: there is no such row.
__device__ __forceinline__ bool find_row(const ChoosingRows& rows, int index, ChoosingRow* row) {
  const int slot = index / rows.width, drafting = rows.state.drafting[slot];
  if (rows.verifies ? !rows.state.running[slot] || index % rows.width > drafting : drafting <= rows.step || rows.state.proposed[slot] > 0) return false;
  if (rows.step == kCatchUp && (drafting == 0 || rows.state.draft_row_of(kCatchUp, slot) < 0)) return false;
  *row = row_at(rows, index);
  return true;
}

__device__ __forceinline__ bool changes_logits(const SlotParams& p, int position) {
  return position < p.min_length || p.num_bias || p.repetition_penalty != 1.0f || p.frequency_penalty != 0.0f || p.presence_penalty != 0.0f;
}

// The row after its processors, once it is settled.
__device__ __forceinline__ ProcessedRow processed(const ChoosingRows& rows, int index, const ChoosingRow& row) {
  const RowState& known = rows.known[index];
  const float* logits = changes_logits(*row.params, row.position) ? rows.changed + size_t(index) * rows.changed_stride : row.raw;
  return {logits, rows.vocab_limit, known.l_max, known.threshold, known.argmax, known.fault, row.params->temperature};
}

// Nothing is drawn: the argmax is the token. A temperature below the normal numbers is zero, as on hosts that flush them.
PACELINE_HD bool is_greedy(double temperature) { return temperature < 0x1p-1022; }

}  // namespace paceline::cuda
