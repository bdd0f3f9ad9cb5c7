// The weights of one network: every tensor the architecture has, checked one by one, packed once into the backend's order.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"

namespace paceline {

struct LayerWeights {
  std::unique_ptr<PackedMatrix> qkv, output, gate_up, down;
  Buffer attention_norm, mlp_norm;        // [D]
  Buffer qkv_bias, output_bias;           // [padded q | k | v], [D]; empty without bias
  Buffer q_norm, k_norm;                  // [Dh]; empty without q/k norm
};

class Weights {
 public:
  // dtype: any but fp16. path is only used in messages. packed: what packed() of equal weights was, in host memory; nothing is then
  // left to load. Throws ModelFileError when it has another size.
  Weights(std::shared_ptr<Backend> backend, const ModelConfig& config, DType dtype, std::string path, std::optional<Buffer> packed = {});

  struct Expected {
    std::string name;
    std::vector<int64_t> shape;
  };
  // Every tensor that must be loaded, in the order of the network.
  const std::vector<Expected>& expected() const { return expected_; }

  // Pack rows of a tensor, from first_row on, or all of it; the view may be dropped afterwards. A matrix may come in parts, in order,
  // of a multiple of 16 rows but for the last. Throws ModelFileError on an unknown name, rows loaded before or a wrong shape.
  void load(const TensorView& part, int64_t first_row = 0);
  // Throws ModelFileError naming the first tensor that is missing.
  void finish() const;

  const ModelConfig& config() const { return config_; }
  const std::shared_ptr<Backend>& backend() const { return backend_; }
  DType dtype() const { return dtype_; }
  // Of the embedding and the head, which every token meets undiluted: never below int8.
  DType table_dtype() const { return is_integer(dtype_) ? DType::int8 : dtype_; }
  // All of them, as the backend wants them.
  const Buffer& packed() const { return packed_; }
  bool complete() const { return num_loaded_ == expected_.size(); }

  const PackedMatrix& embedding() const { return *embedding_; }
  const PackedMatrix& head() const { return config_.tie_word_embeddings ? *embedding_ : *head_; }
  const float* final_norm() const { return final_norm_.as<float>(); }
  const LayerWeights& layer(int index) const { return layers_[index]; }

 private:
  using Loader = std::function<void(const TensorView& part, int first_row)>;
  void expect(const std::string& name, std::vector<int64_t> shape, Loader loader);
  void expect_matrix(const std::string& name, int n, int k, std::unique_ptr<PackedMatrix>& into, int first_block, int block_stride);
  void expect_vector(const std::string& name, int n, Buffer& into, int offset);
  void place(size_t bytes, std::function<void(Buffer)> take);
  void place_matrix(std::unique_ptr<PackedMatrix>& into, int num_blocks, int k, DType dtype);
  void place_vector(Buffer& into, int n);
  void expect_layer(int index);
  [[noreturn]] void refuse(const std::string& tensor, const std::string& why) const;

  std::shared_ptr<Backend> backend_;
  ModelConfig config_;
  DType dtype_;
  std::string path_;
  std::vector<Expected> expected_;
  struct Pending {
    Loader loader;
    int64_t rows = 0;  // loaded so far
  };
  std::vector<Pending> pending_;
  std::map<std::string, size_t> index_;  // name -> entry of expected_
  size_t num_loaded_ = 0;

  struct Place {
    size_t offset, bytes;
    std::function<void(Buffer)> take;
  };
  std::vector<Place> places_;  // in packed_
  Buffer packed_;
  std::unique_ptr<PackedMatrix> embedding_, head_;
  Buffer final_norm_;
  std::vector<LayerWeights> layers_;
};

// Output columns of q, k and v packed together: each part starts at a multiple of 16.
struct QkvLayout {
  int q_blocks, kv_blocks;
  explicit QkvLayout(const ModelConfig& config) : q_blocks((config.q_size() + 15) / 16), kv_blocks((config.kv_size() + 15) / 16) {}
  int num_blocks() const { return q_blocks + 2 * kv_blocks; }
};

}  // namespace paceline
