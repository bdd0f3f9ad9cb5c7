// The decisions of speculative sampling, pure and shared by host, device and tests. Names by role: the papers swap p and q.
#pragma once

#include "math/platform.h"

namespace paceline {

enum class Acceptance : int32_t {
  coupled = 0,    // Daliri, Musco, Suresh 2024 (arXiv:2408.07978): accept while the draft equals the target's own choice
  rejection = 1,  // Leviathan et al. 2023 (arXiv:2211.17192, Alg. 1), Chen et al. 2023 (arXiv:2302.01318)
};

// `rejection`: accept with probability min(1, target / draft). u in [0, 1). No division: the draft's probability may be tiny.
// Strict: a token the target gives 0 is never accepted, one with target >= draft always is. A row that gives its own draft 0, or no
// number, is not the one that it was drawn from: the draft is rejected, and what is owed then is the target itself.
PACELINE_HD bool accepts(double target_probability, double draft_probability, double u) {
  if (!(draft_probability > 0.0)) return false;
  return u * draft_probability < target_probability;
}

// m_j of an emitted token: the share of it that `rejection` would have accepted from the draft, whose row gives it draft_probability. NaN
// where the target's is not known.
PACELINE_HD float agreement(double draft_probability, double target_probability) {
  if (draft_probability >= target_probability) return 1.0f;
  return float(draft_probability / target_probability);
}

// What the target still owes after the draft's offer (unnormalised residual).
PACELINE_HD double residual(double target_probability, double draft_probability) {
  return target_probability > draft_probability ? target_probability - draft_probability : 0.0;
}

}  // namespace paceline
