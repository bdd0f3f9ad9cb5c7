// The decoder-only transformer: Llama, Mistral, Qwen2, Qwen3 and their like, flat, in the backend's operations only.
#pragma once

#include "model/model.h"
#include "model/weights.h"

namespace paceline {

class Transformer final : public Model {
 public:
  // max_rows: rows of the largest pass. KV: num_pages pages shared by num_slots slots of at most max_len positions.
  struct Limits {
    int max_rows, max_len, num_slots, num_pages;
    DType kv_dtype;
  };
  Transformer(std::shared_ptr<Weights> weights, const Limits& limits);

  int vocab_size() const override { return config_.vocab_size; }
  int max_len() const override { return max_len_; }
  KvCache& cache() override { return cache_; }
  const AttentionShape& shape() const override { return shape_; }
  void forward(const Rows& rows, float* logits) override;
  size_t workspace_bytes() const override;

 private:
  void fill_rope_tables();

  std::shared_ptr<Weights> weights_;
  Backend& backend_;
  const ModelConfig& config_;
  int max_len_;
  KvCache cache_;
  Buffer rope_cos_, rope_sin_;     // [max_len, Dh / 2]
  AttentionShape shape_;
  Buffer residual_;                // [max_rows, D]
  Buffer qkv_;                     // [max_rows, padded q | k | v]
  Buffer attended_;                // [max_rows, H Dh]
  Buffer gated_;                   // [max_rows, F]
};

}  // namespace paceline
