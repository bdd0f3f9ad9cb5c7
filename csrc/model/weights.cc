#include "model/weights.h"

#include "core/bfloat16.h"

namespace paceline {

Weights::Weights(std::shared_ptr<Backend> backend, const ModelConfig& config, DType dtype, std::string path)
    : backend_(std::move(backend)), config_(validated(config)), dtype_(dtype), path_(std::move(path)), layers_(config.num_layers) {
  require(dtype != DType::fp16, "[Weights] dtype must be fp32, bf16, int8, int4 or int4_g32, got fp16");
  const int d = config_.hidden_size, v = config_.vocab_size;
  embedding_ = backend_->new_matrix((v + 15) / 16, d, table_dtype());
  expect_matrix("model.embed_tokens.weight", v, d, *embedding_, 0, 1);
  for (int i = 0; i < config_.num_layers; ++i) expect_layer(i);
  expect_vector("model.norm.weight", d, final_norm_, 0);
  if (!config_.tie_word_embeddings) {
    head_ = backend_->new_matrix((v + 15) / 16, d, table_dtype());
    expect_matrix("lm_head.weight", v, d, *head_, 0, 1);
  }
}

void Weights::expect_layer(int index) {
  LayerWeights& layer = layers_[index];
  const std::string prefix = "model.layers." + std::to_string(index) + ".", attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  const int d = config_.hidden_size, f = config_.intermediate_size, q = config_.q_size(), kv = config_.kv_size();
  const int f_blocks = (f + 15) / 16;
  const QkvLayout layout(config_);
  const int k_block = layout.q_blocks, v_block = layout.q_blocks + layout.kv_blocks;
  layer.qkv = backend_->new_matrix(layout.num_blocks(), d, dtype_);
  layer.output = backend_->new_matrix((d + 15) / 16, q, dtype_);
  layer.gate_up = backend_->new_matrix(2 * f_blocks, d, dtype_);
  layer.down = backend_->new_matrix((d + 15) / 16, f, dtype_);

  expect_vector(prefix + "input_layernorm.weight", d, layer.attention_norm, 0);
  expect_matrix(attention + "q_proj.weight", q, d, *layer.qkv, 0, 1);
  expect_matrix(attention + "k_proj.weight", kv, d, *layer.qkv, k_block, 1);
  expect_matrix(attention + "v_proj.weight", kv, d, *layer.qkv, v_block, 1);
  if (config_.qkv_bias) {
    layer.qkv_bias = backend_->allocate(size_t(layout.num_blocks()) * 16 * sizeof(float));
    expect_vector(attention + "q_proj.bias", q, layer.qkv_bias, 0);
    expect_vector(attention + "k_proj.bias", kv, layer.qkv_bias, 16 * k_block);
    expect_vector(attention + "v_proj.bias", kv, layer.qkv_bias, 16 * v_block);
  }
  if (config_.qk_norm) {
    expect_vector(attention + "q_norm.weight", config_.head_dim, layer.q_norm, 0);
    expect_vector(attention + "k_norm.weight", config_.head_dim, layer.k_norm, 0);
  }
  expect_matrix(attention + "o_proj.weight", d, q, *layer.output, 0, 1);
  if (config_.output_bias) expect_vector(attention + "o_proj.bias", d, layer.output_bias, 0);
  expect_vector(prefix + "post_attention_layernorm.weight", d, layer.mlp_norm, 0);
  expect_matrix(mlp + "gate_proj.weight", f, d, *layer.gate_up, 0, 2);
  expect_matrix(mlp + "up_proj.weight", f, d, *layer.gate_up, 1, 2);
  expect_matrix(mlp + "down_proj.weight", d, f, *layer.down, 0, 1);
}

void Weights::expect(const std::string& name, std::vector<int64_t> shape, Loader loader) {
  index_[name] = expected_.size();
  expected_.push_back({name, std::move(shape)});
  pending_.push_back({std::move(loader)});
}

void Weights::expect_matrix(const std::string& name, int n, int k, PackedMatrix& into, int first_block, int block_stride) {
  expect(name, {n, k}, [this, &into, first_block, block_stride](const TensorView& part, int first_row) {
    backend_->pack_weights(into, part, first_block + first_row / 16 * block_stride, block_stride);
  });
}

// A vector of n at `offset` of `into`, which is made here unless parts share it. Norms and biases are kept in fp32, exactly.
void Weights::expect_vector(const std::string& name, int n, Buffer& into, int offset) {
  if (!into.bytes()) into = backend_->allocate(size_t(n) * sizeof(float));
  expect(name, {n}, [this, &into, n, offset](const TensorView& tensor, int) {
    std::vector<float> values(n);
    for (int i = 0; i < n; ++i) {
      if (tensor.dtype == DType::fp32) values[i] = static_cast<const float*>(tensor.data)[i];
      if (tensor.dtype == DType::bf16) values[i] = from_bf16(static_cast<const uint16_t*>(tensor.data)[i]);
      if (tensor.dtype == DType::fp16) values[i] = from_fp16(static_cast<const uint16_t*>(tensor.data)[i]);
    }
    backend_->upload(into.as<float>() + offset, values.data(), values.size() * sizeof(float));
  });
}

void Weights::load(const TensorView& part, int64_t first_row) {
  const auto found = index_.find(part.name);
  if (found == index_.end()) refuse(part.name, "the architecture has no such tensor");
  Pending& pending = pending_[found->second];
  const auto& shape = expected_[found->second].shape;
  auto fitting = shape;
  if (!part.shape.empty() && part.shape[0] + first_row < shape[0] && part.shape[0] % 16 == 0 && shape.size() == 2) fitting[0] = part.shape[0];
  else fitting[0] = shape[0] - first_row;
  if (pending.rows == shape[0] || first_row < pending.rows) refuse(part.name, "it was loaded before");
  if (part.shape != fitting || first_row != pending.rows)
    refuse(part.name, message("expected shape ", describe(shape), " from row ", pending.rows, " on, found ", describe(part.shape), " from row ", first_row));
  pending.loader(part, int(first_row));
  pending.rows += part.shape[0];
  if (pending.rows == shape[0]) ++num_loaded_;
}

void Weights::finish() const {
  for (size_t i = 0; i < expected_.size(); ++i)
    if (pending_[i].rows < expected_[i].shape[0]) refuse(expected_[i].name, "missing, expected shape " + describe(expected_[i].shape));
}

void Weights::refuse(const std::string& tensor, const std::string& why) const {
  throw ModelFileError(message(path_, ": tensor ", tensor, ": ", why));
}

size_t Weights::bytes() const {
  size_t total = embedding_->bytes() + (head_ ? head_->bytes() : 0) + final_norm_.bytes();
  for (const LayerWeights& layer : layers_)
    total += layer.qkv->bytes() + layer.output->bytes() + layer.gate_up->bytes() + layer.down->bytes() + layer.attention_norm.bytes() +
             layer.mlp_norm.bytes() + layer.qkv_bias.bytes() + layer.output_bias.bytes() + layer.q_norm.bytes() + layer.k_norm.bytes();
  return total;
}

}  // namespace paceline
