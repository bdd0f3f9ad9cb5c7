#include "model/transformer.h"

#include <algorithm>
#include <cmath>

namespace paceline {

Transformer::Transformer(std::shared_ptr<Weights> weights, const Limits& limits)
    : weights_(std::move(weights)), backend_(*weights_->backend()), config_(weights_->config()), max_len_(limits.max_len),
      cache_(backend_, {config_.num_layers, config_.num_kv_heads, config_.head_dim, limits.kv_dtype}, limits.num_pages,
             limits.num_slots, limits.max_len) {
  weights_->finish();
  const size_t rows = limits.max_rows;
  residual_ = backend_.allocate(rows * config_.hidden_size * sizeof(float));
  qkv_ = backend_.allocate(rows * QkvLayout(config_).num_blocks() * 16 * sizeof(float));
  attended_ = backend_.allocate(rows * config_.q_size() * sizeof(float));
  gated_ = backend_.allocate(rows * config_.intermediate_size * sizeof(float));
  fill_rope_tables();
  shape_ = {config_.num_heads, config_.num_kv_heads, config_.head_dim, rope_cos_.as<float>(), rope_sin_.as<float>()};
  backend_.prepare_attention(limits.max_rows, cache_.pages().pages_per_slot(), shape_);
}

void Transformer::forward(const Rows& rows, float* logits) {
  const int d = config_.hidden_size, f = config_.intermediate_size, q_size = config_.q_size();
  const float eps = config_.rms_norm_eps;
  const TurnScope turn(backend_);
  float *x = residual_.as<float>(), *qkv = qkv_.as<float>(), *attended = attended_.as<float>(), *gated = gated_.as<float>();

  backend_.embed(rows, weights_->embedding(), d, x);
  for (int i = 0; i < config_.num_layers; ++i) {
    const LayerWeights& layer = weights_->layer(i);
    const KvLayer kv = cache_.layer(i);
    const QkvWeights weights{layer.qkv.get(), layer.attention_norm.as<float>(), layer.qkv_bias.as<float>(),
                             layer.q_norm.as<float>(), layer.k_norm.as<float>(), eps};
    backend_.norm_qkv_rope_write(rows, x, d, weights, shape_, kv, qkv);
    backend_.attention(rows, qkv, shape_, kv, attended);
    backend_.linear_residual(rows, attended, q_size, *layer.output, layer.output_bias.as<float>(), x, d);
    backend_.norm_gate_up(rows, x, d, layer.mlp_norm.as<float>(), eps, *layer.gate_up, f, gated);
    backend_.linear_residual(rows, gated, f, *layer.down, nullptr, x, d);
  }
  if (logits) backend_.norm_head(rows, x, d, weights_->final_norm(), eps, weights_->head(), config_.vocab_size, logits);
}

// Angles in double, rounded once: position * frequency in fp32 would lose 1e-3 radians at position 32768. A part of the positions at a
// time: all of a long context would be a second copy of the tables.
void Transformer::fill_rope_tables() {
  const size_t half = config_.head_dim / 2, bytes = max_len_ * half * sizeof(float);
  rope_cos_ = backend_.allocate(bytes);
  rope_sin_ = backend_.allocate(bytes);
  if (!rope_cos_.as<void>()) return;  // a plan: there is no memory to fill
  constexpr int kPart = 1024;
  std::vector<float> cosines(kPart * half), sines(kPart * half);
  for (int first = 0; first < max_len_; first += kPart) {
    const int count = std::min(kPart, max_len_ - first);
    for (int row = 0; row < count; ++row)
      for (size_t i = 0; i < half; ++i) {
        const double angle = (first + row) * config_.rope_frequencies[i];
        cosines[row * half + i] = float(std::cos(angle) * config_.rope_scale);
        sines[row * half + i] = float(std::sin(angle) * config_.rope_scale);
      }
    backend_.upload(rope_cos_.as<float>() + first * half, cosines.data(), count * half * sizeof(float));
    backend_.upload(rope_sin_.as<float>() + first * half, sines.data(), count * half * sizeof(float));
  }
}

size_t Transformer::workspace_bytes() const {
  return cache_.table_bytes() + rope_cos_.bytes() + rope_sin_.bytes() + residual_.bytes() + qkv_.bytes() + attended_.bytes() + gated_.bytes();
}

}  // namespace paceline
