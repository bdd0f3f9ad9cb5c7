// The KV cache of one model: pages of keys and values for every layer, and the page tables that say whose they are.
//
// What is cached for a slot is always a prefix tokens[0, cached) of its sequence; the length lives with the cycle's state.
// Rolling back moves that length; the pages follow between cycles (truncate). Target and draft obey the same class.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "model/pages.h"

namespace paceline {

struct KvGeometry {
  int num_layers, num_kv_heads, head_dim;
  DType dtype;  // fp32 or bf16
};

class KvCache {
 public:
  // num_pages pages of kPagePositions positions, shared by num_slots slots of at most max_len positions each.
  KvCache(Backend& backend, const KvGeometry& geometry, int num_pages, int num_slots, int max_len);

  // Bookkeeping; see Pages. Tables reach the device at the next `publish`.
  [[nodiscard]] bool reserve(int slot, int positions);
  void truncate(int slot, int positions);
  // Fork: `to` starts with the first `positions` of `from`. shape is the model's; false when the pool is empty.
  [[nodiscard]] bool share(int from, int to, int positions, const AttentionShape& shape);
  // Copy changed page tables to the device. Called before a pass, never inside a cycle.
  void publish();

  KvLayer layer(int index) const;
  // Debug: one hash per position [0, positions) over all layers, the same wherever the pages lie.
  std::vector<uint64_t> hashes(int slot, int positions, const AttentionShape& shape) const;
  // What takes pages, or holds them without a slot, may go straight to them. Who gives a slot's back does it through `truncate` above:
  // the device's table must follow.
  Pages& pages() { return pages_; }
  const Pages& pages() const { return pages_; }
  size_t bytes() const { return storage_.bytes(); }
  size_t page_bytes() const { return 2 * geometry_.num_layers * plane_bytes_ / pages_.num_pages(); }  // of all layers, keys and values
  size_t table_bytes() const { return tables_.bytes(); }

 private:
  Backend& backend_;
  KvGeometry geometry_;
  Pages pages_;
  size_t plane_bytes_;  // keys, or values, of one layer
  Buffer storage_;      // [num_layers][keys, values]
  Buffer tables_;       // [num_slots, pages_per_slot] int32
  std::vector<int> published_;  // [num_slots] entries of its table that the device has
};

}  // namespace paceline
