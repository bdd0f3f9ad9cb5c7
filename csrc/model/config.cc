#include "model/config.h"

#include <cmath>

#include "backend/backend.h"
#include "core/error.h"
#include "math/fixed_sum.h"

namespace paceline {
namespace {

void positive(const char* name, int value) { require(value > 0, "[ModelConfig] ", name, " must be positive, got ", value); }

}  // namespace

const ModelConfig& validated(const ModelConfig& c) {
  positive("hidden_size", c.hidden_size);
  positive("intermediate_size", c.intermediate_size);
  positive("num_layers", c.num_layers);
  positive("num_heads", c.num_heads);
  positive("num_kv_heads", c.num_kv_heads);
  positive("max_position_embeddings", c.max_position_embeddings);
  require(c.vocab_size > 0 && c.vocab_size <= kMaxVocabSize, "[ModelConfig] vocab_size must be in [1, ", kMaxVocabSize, "], got ", c.vocab_size);
  require(c.head_dim > 0 && c.head_dim <= kMaxHeadDim && c.head_dim % 2 == 0, "[ModelConfig] head_dim must be even and at most ", kMaxHeadDim,
          ", got ", c.head_dim);
  require(c.num_heads % c.num_kv_heads == 0, "[ModelConfig] num_heads must be a multiple of num_kv_heads = ", c.num_kv_heads, ", got ",
          c.num_heads);
  require(std::isfinite(c.rms_norm_eps) && c.rms_norm_eps > 0, "[ModelConfig] rms_norm_eps must be positive, got ", c.rms_norm_eps);
  require(int(c.rope_frequencies.size()) * 2 == c.head_dim, "[ModelConfig] rope_frequencies must be head_dim / 2 = ", c.head_dim / 2,
          " numbers, got ", c.rope_frequencies.size());
  for (double frequency : c.rope_frequencies)
    require(std::isfinite(frequency), "[ModelConfig] rope_frequencies must be finite, got ", frequency);
  require(std::isfinite(c.rope_scale), "[ModelConfig] rope_scale must be finite, got ", c.rope_scale);
  // Columns of a matrix are counted in 32 bits, q, k and v together.
  constexpr int kMaxSize = 1 << 22;
  for (int64_t size : {int64_t(c.num_heads) * c.head_dim, int64_t(c.hidden_size), int64_t(c.intermediate_size)})
    require(size <= kMaxSize, "[ModelConfig] num_heads * head_dim, hidden_size and intermediate_size must be at most ", kMaxSize, ", got ", size);
  return c;
}

}  // namespace paceline
