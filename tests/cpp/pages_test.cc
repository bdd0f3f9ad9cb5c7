// Pages and KvCache: who holds which page, all or nothing on a short pool, and what a fork shares or copies.
#include <random>

#include "cpp/test.h"
#include "model/kv_cache.h"

using namespace paceline;
using namespace paceline::test;

namespace {

// Every page is free or held, as often as its count says: by slots, and by whoever retained it.
void check_conservation(const Pages& pages, int num_slots, const std::vector<int>& retained = {}) {
  std::vector<int> holders(pages.num_pages(), 0);
  for (int page : retained) ++holders[page];
  for (int slot = 0; slot < num_slots; ++slot)
    for (int i = 0; i < pages.held(slot); ++i) {
      const int page = pages.table(slot)[i];
      CHECK(page >= 0 && page < pages.num_pages(), "slot ", slot, " holds page ", page);
      ++holders[page];
    }
  int free = 0;
  for (int page = 0; page < pages.num_pages(); ++page) {
    CHECK(pages.references(page) == holders[page], "page ", page, ": count ", pages.references(page), ", holders ", holders[page]);
    free += holders[page] == 0;
  }
  CHECK(pages.num_free() == free, pages.num_free(), " pages in the pool, ", free, " held by nobody");
}

}  // namespace

TEST(pages_for_rounds_up) {
  for (int size : {1, 4, 64}) {
    const Pages pages(1, 1, 1, size);
    for (int positions = 0; positions <= 3 * size; ++positions) {
      int count = 0;
      while (count * size < positions) ++count;
      CHECK(pages.pages_for(positions) == count, positions, " positions in pages of ", size);
    }
  }
}

TEST(reserve_covers_every_position_and_nothing_more) {
  for (int size : {1, 4, 16, 64}) {
    Pages pages(9, 2, 9, size);
    for (int positions = 0; positions <= 9 * size; ++positions) {
      CHECK(pages.reserve(0, positions));
      CHECK(pages.held(0) == (positions + size - 1) / size, positions, " positions, ", pages.held(0), " pages of ", size);
      check_conservation(pages, 2);
    }
    CHECK(pages.reserve(0, 1) && pages.held(0) == 9);  // never gives back
  }
}

TEST(reserve_is_all_or_nothing) {
  Pages pages(5, 2, 8, 4);
  CHECK(pages.reserve(0, 9));  // 3 of 5
  CHECK(pages.reserve(1, 3));
  for (int positions = 9; positions <= 32; ++positions) {
    CHECK(!pages.reserve(1, positions), positions, " positions out of 2 pages");
    CHECK(pages.held(1) == 1 && pages.num_free() == 1);
    check_conservation(pages, 2);
  }
  CHECK(pages.reserve(1, 8) && pages.num_free() == 0);
  CHECK(pages.reserve(1, 8) && pages.reserve(0, 12));  // nothing more is needed: an empty pool is no obstacle
}

TEST(reserve_refuses_more_than_a_table_holds) {
  Pages pages(9, 1, 3, 4);
  CHECK(pages.reserve(0, 12));
  CHECK_THROWS((void)pages.reserve(0, 13), std::invalid_argument, "[reserve] positions must be at most 12, got 13");
  check_conservation(pages, 1);
}

TEST(truncate_keeps_what_is_used) {
  for (int size : {1, 4, 64})
    for (int keep = 0; keep <= 7 * size; ++keep) {
      Pages pages(7, 1, 7, size);
      CHECK(pages.reserve(0, 7 * size));
      const std::vector<int32_t> before(pages.table(0), pages.table(0) + 7);
      pages.truncate(0, keep);
      CHECK(pages.held(0) == (keep + size - 1) / size, "keep ", keep, " of pages of ", size, ": ", pages.held(0));
      for (int i = 0; i < pages.held(0); ++i) CHECK(pages.table(0)[i] == before[i], "page ", i, " moved");
      check_conservation(pages, 1);
      pages.truncate(0, 7 * size);  // truncating to more is no reservation
      CHECK(pages.held(0) == (keep + size - 1) / size);
    }
}

TEST(share_counts_whole_pages_and_copies_the_partly_used_one) {
  for (int positions = 0; positions <= 12; ++positions) {
    Pages pages(6, 3, 4, 4);
    Pages::Copy copy;
    CHECK(pages.reserve(0, 12));
    CHECK(pages.share(0, 1, positions, copy));
    const int whole = positions / 4;
    CHECK(pages.held(1) == pages.pages_for(positions));
    for (int i = 0; i < whole; ++i) CHECK(pages.table(1)[i] == pages.table(0)[i] && pages.references(pages.table(0)[i]) == 2);
    if (positions % 4) {
      CHECK(copy.from == pages.table(0)[whole] && copy.to == pages.table(1)[whole] && copy.from != copy.to, "position ", positions);
      CHECK(pages.references(copy.from) == 1 && pages.references(copy.to) == 1);
    } else {
      CHECK(copy.from == -1 && copy.to == -1);
    }
    check_conservation(pages, 3);

    // The next position of the fork never lies in a page of two.
    CHECK(pages.reserve(1, positions + 1));
    CHECK(pages.references(pages.table(1)[positions / 4]) == 1);
    // Whoever goes last gives the page back.
    pages.release(0);
    check_conservation(pages, 3);
    for (int i = 0; i < whole; ++i) CHECK(pages.references(pages.table(1)[i]) == 1);
    pages.release(1);
    CHECK(pages.num_free() == 6);
  }
}

TEST(share_without_a_page_for_the_copy_takes_nothing) {
  Pages pages(3, 2, 4, 4);
  Pages::Copy copy;
  CHECK(pages.reserve(0, 12));
  CHECK(!pages.share(0, 1, 7, copy));
  CHECK(pages.held(1) == 0);
  check_conservation(pages, 2);
  CHECK(pages.share(0, 1, 8, copy) && pages.held(1) == 2);  // whole pages need none
  check_conservation(pages, 2);
}

TEST(share_refuses_a_receiver_that_holds_pages_and_more_than_there_is) {
  Pages pages(6, 2, 4, 4);
  Pages::Copy copy;
  CHECK(pages.reserve(0, 8) && pages.reserve(1, 1));
  CHECK_THROWS((void)pages.share(0, 1, 4, copy), std::invalid_argument, "[share] the receiving slot must be empty, it holds 1");
  pages.release(1);
  CHECK_THROWS((void)pages.share(0, 1, 9, copy), std::invalid_argument, "[share] 9 positions are more than slot 0 holds");
  check_conservation(pages, 2);
}

TEST(a_retained_page_outlives_its_slot) {
  Pages pages(4, 2, 4, 4);
  CHECK(pages.reserve(0, 12));
  const std::vector<int32_t> first(pages.table(0), pages.table(0) + 2);
  for (int32_t page : first) pages.retain(page);
  check_conservation(pages, 2, {first[0], first[1]});
  pages.release(0);
  check_conservation(pages, 2, {first[0], first[1]});
  CHECK(pages.num_free() == 2);
  pages.adopt(1, first.data(), 2);
  CHECK(pages.held(1) == 2 && pages.table(1)[0] == first[0] && pages.table(1)[1] == first[1]);
  check_conservation(pages, 2, {first[0], first[1]});
  CHECK(pages.reserve(1, 9) && pages.references(pages.table(1)[2]) == 1);  // it writes behind them only
  pages.drop(first[0]);
  check_conservation(pages, 2, {first[1]});
  pages.release(1);
  check_conservation(pages, 2, {first[1]});
  pages.drop(first[1]);
  CHECK(pages.num_free() == 4);
}

TEST(what_nobody_holds_cannot_be_held_once_more) {
  Pages pages(4, 2, 2, 4);
  CHECK(pages.reserve(0, 5));
  const int32_t held[] = {pages.table(0)[0], pages.table(0)[1], pages.table(0)[0]};
  int32_t nobodys = 0;
  while (pages.references(nobodys)) ++nobodys;
  CHECK_THROWS(pages.retain(nobodys), std::invalid_argument, message("[retain] page ", nobodys, " must be held by somebody"));
  CHECK_THROWS(pages.drop(nobodys), std::invalid_argument, message("[drop] page ", nobodys, " must be held by somebody"));
  const int32_t mixed[] = {held[0], nobodys};
  CHECK_THROWS(pages.adopt(1, mixed, 2), std::invalid_argument, message("[adopt] page ", nobodys, " must be held by somebody"));
  CHECK(pages.held(1) == 0);
  CHECK_THROWS(pages.adopt(0, held, 1), std::invalid_argument, "[adopt] the receiving slot must be empty, it holds 2 pages");
  CHECK_THROWS(pages.adopt(1, held, 3), std::invalid_argument, "[adopt] count must be at most 2 pages, got 3");
  check_conservation(pages, 2);
}

TEST(random_operations_conserve_pages) {
  std::mt19937 random(5);
  const auto below = [&](int n) { return int(random() % unsigned(n)); };
  for (int round = 0; round < 300; ++round) {
    const int size = 1 << below(4), slots = 1 + below(5), num_pages = 1 + below(20), per_slot = 1 + below(8);
    Pages pages(num_pages, slots, per_slot, size);
    std::vector<int> retained;
    for (int step = 0; step < 60; ++step) {
      const int slot = below(slots), other = below(slots), positions = below(per_slot * size + 1);
      const int held = pages.held(slot), free = pages.num_free();
      Pages::Copy copy;
      if (below(6) == 0 && held > 0) {
        retained.push_back(pages.table(slot)[below(held)]);
        pages.retain(retained.back());
      } else if (below(6) == 0 && !retained.empty()) {
        std::swap(retained[below(int(retained.size()))], retained.back());
        pages.drop(retained.back());
        retained.pop_back();
      } else if (below(6) == 0 && held == 0 && !retained.empty()) {
        const std::vector<int32_t> some(retained.begin(), retained.begin() + below(std::min(per_slot, int(retained.size())) + 1));
        pages.adopt(slot, some.data(), int(some.size()));
        CHECK(pages.held(slot) == int(some.size()) && std::equal(some.begin(), some.end(), pages.table(slot)));
      } else if (below(3) == 0) {
        pages.truncate(slot, positions);
        CHECK(pages.held(slot) == std::min(held, pages.pages_for(positions)));
      } else if (pages.held(other) == 0 && other != slot && pages.pages_for(positions) <= held) {
        const bool done = pages.share(slot, other, positions, copy);
        CHECK(done == (positions % size == 0 || free > 0));
        CHECK(pages.held(other) == (done ? pages.pages_for(positions) : 0));
      } else {
        const bool done = pages.reserve(slot, positions);
        CHECK(done == (pages.pages_for(positions) - held <= free));
        CHECK(pages.held(slot) == (done ? std::max(held, pages.pages_for(positions)) : held));
      }
      check_conservation(pages, slots, retained);
    }
    for (int page : retained) pages.drop(page);
    for (int slot = 0; slot < slots; ++slot) pages.release(slot);
    CHECK(pages.num_free() == num_pages);
  }
}

// A fork reads what its parent cached, in every layer, keys and values, of both element types; what either writes later is its
// own. Contents are told apart by hashes that do not know pages.
TEST(a_forked_cache_holds_its_parents_rows) {
  const auto backend = make_cpu_backend(1, "");
  std::mt19937 random(9);
  for (DType dtype : {DType::fp32, DType::bf16})
    for (int positions : {1, 63, 64, 65, 127, 128, 130}) {
      const AttentionShape shape{2, 2, 4, nullptr, nullptr};
      const int layers = 3;
      KvCache cache(*backend, {layers, 2, 4, dtype}, 8, 3, 192);
      CHECK(cache.reserve(0, 130));
      cache.publish();
      const size_t page = size_t(kPagePositions) * 2 * 4 * size_of(dtype);
      // Three pages of every plane, filled at random. Finite or not does not matter: nobody computes with them.
      for (int i = 0; i < layers; ++i)
        for (void* plane : {cache.layer(i).keys, cache.layer(i).values})
          for (size_t byte = 0; byte < 8 * page; ++byte) static_cast<uint8_t*>(plane)[byte] = uint8_t(random());
      const std::vector<uint64_t> parent = cache.hashes(0, 130, shape);
      CHECK(cache.share(0, 2, positions, shape));
      cache.publish();
      const std::vector<uint64_t> fork = cache.hashes(2, positions, shape);
      for (int i = 0; i < positions; ++i) CHECK(fork[i] == parent[i], positions, " shared: position ", i, " differs");

      // The parent goes on writing in its partly used page: the fork does not see it.
      const int last = cache.pages().table(0)[positions / kPagePositions];
      if (positions % kPagePositions) {
        for (int i = 0; i < layers; ++i)
          for (void* plane : {cache.layer(i).keys, cache.layer(i).values})
            std::memset(static_cast<char*>(plane) + last * page, 0, page);
        CHECK(cache.hashes(0, positions, shape)[positions - 1] != parent[positions - 1]);
      }
      CHECK(cache.hashes(2, positions, shape) == fork);
      // Nor does it matter to the fork that the parent ends and its pages are taken by another.
      cache.truncate(0, 0);
      CHECK(cache.reserve(1, 128));
      cache.publish();
      for (int i = 0; i < 2; ++i)
        for (int k = 0; k < cache.pages().held(2); ++k) CHECK(cache.pages().table(1)[i] != cache.pages().table(2)[k]);
      CHECK(cache.hashes(2, positions, shape) == fork);
    }
}

TEST(a_cache_that_cannot_share_says_so_and_changes_nothing) {
  const auto backend = make_cpu_backend(1, "");
  const AttentionShape shape{1, 1, 2, nullptr, nullptr};
  KvCache cache(*backend, {1, 1, 2, DType::fp32}, 2, 2, 128);
  CHECK(cache.reserve(0, 100));
  CHECK(!cache.share(0, 1, 70, shape));
  CHECK(cache.pages().held(1) == 0 && cache.pages().num_free() == 0);
  CHECK(cache.share(0, 1, 64, shape) && cache.pages().held(1) == 1);
  CHECK(!cache.reserve(1, 65));
}

// The device sees tables as they were published last, and every change reaches it.
TEST(publish_brings_tables_to_the_device) {
  const auto backend = make_cpu_backend(1, "");
  const AttentionShape shape{1, 1, 2, nullptr, nullptr};
  KvCache cache(*backend, {1, 1, 2, DType::fp32}, 6, 3, 192);
  const auto check_published = [&] {
    cache.publish();
    const KvLayer layer = cache.layer(0);
    for (int slot = 0; slot < 3; ++slot)
      for (int i = 0; i < cache.pages().held(slot); ++i)
        CHECK(layer.page_table[slot * layer.pages_per_slot + i] == cache.pages().table(slot)[i], "slot ", slot, ", page ", i);
  };
  CHECK(cache.reserve(1, 1));
  check_published();
  CHECK(cache.reserve(0, 65));
  check_published();
  CHECK(cache.share(0, 2, 65, shape));
  check_published();
  cache.truncate(0, 0);
  CHECK(cache.reserve(1, 190));
  check_published();
  const int last = cache.pages().table(1)[2];
  cache.truncate(1, 64);
  CHECK(cache.reserve(0, 64) && cache.reserve(1, 190) && cache.pages().table(1)[2] != last);  // the same slot, other pages
  check_published();
}

TEST_MAIN()
