#include "decode/prefix_cache.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace paceline {

PrefixCache::PrefixCache(Pool target, Pool draft, int64_t budget)
    : target_(target), draft_(draft), budget_(budget < 0 ? std::numeric_limits<int64_t>::max() : budget),
      size_(target.pages->page_positions()), nodes_(target.pages->num_pages()), tokens_(std::make_unique_for_overwrite<int32_t[]>(size_t(target.pages->num_pages()) * size_)),
      buckets_(std::bit_ceil(size_t(target.pages->num_pages())), kNobody) {
  chain_.reserve(target.pages->pages_per_slot());
  draft_chain_.reserve(target.pages->pages_per_slot());
}

PrefixCache::Found PrefixCache::adopt(int slot, std::span<const int32_t> tokens, bool with_draft) {
  ++now_;
  chain_.clear();
  draft_chain_.clear();
  for (int parent = kRoot; tokens.size() >= size_t(size_); tokens = tokens.subspan(size_)) {
    const int page = find(parent, tokens.first(size_));
    if (page == kNobody) break;
    chain_.push_back(page);
    with_draft = with_draft && nodes_[page].draft_page >= 0;
    if (with_draft) draft_chain_.push_back(nodes_[page].draft_page);
    parent = page;
  }
  std::for_each(chain_.rbegin(), chain_.rend(), [this](int page) { use(page); });
  target_.pages->adopt(slot, chain_.data(), int(chain_.size()));
  if (draft_.pages) draft_.pages->adopt(slot, draft_chain_.data(), int(draft_chain_.size()));
  return {int(chain_.size()) * size_, int(draft_chain_.size()) * size_};
}

void PrefixCache::keep(int slot, std::span<const int32_t> tokens, int target_positions, int draft_positions) {
  ++now_;
  chain_.clear();
  // Behind pages of others, what a fork holds as well is not kept: the fork would hold it without its ancestors.
  const auto may_stay = [](const Pool& pool, int page, bool others) { return !others || pool.pages->references(page) == 1; };
  bool others = false, others_drafts = false;
  int parent = kRoot;
  for (int i = 0; (i + 1) * size_ <= target_positions; ++i) {
    const auto of_page = tokens.subspan(size_t(i) * size_, size_);
    const int own = target_.pages->table(slot)[i];
    int page = find(parent, of_page);
    if (page == kNobody) {
      if (!may_stay(target_, own, others) || !make_room(target_.page_bytes)) break;
      add(page = own, parent, of_page);
    }
    others |= page != own;
    Node& node = nodes_[page];
    node.last_use = now_;
    chain_.push_back(page);
    if ((i + 1) * size_ <= draft_positions) {
      const int own_draft = draft_.pages->table(slot)[i];
      const bool first = parent == kRoot || nodes_[parent].draft_page >= 0;  // of those without a draft's page
      if (node.draft_page < 0 && first && may_stay(draft_, own_draft, others_drafts) && make_room(draft_.page_bytes)) {
        node.draft_page = own_draft;
        draft_.pages->retain(own_draft);
        bytes_ += draft_.page_bytes;
      }
      others_drafts |= node.draft_page != own_draft;
    }
    parent = page;
  }
  std::for_each(chain_.rbegin(), chain_.rend(), [this](int page) { use(page); });
}

bool PrefixCache::reserve_target(int slot, int positions) {
  ++now_;
  while (!target_.pages->reserve(slot, positions))
    if (!evict()) return false;
  return true;
}

bool PrefixCache::reserve_draft(int slot, int positions) {
  ++now_;
  while (!draft_.pages->reserve(slot, positions))
    if (!evict_draft_page()) return false;
  return true;
}

// The hash only says where to look.
int& PrefixCache::bucket(int parent, std::span<const int32_t> tokens) {
  uint64_t hash = uint64_t(parent) * 0x9E3779B97F4A7C15u;
  for (int32_t token : tokens) hash = (hash ^ uint32_t(token)) * 0xD1342543DE82EF95u, hash ^= hash >> 29;
  return buckets_[hash & (buckets_.size() - 1)];
}

int PrefixCache::find(int parent, std::span<const int32_t> tokens) {
  int page = bucket(parent, tokens);
  while (page != kNobody && !(nodes_[page].parent == parent && std::ranges::equal(tokens_of(page), tokens))) page = nodes_[page].next;
  return page;
}

void PrefixCache::add(int page, int parent, std::span<const int32_t> tokens) {
  target_.pages->retain(page);
  bytes_ += target_.page_bytes;
  std::ranges::copy(tokens, tokens_of(page).begin());
  int& first = bucket(parent, tokens);
  nodes_[page] = {parent, -1, newest_, kNobody, first, now_};
  first = page;
  (newest_ == kNobody ? oldest_ : nodes_[newest_].newer) = page;
  newest_ = page;
}

// Now the newest. Of a chain the last node comes first, so that a node is always newer than its descendants.
void PrefixCache::use(int page) {
  Node& node = nodes_[page];
  unlink(page);
  node.older = newest_, node.newer = kNobody, node.last_use = now_;
  (newest_ == kNobody ? oldest_ : nodes_[newest_].newer) = page;
  newest_ = page;
}

void PrefixCache::unlink(int page) {
  const Node& node = nodes_[page];
  (node.older == kNobody ? oldest_ : nodes_[node.older].newer) = node.newer;
  (node.newer == kNobody ? newest_ : nodes_[node.newer].older) = node.older;
}

// Within the budget, for so many bytes more.
bool PrefixCache::make_room(size_t bytes) {
  while (bytes_ > budget_ - int64_t(bytes))
    if (!evict()) return false;
  return true;
}

bool PrefixCache::evict() {
  int page = oldest_;
  while (page != kNobody && (nodes_[page].last_use == now_ || target_.pages->references(page) > 1)) page = nodes_[page].newer;
  if (page == kNobody) return false;
  Node& node = nodes_[page];
  if (node.draft_page >= 0) drop_draft_page(node);
  int* link = &bucket(node.parent, tokens_of(page));
  while (*link != page) link = &nodes_[*link].next;
  *link = node.next;
  unlink(page);
  node = {};
  target_.pages->drop(page);
  bytes_ -= target_.page_bytes;
  return true;
}

bool PrefixCache::evict_draft_page() {
  for (int page = oldest_; page != kNobody; page = nodes_[page].newer) {
    Node& node = nodes_[page];
    if (node.draft_page < 0 || node.last_use == now_ || draft_.pages->references(node.draft_page) > 1) continue;
    drop_draft_page(node);
    return true;
  }
  return false;
}

void PrefixCache::drop_draft_page(Node& node) {
  draft_.pages->drop(node.draft_page);
  node.draft_page = -1;
  bytes_ -= draft_.page_bytes;
}

}  // namespace paceline
