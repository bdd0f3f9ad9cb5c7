// A model that is a table: logits are a function of the last two tokens, which it reads from its KV cache, so that the law of
// whole texts can be enumerated. Each KV row stores (token, position). A stale, missing or shifted row gives another context
// or another position than it should, and either changes the distribution.
#pragma once

#include <functional>
#include <random>

#include "engine.h"

namespace paceline::test {

// logits[(before * V + last) * V + token]; `before` of a text of one token is 0.
struct Table {
  int vocab;
  std::vector<float> logits;

  const float* row(int before, int last) const { return logits.data() + (size_t(before) * vocab + last) * vocab; }
};

// Logits spread over about 3 nats, so that every token matters and none is certain.
inline Table random_table(int vocab, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  Table table{vocab, std::vector<float>(size_t(vocab) * vocab * vocab)};
  for (float& value : table.logits) value = normal(random);
  return table;
}

class TableModel final : public Model {
 public:
  TableModel(Backend& backend, Table table, const Engine::ModelLimits& limits)
      : table_(std::move(table)), limits_(limits),
        cache_(backend, {1, 1, 2, DType::fp32}, limits.num_pages, limits.num_slots, limits.max_len) {}

  int vocab_size() const override { return table_.vocab; }
  int max_len() const override { return limits_.max_len; }
  KvCache& cache() override { return cache_; }
  const AttentionShape& shape() const override { return shape_; }
  size_t workspace_bytes() const override { return 0; }

  void forward(const Rows& rows, float* logits) override {
    for (int row = 0; row < *rows.live; ++row) {
      float* kv = at(rows.slot[row], rows.position[row]);
      kv[0] = float(rows.token[row]);
      kv[1] = float(rows.position[row]);
    }
    if (!logits) return;
    for (int row = 0; row < *rows.live; ++row) {
      float* out = logits + size_t(row) * table_.vocab;
      read(rows.slot[row], rows.position[row], out);
      if (after_row) after_row(rows.slot[row], rows.position[row], rows.token[row], out);
    }
  }

  // May change the logits of a row: (slot, position, token fed, logits).
  std::function<void(int, int, int32_t, float*)> after_row;

 private:
  float* at(int slot, int position) {
    const KvLayer kv = cache_.layer(0);
    const int page = kv.page_table[slot * kv.pages_per_slot + position / kPagePositions];
    return static_cast<float*>(kv.keys) + (size_t(page) * kPagePositions + position % kPagePositions) * 2;
  }

  void read(int slot, int position, float* out) {
    const float* last = at(slot, position);
    int before = 0, shift = int(last[1]) - position;
    if (position > 0) {
      const float* row = at(slot, position - 1);
      before = int(row[0]);
      shift += 31 * (int(row[1]) - (position - 1));
    }
    const float* logits = table_.row(before, int(last[0]));
    for (int token = 0; token < table_.vocab; ++token) out[token] = logits[unsigned(token + shift) % unsigned(table_.vocab)];
  }

  Table table_;
  Engine::ModelLimits limits_;
  KvCache cache_;
  AttentionShape shape_{1, 1, 2, nullptr, nullptr};
};

}  // namespace paceline::test
