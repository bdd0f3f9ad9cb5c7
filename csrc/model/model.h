// A network with its KV cache, as decoding sees it: one call, a pass over rows.
#pragma once

#include "backend/backend.h"
#include "model/kv_cache.h"

namespace paceline {

class Model {
 public:
  virtual ~Model() = default;
  virtual int vocab_size() const = 0;
  virtual int max_len() const = 0;  // positions it can take: the trained context, or less if so configured
  virtual KvCache& cache() = 0;
  virtual const AttentionShape& shape() const = 0;

  // Write K and V of every live row, then let each row attend to its slot's positions up to its own. logits [capacity, V] of
  // every live row, or nullptr when none are wanted (prefill). Prefill, decoding, verification and the draft's catch-up are
  // all this call; a cached row fed again gets the same bits.
  virtual void forward(const Rows& rows, float* logits) = 0;
  virtual size_t workspace_bytes() const = 0;
};

}  // namespace paceline
