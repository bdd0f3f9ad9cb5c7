// What an engine would take, said before anything is taken: its own constructors run over a backend that only counts.
#pragma once

#include "engine.h"

namespace paceline {

// Bytes, as asked of the system or the device.
struct MemoryUse {
  size_t weights = 0;        // of both models
  size_t draft_weights = 0;  // of them, the draft's
  size_t kv_cache = 0;       // of both models
  size_t workspace = 0;      // everything else: of models and cycles, and the backend's own scratch
};

// draft may be null. backend: of the kind and device that the engine would have; nothing is taken from it. Throws what the constructors
// of Weights and Engine would.
MemoryUse plan_memory(const Backend& backend, const ModelConfig& target, DType dtype, const ModelConfig* draft, DType draft_dtype,
                      const EngineOptions& options);

}  // namespace paceline
