// Who holds which KV page: a pool of reference-counted pages and one page table per slot. Pure bookkeeping, no memory.
//
// Invariants after every call: a page is free, or held as often as its count says, by slots and by whoever retained it without a slot
// (the prefix cache); a slot holds exactly the pages of positions [0, reserved(slot)); a page held more than once is never written:
// share copies the one that would be, and what adopt takes ends where the slot begins to write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace paceline {

class Pages {
 public:
  Pages(int num_pages, int num_slots, int pages_per_slot, int page_positions);

  // Pages needed for that many positions: the only place that rounds.
  int pages_for(int positions) const { return (positions + page_positions_ - 1) / page_positions_; }

  // Make [0, positions) writable for the slot. False, and nothing taken, when the pool has too few pages.
  [[nodiscard]] bool reserve(int slot, int positions);
  // Give back every page that no position in [0, positions) uses.
  void truncate(int slot, int positions);
  void release(int slot) { truncate(slot, 0); }

  // An empty slot `to` gets the first `positions` of `from`. Whole pages are shared; a page only partly used will be written
  // by both, so `to` gets one of its own: {source, copy} is returned for the backend to copy ({-1, -1} when there is none).
  struct Copy {
    int32_t from = -1, to = -1;
  };
  [[nodiscard]] bool share(int from, int to, int positions, Copy& copy);

  // Hold a page that somebody holds once more, without a slot; and give it back.
  void retain(int page);
  void drop(int page);
  // An empty slot gets `count` pages that somebody holds, whole and shared: it writes behind them only.
  void adopt(int slot, const int32_t* pages, int count);

  int num_pages() const { return int(count_.size()); }
  int num_free() const { return int(free_.size()); }
  int held(int slot) const { return held_[slot]; }
  int pages_per_slot() const { return pages_per_slot_; }
  int page_positions() const { return page_positions_; }
  int references(int page) const { return count_[page]; }
  const int32_t* table(int slot) const { return table_.data() + size_t(slot) * pages_per_slot_; }

 private:
  int32_t& entry(int slot, int index) { return table_[size_t(slot) * pages_per_slot_ + index]; }
  void append(int slot, int page);

  int pages_per_slot_, page_positions_;
  std::vector<int32_t> free_;   // a stack: the page freed last is the warmest
  std::vector<int32_t> count_;  // [num_pages] how often it is held
  std::vector<int32_t> table_;  // [num_slots, pages_per_slot]
  std::vector<int> held_;       // [num_slots]
};

}  // namespace paceline
