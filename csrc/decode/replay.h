// The cycle without its models: the backend's own begin, draft, plan and accept over given rows of logits, as often as asked for. What an
// audit judges the rules by: every operation is the one that serves requests, and all that it decided comes back.
//
// Cycles run in batches, one per slot. No address of noise is consulted twice: slots have seeds of their own, and cycles of a slot their
// own positions.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "decode/request.h"

namespace paceline {

// The same for every cycle. Row i of each chooses the token at place i of the cycle.
struct ReplayRows {
  int tau;                    // 0 to 64
  int vocab_size, draft_vocab_size;
  const float* target;        // [tau + 1, vocab_size] raw logits
  const float* draft;         // [tau, draft_vocab_size]
};

// One entry per cycle.
struct Replay {
  std::vector<uint64_t> seed;      // of its noise
  std::vector<int32_t> position;   // of the first token it chooses
  std::vector<int32_t> drafts;     // [cycles, tau]
  std::vector<int32_t> accepted;   // 0..tau
  std::vector<int32_t> tokens;     // [cycles, tau + 1] accepted drafts and the extra token; -1 behind it
};

// params: its processors, without penalties, which need a history; its seed is the first slot's. uniforms: [cycles, tau], each in [0, 1],
// instead of those that `rejection` would judge drafts by; or nullptr. The backend is nobody else's meanwhile: its scratch is set up anew.
// Throws std::invalid_argument, also where a row leaves no token to choose.
Replay replay(Backend& backend, Acceptance rule, const ReplayRows& rows, const RequestParams& params, int cycles, const double* uniforms);

}  // namespace paceline
