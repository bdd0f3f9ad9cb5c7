// The tree of kept pages against a plain map from texts to pages: what is found, what goes and in which order, what it weighs. Pages have
// memory here, a token per position and model, so that a page that is not what the tree says shows in what a slot reads.
#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "cpp/test.h"
#include "decode/prefix_cache.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr size_t kTargetBytes = 1000, kDraftBytes = 300;

// The pages of a model and what is written in them.
struct Memory {
  Memory(int num_pages, int num_slots, int per_slot, int size) : pages(num_pages, num_slots, per_slot, size), values(size_t(num_pages) * size, -1) {}

  int& at(int slot, int position) {
    const int size = pages.page_positions();
    CHECK(position < pages.held(slot) * size, "position ", position, " outside the slot's pages");
    return values[size_t(pages.table(slot)[position / size]) * size + position % size];
  }
  void write(int slot, int position, int token) {
    CHECK(pages.references(pages.table(slot)[position / pages.page_positions()]) == 1, "write into a page that is held twice");
    at(slot, position) = token;
  }
  std::set<int> held_by_slots(int num_slots) const {
    std::set<int> all;
    for (int slot = 0; slot < num_slots; ++slot) all.insert(pages.table(slot), pages.table(slot) + pages.held(slot));
    return all;
  }

  Pages pages;
  std::vector<int> values;
};

// The same by looking at everything, every time.
struct Reference {
  struct Entry {
    int target, draft;
    long used;
  };
  std::map<std::vector<int32_t>, Entry> entries;  // by the whole text up to the page's end
  int64_t budget, bytes = 0;
  long now = 0;

  bool has_child(const std::vector<int32_t>& text, bool with_draft) const {
    for (const auto& [other, entry] : entries)
      if (other.size() > text.size() && std::equal(text.begin(), text.end(), other.begin()) && (!with_draft || entry.draft >= 0)) return true;
    return false;
  }

  // The least recently used that has nothing behind it, is in no slot, and was not used by this very call.
  bool evict(bool draft, const std::set<int>& held) {
    auto found = entries.end();
    for (auto it = entries.begin(); it != entries.end(); ++it) {
      if ((draft && it->second.draft < 0) || it->second.used == now || held.count(draft ? it->second.draft : it->second.target)) continue;
      if (has_child(it->first, draft)) continue;
      if (found == entries.end() || it->second.used < found->second.used) found = it;
    }
    if (found == entries.end()) return false;
    if (found->second.draft >= 0) bytes -= kDraftBytes;
    found->second.draft = -1;
    if (!draft) bytes -= kTargetBytes, entries.erase(found);
    return true;
  }
  bool make_room(size_t more, const std::set<int>& held) {
    while (bytes + int64_t(more) > budget)
      if (!evict(false, held)) return false;
    return true;
  }
};

struct Slot {
  std::vector<int32_t> tokens;
  int target_cached = 0, draft_cached = 0;
  bool active = false;
};

class World {
 public:
  World(unsigned seed, int num_pages, int num_slots, int size, int64_t budget)
      : random_(seed), size_(size), target_(num_pages, num_slots, 6, size), draft_(num_pages, num_slots, 5, size),
        cache_({&target_.pages, kTargetBytes}, {&draft_.pages, kDraftBytes}, budget), slots_(num_slots) {
    reference_.budget = budget < 0 ? int64_t(1) << 60 : budget;
  }

  void step() {
    const int slot = below(int(slots_.size()));
    const int choice = below(7);
    if (!slots_[slot].active) start(slot);
    else if (choice == 0) end(slot, true);
    else if (choice == 1) end(slot, below(4) > 0);
    else if (choice == 2) extend(slot);
    else if (choice == 3) cache_target(slot);
    else if (choice == 4) fork(slot, below(int(slots_.size())));
    else cache_draft(slot);
    check();
  }

  long hits = 0, evicted = 0, refused = 0, kept_drafts = 0, forks = 0;

 private:
  int holders(const Memory& memory, int page) const {
    int count = 0;
    for (int slot = 0; slot < int(slots_.size()); ++slot) count += int(std::count(memory.pages.table(slot), memory.pages.table(slot) + memory.pages.held(slot), page));
    return count;
  }
  int below(int n) { return int(random_() % unsigned(n)); }

  void start(int slot) {
    Slot& s = slots_[slot];
    s = {};
    if (!texts_.empty() && below(4)) s.tokens = texts_[below(int(texts_.size()))];
    s.tokens.resize(std::min<size_t>(s.tokens.size(), below(6 * size_)));
    const int more = 1 + below(2 * size_);
    for (int i = 0; i < more && int(s.tokens.size()) < 6 * size_; ++i) s.tokens.push_back(below(2));
    texts_.push_back(s.tokens);
    s.active = true;

    const bool with_draft = below(4) > 0;
    const std::span<const int32_t> tokens = std::span(s.tokens).first(s.tokens.size() - 1);
    const PrefixCache::Found found = cache_.adopt(slot, tokens, with_draft);
    ++reference_.now;
    int target = 0, draft = 0;
    bool contiguous = with_draft;
    for (int end = size_; end <= int(tokens.size()); end += size_) {
      const auto entry = reference_.entries.find({tokens.begin(), tokens.begin() + end});
      if (entry == reference_.entries.end()) break;
      entry->second.used = reference_.now;
      target = end;
      contiguous = contiguous && entry->second.draft >= 0;
      if (contiguous) draft = end;
    }
    CHECK(found.target == target && found.draft == draft, "found ", found.target, " and ", found.draft, ", expected ", target, " and ", draft);
    s.target_cached = target, s.draft_cached = draft;
    hits += target > 0;
    cache_target(slot);
  }

  void extend(int slot) {
    Slot& s = slots_[slot];
    for (int i = below(2 * size_); i > 0 && int(s.tokens.size()) < 6 * size_; --i) s.tokens.push_back(below(2));
    cache_target(slot);
  }

  // A slot gets all pages but those that slots hold, whatever the tree holds.
  bool reserve(bool draft, int slot, int positions) {
    Memory& memory = draft ? draft_ : target_;
    const std::set<int> held = memory.held_by_slots(int(slots_.size()));
    const int missing = std::max(0, memory.pages.pages_for(positions) - memory.pages.held(slot));
    const bool possible = missing <= memory.pages.num_pages() - int(held.size());
    ++reference_.now;
    const auto free = [&] {
      std::set<int> taken = held;
      for (const auto& [text, entry] : reference_.entries)
        if (const int page = draft ? entry.draft : entry.target; page >= 0) taken.insert(page);
      return memory.pages.num_pages() - int(taken.size());
    };
    while (missing > free() && reference_.evict(draft, held)) ++evicted;
    const bool done = draft ? cache_.reserve_draft(slot, positions) : cache_.reserve_target(slot, positions);
    CHECK(done == possible, done ? "got" : "refused", " ", missing, " pages, slots hold ", held.size(), " of ", memory.pages.num_pages());
    refused += !done;
    return done;
  }

  void cache_target(int slot) {
    Slot& s = slots_[slot];
    const int end = int(s.tokens.size()) - 1;
    if (!reserve(false, slot, end)) return;
    for (; s.target_cached < end; ++s.target_cached) target_.write(slot, s.target_cached, s.tokens[s.target_cached]);
  }

  // The draft's context is a page shorter than the target's.
  void cache_draft(int slot) {
    Slot& s = slots_[slot];
    const int end = std::min({int(s.tokens.size()) - 1, s.draft_cached + below(2 * size_), 5 * size_});
    if (end <= s.draft_cached || !reserve(true, slot, end)) return;
    for (; s.draft_cached < end; ++s.draft_cached) draft_.write(slot, s.draft_cached, s.tokens[s.draft_cached]);
  }

  // Another slot goes on from here, or from some way back.
  void fork(int slot, int to) {
    if (slots_[to].active) return;
    const Slot& s = slots_[slot];
    const int positions = below(2) ? s.target_cached : below(s.target_cached + 1);
    const auto share = [&](Memory& memory, int count) {
      Pages::Copy copy;
      if (!memory.pages.share(slot, to, count, copy)) return false;
      if (copy.from >= 0) std::copy_n(memory.values.begin() + copy.from * size_, size_, memory.values.begin() + copy.to * size_);
      return true;
    };
    if (!share(target_, positions)) return;
    slots_[to] = {{s.tokens.begin(), s.tokens.begin() + positions + 1}, positions, 0, true};
    slots_[to].tokens.back() = below(2);
    if (const int drafts = std::min(positions, s.draft_cached); share(draft_, drafts)) slots_[to].draft_cached = drafts;
    ++forks;
  }

  void end(int slot, bool keep) {
    Slot& s = slots_[slot];
    if (keep) {
      const std::set<int> held = target_.held_by_slots(int(slots_.size()));
      ++reference_.now;
      bool parent_has_draft = true, others = false, others_drafts = false;
      for (int end = size_; end <= s.target_cached; end += size_) {
        const std::vector<int32_t> text(s.tokens.begin(), s.tokens.begin() + end);
        auto entry = reference_.entries.find(text);
        const int own = target_.pages.table(slot)[end / size_ - 1];
        if (entry == reference_.entries.end()) {
          if (others && holders(target_, own) > 1) break;
          if (!reference_.make_room(kTargetBytes, held)) break;
          entry = reference_.entries.emplace(text, Reference::Entry{own, -1, 0}).first;
          reference_.bytes += kTargetBytes;
        }
        entry->second.used = reference_.now;
        others |= entry->second.target != own;
        if (end <= s.draft_cached) {
          const int own_draft = draft_.pages.table(slot)[end / size_ - 1];
          if (entry->second.draft < 0 && parent_has_draft && !(others_drafts && holders(draft_, own_draft) > 1) && reference_.make_room(kDraftBytes, held)) {
            entry->second.draft = own_draft;
            reference_.bytes += kDraftBytes;
            ++kept_drafts;
          }
          others_drafts |= entry->second.draft != own_draft;
        }
        parent_has_draft = entry->second.draft >= 0;
      }
      cache_.keep(slot, s.tokens, s.target_cached, s.draft_cached);
    }
    target_.pages.release(slot);
    draft_.pages.release(slot);
    s = {};
  }

  void check() {
    for (int slot = 0; slot < int(slots_.size()); ++slot) {
      const Slot& s = slots_[slot];
      for (int i = 0; i < s.target_cached; ++i) CHECK(target_.at(slot, i) == s.tokens[i], "slot ", slot, ", position ", i, " of the target");
      for (int i = 0; i < s.draft_cached; ++i) CHECK(draft_.at(slot, i) == s.tokens[i], "slot ", slot, ", position ", i, " of the draft");
    }
    std::map<int, int> holders, draft_holders;
    for (int slot = 0; slot < int(slots_.size()); ++slot) {
      for (int i = 0; i < target_.pages.held(slot); ++i) ++holders[target_.pages.table(slot)[i]];
      for (int i = 0; i < draft_.pages.held(slot); ++i) ++draft_holders[draft_.pages.table(slot)[i]];
    }
    size_t nodes = 0;
    for (const auto& [text, entry] : reference_.entries) {
      const PrefixCache::Node& node = cache_.node(entry.target);
      CHECK(node.parent != PrefixCache::kNobody && node.draft_page == entry.draft, "node of page ", entry.target, ": draft's page ", node.draft_page,
            ", expected ", entry.draft);
      for (int i = 0; i < size_; ++i) {
        const int token = text[text.size() - size_ + i];
        CHECK(target_.values[size_t(entry.target) * size_ + i] == token, "page ", entry.target, " holds another text");
        if (entry.draft >= 0) CHECK(draft_.values[size_t(entry.draft) * size_ + i] == token, "the draft's page ", entry.draft, " holds another text");
      }
      ++holders[entry.target];
      if (entry.draft >= 0) ++draft_holders[entry.draft];
      ++nodes;
    }
    for (int page = 0; page < target_.pages.num_pages(); ++page) {
      CHECK(target_.pages.references(page) == holders[page], "page ", page, ": count ", target_.pages.references(page), ", holders ", holders[page]);
      CHECK(draft_.pages.references(page) == draft_holders[page], "the draft's page ", page);
      const int parent = cache_.node(page).parent;
      nodes -= parent != PrefixCache::kNobody;
      if (parent >= 0) CHECK(cache_.node(parent).parent != PrefixCache::kNobody, "a node without its parent");
    }
    CHECK(nodes == 0, "nodes that should have gone");
    CHECK(cache_.bytes() == reference_.bytes && cache_.bytes() <= reference_.budget, cache_.bytes(), " bytes, expected ", reference_.bytes);
  }

  std::mt19937 random_;
  int size_;
  Memory target_, draft_;
  PrefixCache cache_;
  Reference reference_;
  std::vector<Slot> slots_;
  std::vector<std::vector<int32_t>> texts_;
};

}  // namespace

TEST(a_tree_is_a_map) {
  long hits = 0, evicted = 0, refused = 0, kept_drafts = 0, forks = 0;
  for (unsigned round = 0; round < 6000; ++round) {
    const int size = 1 + int(round % 4), slots = 1 + int(round % 5), num_pages = 4 + int(round * 7 % 23);
    const int64_t budgets[] = {-1, -1, 0, 999, 1000, 1300, 2600, 5200};
    World world(round, num_pages, slots, size, budgets[round % 8]);
    for (int step = 0; step < 150; ++step) world.step();
    hits += world.hits, evicted += world.evicted, refused += world.refused, kept_drafts += world.kept_drafts, forks += world.forks;
  }
  std::printf("%ld hits, %ld evictions for slots, %ld refusals, %ld pages of drafts kept, %ld forks\n", hits, evicted, refused, kept_drafts, forks);
  CHECK(hits > 30000 && evicted > 10000 && refused > 10000 && kept_drafts > 10000 && forks > 5000);
}

// With a draft or without one, in pages as the engine has them.
TEST(without_a_draft) {
  Pages pages(4, 2, 4, 64);
  PrefixCache cache({&pages, 10}, {nullptr, 0}, -1);
  std::vector<int32_t> tokens(200);
  for (int i = 0; i < 200; ++i) tokens[i] = i;
  CHECK(cache.adopt(0, tokens, true).target == 0);
  CHECK(cache.reserve_target(0, 199));
  cache.keep(0, tokens, 199, 0);
  pages.release(0);
  CHECK(pages.num_free() == 1 && cache.bytes() == 30);
  CHECK(cache.adopt(1, std::span(tokens).first(191), true).target == 128);  // a page of 63 positions is none
  CHECK(cache.reserve_target(1, 192) && pages.num_free() == 0);
  CHECK(cache.reserve_target(0, 64) && cache.bytes() == 20);  // the third page goes; the others are in use
  CHECK(!cache.reserve_target(0, 65) && cache.bytes() == 20);
}

TEST_MAIN()
