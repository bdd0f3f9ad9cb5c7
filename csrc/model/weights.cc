#include "model/weights.h"

#include "math/bfloat16.h"

namespace paceline {

Weights::Weights(std::shared_ptr<Backend> backend, const ModelConfig& config, DType dtype, std::string path, std::optional<Buffer> packed)
    : backend_(std::move(backend)), config_(validated(config)), dtype_(dtype), path_(std::move(path)), layers_(config.num_layers) {
  require(dtype != DType::fp16, "[Weights] dtype must be fp32, bf16, int8, int4 or int4_g32, got fp16");
  backend_->matrix_bytes(1, 16, dtype);  // a format the backend lacks is refused by its own name, not as the embedding's
  const int d = config_.hidden_size, v = config_.vocab_size;
  place_matrix(embedding_, (v + 15) / 16, d, table_dtype());
  expect_matrix("model.embed_tokens.weight", v, d, embedding_, 0, 1);
  for (int i = 0; i < config_.num_layers; ++i) expect_layer(i);
  place_vector(final_norm_, d);
  expect_vector("model.norm.weight", d, final_norm_, 0);
  if (!config_.tie_word_embeddings) {
    place_matrix(head_, (v + 15) / 16, d, table_dtype());
    expect_matrix("lm_head.weight", v, d, head_, 0, 1);
  }

  const size_t size = places_.back().offset + places_.back().bytes;
  if (packed) {
    if (packed->bytes() != size) throw ModelFileError(message(path_, ": expected ", size, " bytes of packed weights, found ", packed->bytes()));
    packed_ = backend_->adopt(std::move(*packed));
    for (size_t i = 0; i < expected_.size(); ++i) pending_[i].rows = expected_[i].shape[0];
    num_loaded_ = expected_.size();
  } else {
    packed_ = backend_->allocate(size);
  }
  for (Place& place : places_) place.take(Buffer(packed_.as<char>() + place.offset, place.bytes, [](void*) {}));
  places_.clear();
}

// Bytes of packed_ that `take` gets once it exists.
void Weights::place(size_t bytes, std::function<void(Buffer)> take) {
  const size_t end = places_.empty() ? 0 : places_.back().offset + places_.back().bytes;
  places_.push_back({(end + 63) / 64 * 64, bytes, std::move(take)});
}

void Weights::place_matrix(std::unique_ptr<PackedMatrix>& into, int num_blocks, int k, DType dtype) {
  place(backend_->matrix_bytes(num_blocks, k, dtype),
        [this, &into, num_blocks, k, dtype](Buffer memory) { into = backend_->matrix_in(std::move(memory), num_blocks, k, dtype); });
}

void Weights::place_vector(Buffer& into, int n) {
  place(size_t(n) * sizeof(float), [&into](Buffer memory) { into = std::move(memory); });
}

void Weights::expect_layer(int index) {
  LayerWeights& layer = layers_[index];
  const std::string prefix = "model.layers." + std::to_string(index) + ".", attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  const int d = config_.hidden_size, f = config_.intermediate_size, q = config_.q_size(), kv = config_.kv_size();
  const int f_blocks = (f + 15) / 16;
  const QkvLayout layout(config_);
  const int k_block = layout.q_blocks, v_block = layout.q_blocks + layout.kv_blocks;
  place_matrix(layer.qkv, layout.num_blocks(), d, dtype_);
  place_matrix(layer.output, (d + 15) / 16, q, dtype_);
  place_matrix(layer.gate_up, 2 * f_blocks, d, dtype_);
  place_matrix(layer.down, (d + 15) / 16, f, dtype_);

  place_vector(layer.attention_norm, d);
  expect_vector(prefix + "input_layernorm.weight", d, layer.attention_norm, 0);
  expect_matrix(attention + "q_proj.weight", q, d, layer.qkv, 0, 1);
  expect_matrix(attention + "k_proj.weight", kv, d, layer.qkv, k_block, 1);
  expect_matrix(attention + "v_proj.weight", kv, d, layer.qkv, v_block, 1);
  if (config_.qkv_bias) {
    place_vector(layer.qkv_bias, layout.num_blocks() * 16);
    expect_vector(attention + "q_proj.bias", q, layer.qkv_bias, 0);
    expect_vector(attention + "k_proj.bias", kv, layer.qkv_bias, 16 * k_block);
    expect_vector(attention + "v_proj.bias", kv, layer.qkv_bias, 16 * v_block);
  }
  if (config_.qk_norm) {
    place_vector(layer.q_norm, config_.head_dim);
    place_vector(layer.k_norm, config_.head_dim);
    expect_vector(attention + "q_norm.weight", config_.head_dim, layer.q_norm, 0);
    expect_vector(attention + "k_norm.weight", config_.head_dim, layer.k_norm, 0);
  }
  expect_matrix(attention + "o_proj.weight", d, q, layer.output, 0, 1);
  if (config_.output_bias) {
    place_vector(layer.output_bias, d);
    expect_vector(attention + "o_proj.bias", d, layer.output_bias, 0);
  }
  place_vector(layer.mlp_norm, d);
  expect_vector(prefix + "post_attention_layernorm.weight", d, layer.mlp_norm, 0);
  expect_matrix(mlp + "gate_proj.weight", f, d, layer.gate_up, 0, 2);
  expect_matrix(mlp + "up_proj.weight", f, d, layer.gate_up, 1, 2);
  expect_matrix(mlp + "down_proj.weight", d, f, layer.down, 0, 1);
}

void Weights::expect(const std::string& name, std::vector<int64_t> shape, Loader loader) {
  index_[name] = expected_.size();
  expected_.push_back({name, std::move(shape)});
  pending_.push_back({std::move(loader)});
}

void Weights::expect_matrix(const std::string& name, int n, int k, std::unique_ptr<PackedMatrix>& into, int first_block, int block_stride) {
  expect(name, {n, k}, [this, &into, first_block, block_stride](const TensorView& part, int first_row) {
    backend_->pack_weights(*into, part, first_block + first_row / 16 * block_stride, block_stride);
  });
}

// A vector of n at `offset` of `into`. Norms and biases are kept in fp32, exactly.
void Weights::expect_vector(const std::string& name, int n, Buffer& into, int offset) {
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
  const SpanScope span(*backend_, Span::load_weights, part.size() * int64_t(size_of(part.dtype)));
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

}  // namespace paceline
