#include "model/pages.h"

#include "core/error.h"

namespace paceline {

Pages::Pages(int num_pages, int num_slots, int pages_per_slot, int page_positions)
    : pages_per_slot_(pages_per_slot), page_positions_(page_positions), count_(num_pages, 0),
      table_(size_t(num_slots) * pages_per_slot, 0), held_(num_slots, 0) {
  free_.reserve(num_pages);
  for (int page = num_pages - 1; page >= 0; --page) free_.push_back(page);
}

void Pages::append(int slot, int page) {
  entry(slot, held_[slot]++) = page;
  ++count_[page];
}

bool Pages::reserve(int slot, int positions) {
  const int needed = pages_for(positions);
  require(needed <= pages_per_slot_, "[reserve] positions must be at most ", pages_per_slot_ * page_positions_, ", got ", positions);
  if (needed - held_[slot] > num_free()) return false;
  while (held_[slot] < needed) {
    const int page = free_.back();
    free_.pop_back();
    append(slot, page);
  }
  return true;
}

void Pages::truncate(int slot, int positions) {
  const int needed = pages_for(positions);
  while (held_[slot] > needed) drop(entry(slot, --held_[slot]));
}

void Pages::retain(int page) {
  require(count_[page] > 0, "[retain] page ", page, " must be held by somebody");
  ++count_[page];
}

void Pages::drop(int page) {
  require(count_[page] > 0, "[drop] page ", page, " must be held by somebody");
  if (--count_[page] == 0) free_.push_back(page);
}

void Pages::adopt(int slot, const int32_t* pages, int count) {
  require(held_[slot] == 0, "[adopt] the receiving slot must be empty, it holds ", held_[slot], " pages");
  require(count <= pages_per_slot_, "[adopt] count must be at most ", pages_per_slot_, " pages, got ", count);
  for (int i = 0; i < count; ++i) require(count_[pages[i]] > 0, "[adopt] page ", pages[i], " must be held by somebody");
  for (int i = 0; i < count; ++i) append(slot, pages[i]);
}

bool Pages::share(int from, int to, int positions, Copy& copy) {
  require(held_[to] == 0, "[share] the receiving slot must be empty, it holds ", held_[to], " pages");
  require(pages_for(positions) <= held_[from], "[share] ", positions, " positions are more than slot ", from, " holds");
  copy = {};
  const int whole = positions / page_positions_;
  const bool partial = positions % page_positions_ != 0;
  if (partial && free_.empty()) return false;
  for (int i = 0; i < whole; ++i) append(to, entry(from, i));
  if (partial) {
    copy.from = entry(from, whole);
    copy.to = free_.back();
    free_.pop_back();
    append(to, copy.to);
  }
  return true;
}

}  // namespace paceline
