// The shape of a network, in the names of config.json. Whoever reads files fills it; the core only checks it.
#pragma once

#include <string>
#include <vector>

namespace paceline {

struct ModelConfig {
  int vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim;
  float rms_norm_eps;
  int max_position_embeddings;
  std::vector<double> rope_frequencies;  // [head_dim / 2] radians per position, scaling already applied
  double rope_scale;                     // factor on cos and sin (yarn's attention scaling), 1 otherwise
  bool qkv_bias, output_bias, qk_norm, tie_word_embeddings;

  int q_size() const { return num_heads * head_dim; }
  int kv_size() const { return num_kv_heads * head_dim; }
};

// The config itself. Throws std::invalid_argument that names the field, what it must be, and what it is.
const ModelConfig& validated(const ModelConfig& config);

}  // namespace paceline
