#include "model/kv_cache.h"

#include <algorithm>

namespace paceline {

KvCache::KvCache(Backend& backend, const KvGeometry& geometry, int num_pages, int num_slots, int max_len)
    : backend_(backend), geometry_(geometry),
      pages_(num_pages, num_slots, (max_len + kPagePositions - 1) / kPagePositions, kPagePositions),
      plane_bytes_(size_t(num_pages) * geometry.num_kv_heads * kPagePositions * geometry.head_dim * size_of(geometry.dtype)),
      storage_(backend.allocate(2 * geometry.num_layers * plane_bytes_)),
      tables_(backend.allocate(size_t(num_slots) * pages_.pages_per_slot() * sizeof(int32_t))), published_(num_slots, 0) {}

bool KvCache::reserve(int slot, int positions) { return pages_.reserve(slot, positions); }

void KvCache::truncate(int slot, int positions) {
  pages_.truncate(slot, positions);
  published_[slot] = std::min(published_[slot], pages_.held(slot));
}

bool KvCache::share(int from, int to, int positions, const AttentionShape& shape) {
  Pages::Copy copy;
  if (!pages_.share(from, to, positions, copy)) return false;
  if (copy.from >= 0)
    for (int i = 0; i < geometry_.num_layers; ++i) backend_.copy_pages(layer(i), shape, &copy.from, &copy.to, 1);
  return true;
}

void KvCache::publish() {
  for (int slot = 0; slot < int(published_.size()); ++slot) {
    const int from = published_[slot], count = pages_.held(slot) - from;
    if (count == 0) continue;
    int32_t* table = tables_.as<int32_t>() + size_t(slot) * pages_.pages_per_slot();
    backend_.upload(table + from, pages_.table(slot) + from, count * sizeof(int32_t));
    published_[slot] += count;
  }
}

std::vector<uint64_t> KvCache::hashes(int slot, int positions, const AttentionShape& shape) const {
  std::vector<uint64_t> all(positions, 0);
  for (int position = 0; position < positions; ++position)
    for (int i = 0; i < geometry_.num_layers; ++i)
      all[position] = (all[position] ^ backend_.hash_kv(layer(i), shape, slot, position)) * 0x9E3779B97F4A7C15u;
  return all;
}

KvLayer KvCache::layer(int index) const {
  char* keys = storage_.as<char>() + 2 * size_t(index) * plane_bytes_;
  return {keys, keys + plane_bytes_, tables_.as<int32_t>(), pages_.pages_per_slot(), geometry_.dtype};
}

}  // namespace paceline
