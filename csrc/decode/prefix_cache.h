// Whole pages of requests that have ended, kept for those that begin alike: a tree, a node per page, found by its parent and its tokens.
//
// A node holds the target's page of its positions and, where the draft had cached them too, the draft's. KV rows are a function of the
// tokens up to them, whoever computed them (row invariance), so a page kept by one request holds the very bits another would write. It is
// whole and lies behind nobody's next row: no one writes to it any more.
//
// Nothing of the tree is in the way of a running sequence. What a slot holds of it is a chain from the root, so whoever holds a node holds
// its ancestors, and the nodes that nobody holds are closed under descendants: they can all go, leaves first. A use of a node is a later use
// of its ancestors, so the one least recently used among them is a leaf. The same is true of the nodes with a draft's page among themselves,
// since a node has one only if its parent does. Hence the pages a slot can get are all but those that slots hold, as if the tree were not there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/pages.h"

namespace paceline {

class PrefixCache {
 public:
  // Pages of one model, and the bytes of one.
  struct Pool {
    Pages* pages;  // nullptr: no such model
    size_t page_bytes;
  };
  // budget: bytes of both models' pages in the tree, at most; -1 = as many as nobody else needs, 0 = none.
  PrefixCache(Pool target, Pool draft, int64_t budget);

  struct Found {
    int target = 0, draft = 0;  // positions that are cached now, in whole pages
  };
  // An empty slot takes the longest chain that begins its tokens; of the draft's pages, if they are wanted, as many as there are from the first.
  Found adopt(int slot, std::span<const int32_t> tokens, bool with_draft);
  // The slot is about to give its pages back. Those that hold nothing but the first positions of its tokens, in either model, stay.
  void keep(int slot, std::span<const int32_t> tokens, int target_positions, int draft_positions);

  // Pages::reserve, for which pages go that only the tree holds, least recently used first. False: slots hold the rest.
  [[nodiscard]] bool reserve_target(int slot, int positions);
  [[nodiscard]] bool reserve_draft(int slot, int positions);

  int64_t bytes() const { return bytes_; }  // of the pages in the tree
  int64_t budget() const { return budget_; }

  // For tests. A node's name is its target page.
  struct Node {
    int parent = kNobody;                    // kRoot: of the first page of a sequence
    int draft_page = -1;
    int older = kNobody, newer = kNobody;    // by last use
    int next = kNobody;                      // in its bucket
    int64_t last_use = 0;
  };
  static constexpr int kRoot = -1, kNobody = -2;  // kNobody as a parent: the page is in no node
  const Node& node(int page) const { return nodes_[page]; }

 private:
  std::span<int32_t> tokens_of(int page) { return {tokens_.get() + size_t(page) * size_, size_t(size_)}; }
  int& bucket(int parent, std::span<const int32_t> tokens);
  int find(int parent, std::span<const int32_t> tokens);
  void add(int page, int parent, std::span<const int32_t> tokens);
  void use(int page);
  void unlink(int page);
  bool make_room(size_t bytes);
  bool evict();
  bool evict_draft_page();
  void drop_draft_page(Node& node);

  Pool target_, draft_;
  int64_t budget_, bytes_ = 0;
  int size_;                       // tokens of a page
  std::vector<Node> nodes_;        // [target's pages]
  std::unique_ptr<int32_t[]> tokens_;  // [target's pages, size] those of kept pages; the rest is never touched
  std::vector<int> buckets_;       // first node of each
  std::vector<int32_t> chain_, draft_chain_;
  int oldest_ = kNobody, newest_ = kNobody;
  int64_t now_ = 0;                // counts calls. What the present one has used stays.
};

}  // namespace paceline
