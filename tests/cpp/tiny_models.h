// Small random transformers for tests: seeded weights, any shape, made in memory.
#pragma once

#include <cmath>
#include <random>

#include "engine.h"
#include "model/transformer.h"

namespace paceline::test {

struct TinyShape {
  int vocab = 97, hidden = 48, intermediate = 80, layers = 2, heads = 4, kv_heads = 2, head_dim = 16, context = 320;
  bool bias = false, qk_norm = false, tied = false;
};

inline ModelConfig config_of(const TinyShape& s) {
  std::vector<double> frequencies;
  for (int i = 0; i < s.head_dim / 2; ++i) frequencies.push_back(std::pow(10000.0, -2.0 * i / s.head_dim));
  return {s.vocab, s.hidden, s.intermediate, s.layers, s.heads, s.kv_heads, s.head_dim, 1e-5f, s.context, frequencies, 1.0,
          s.bias,  false,    s.qk_norm,      s.tied};
}

// Every value is a function of (seed, tensor name, index) plus `noise` of another seed: a noisy copy is a good draft.
// Projections are large enough that logits spread over several nats and attention is far from uniform.
inline std::shared_ptr<Weights> tiny_weights(const std::shared_ptr<Backend>& backend, const TinyShape& shape, DType dtype, unsigned seed,
                                             float noise = 0) {
  auto weights = std::make_shared<Weights>(backend, config_of(shape), dtype, "tiny");
  for (const auto& tensor : weights->expected()) {
    int64_t size = 1;
    for (int64_t d : tensor.shape) size *= d;
    const auto name_seed = unsigned(std::hash<std::string>{}(tensor.name));
    std::mt19937 random(seed + name_seed), other(seed + name_seed + 77777);
    const float scale = tensor.shape.size() == 1 ? 0.2f : 2.0f / std::sqrt(float(tensor.shape[1]));
    std::normal_distribution<float> normal(0, 1);
    std::vector<float> values(size);
    for (float& v : values) {
      v = (normal(random) + noise * normal(other)) * scale;
      if (tensor.shape.size() == 1 && tensor.name.find("bias") == std::string::npos) v += 1;
    }
    weights->load({tensor.name, DType::fp32, tensor.shape, values.data()});
  }
  return weights;
}

}  // namespace paceline::test
