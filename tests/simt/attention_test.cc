// attention.cu against double, and against itself: a row's bits are its own, whatever it shares a pass, a tile, a page table with, in
// every order of threads and either split of the work. Tolerances come from the oracle (reference/near.h).
#include <map>
#include <numeric>

#include "cpp/test.h"
#include "math/bfloat16.h"
#include "reference/attention.h"
#include "simt/kernel_test.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr float kUntouched = 1234.5f;
const float kNan = std::nanf("");

struct Heads {
  int heads, kv_heads, head_dim;
};
struct Row {
  int slot, position;
};
enum class Split { pages, groups };

// Sequences in slots. What a sequence holds, and what a row of it asks, is fixed by its number and by positions alone.
struct World {
  Heads shape;
  DType dtype;
  std::vector<int> sequences;  // of each slot
  int per_slot;                // pages
  unsigned placement = 1;
  int hole = -1;               // a position whose key and value are NaN in every slot, as far as pages hold that

  std::vector<float> kv_of(int sequence, int plane, int positions) const {  // [positions, Hkv, Dh], as the pages hold it
    auto values = random_floats(size_t(positions) * shape.kv_heads * shape.head_dim, 100 + 2 * sequence + plane);
    if (dtype == DType::bf16)
      for (float& v : values) v = from_bf16(to_bf16(v));
    return values;
  }
  std::vector<float> query_of(int sequence, int position) const {
    return random_floats(size_t(shape.heads) * shape.head_dim, 10000 + 2000 * sequence + position, 2);
  }
  AttentionShape model() const { return {shape.heads, shape.kv_heads, shape.head_dim, nullptr, nullptr}; }

  std::vector<int32_t> table() const {
    std::vector<int32_t> all(sequences.size() * per_slot + 2);
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), std::mt19937(placement));
    all.resize(sequences.size() * per_slot);
    return all;
  }

  // One plane of all pages; NaN wherever no row of the slot looks.
  std::vector<char> pages(int plane, const std::vector<Row>& rows) const {
    const auto where = table();
    const size_t width = size_of(dtype), dh = shape.head_dim, count = (where.size() + 2) * shape.kv_heads * 64 * dh;
    std::vector<char> all(count * width);
    const auto set = [&](size_t at, float value) {
      const bf16 half = to_bf16(value);
      std::memcpy(&all[at * width], dtype == DType::fp32 ? static_cast<const void*>(&value) : &half, width);
    };
    for (size_t i = 0; i < count; ++i) set(i, kNan);
    for (size_t slot = 0; slot < sequences.size(); ++slot) {
      int positions = 0;
      for (const Row& row : rows)
        if (row.slot == int(slot)) positions = std::max(positions, row.position + 1);
      const auto values = kv_of(sequences[slot], plane, positions);
      for (int p = 0; p < positions; ++p)
        for (int head = 0; head < shape.kv_heads; ++head)
          for (size_t i = 0; i < dh; ++i) {
            const size_t page = where[slot * per_slot + p / 64];
            const float value = values[(size_t(p) * shape.kv_heads + head) * dh + i];
            const float none = plane == 1 && dtype == DType::bf16 ? 0 : kNan;  // epilogues.cu
            set(((page * shape.kv_heads + head) * 64 + p % 64) * dh + i, p == hole ? none : value);
          }
    }
    return all;
  }
};

// The world and rows in device memory, so that they can be run again and again. Behind the rows that live lie some of a pass before, of
// the last one's slot and far behind all its pages.
class DevicePass {
 public:
  DevicePass(const World& world, const std::vector<Row>& rows)
      : world_(world), live_(int(rows.size())), stride_(padded(world.shape.heads) + 2 * padded(world.shape.kv_heads)),
        rows_(column(rows, &Row::slot), column(rows, &Row::position), column(rows, &Row::slot)), qkv_(queries(rows)),
        keys_(world.pages(0, rows)), values_(world.pages(1, rows)), table_(world.table()) {
    for (const Row& row : rows) end_ = std::max(end_, row.position + 1);
    cuda::check(cudaMemcpyAsync(rows_.rows().live, &live_, sizeof live_, cudaMemcpyHostToDevice, stream()), "cudaMemcpyAsync");
  }

  // What comes out for each row. Rows that do not live keep what they held. bounded: the host knows how far positions go.
  std::vector<std::vector<float>> run(Split split, bool bounded = false) const {
    const int q_size = world_.shape.heads * world_.shape.head_dim, capacity = rows_.rows().capacity;
    const int nodes = split == Split::pages ? world_.per_slot : (world_.per_slot + kPageGroup - 1) / kPageGroup;
    const size_t bytes = size_t(capacity) * world_.shape.heads * nodes * (world_.shape.head_dim + 2) * sizeof(float);
    Device<char> scratch(bytes);
    Device<float> out(std::vector<float>(size_t(capacity) * q_size, kUntouched));
    const KvLayer kv{keys_.data(), values_.data(), table_.data(), world_.per_slot, world_.dtype};
    Rows rows = rows_.rows();
    if (bounded) rows.positions = end_;
    cuda::attention(stream(), rows, qkv_.data(), world_.model(), kv, scratch.data(), bytes, out.data());
    const auto got = out.read();
    for (size_t i = size_t(live_) * q_size; i < got.size(); ++i) CHECK(got[i] == kUntouched, "wrote a row that does not live");
    std::vector<std::vector<float>> all;
    for (int row = 0; row < live_; ++row) all.emplace_back(got.begin() + size_t(row) * q_size, got.begin() + size_t(row + 1) * q_size);
    return all;
  }

 private:
  static std::vector<int32_t> column(const std::vector<Row>& rows, int Row::*member) {
    std::vector<int32_t> all;
    for (const Row& row : rows) all.push_back(row.*member);
    const Row stale{rows.empty() ? 0 : rows.back().slot, 1 << 30};
    all.insert(all.end(), 2, stale.*member);
    return all;
  }
  int padded(int heads) const { return cuda::padded_columns(heads * world_.shape.head_dim); }
  std::vector<float> queries(const std::vector<Row>& rows) const {
    std::vector<float> all(rows.size() * stride_, kNan);  // what is not a query is not looked at
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto q = world_.query_of(world_.sequences[rows[i].slot], rows[i].position);
      std::copy(q.begin(), q.end(), all.begin() + i * stride_);
    }
    return all;
  }

  const World& world_;
  int live_, stride_, end_ = 1;
  DeviceRows rows_;
  Device<float> qkv_;
  Device<char> keys_, values_;
  Device<int32_t> table_;
};

std::string text_of(const World& world) {
  return message("heads ", world.shape.heads, "/", world.shape.kv_heads, " x ", world.shape.head_dim, ", ", name_of(world.dtype));
}

void check_same(const std::vector<float>& got, const std::vector<float>& want, const std::string& where) {
  for (size_t i = 0; i < want.size(); ++i)
    CHECK(bits_of(got[i]) == bits_of(want[i]), where, ", column ", i, ": ", got[i], " and ", want[i]);
}

// One order and split is judged by the oracle, for some heads; the others must give its bits.
std::vector<std::vector<float>> checked(const World& world, const std::vector<Row>& rows, const std::string& where) {
  const DevicePass device(world, rows);
  const auto first = device.run(Split::pages);
  int runs = 0;
  for_each_order([&](const std::string& order) {
    const Split split = runs++ % 2 ? Split::pages : Split::groups;
    const auto again = device.run(split);
    for (size_t r = 0; r < rows.size(); ++r) check_same(again[r], first[r], message(where, ", ", order, ", row ", r));
  });
  const int dh = world.shape.head_dim, group = world.shape.heads / world.shape.kv_heads;
  std::map<int, std::vector<float>> planes[2];  // by sequence
  for (size_t r = 0; r < rows.size(); ++r) {
    const int sequence = world.sequences[rows[r].slot], positions = rows[r].position + 1;
    const auto q = world.query_of(sequence, rows[r].position);
    for (int head = int(r) % std::max(1, world.shape.heads / 3); head < world.shape.heads; head += std::max(2, world.shape.heads / 2 + 1)) {
      std::vector<std::vector<double>> held[2];
      for (int plane = 0; plane < 2; ++plane) {
        auto& all = planes[plane][sequence];
        if (all.size() < size_t(positions) * world.shape.kv_heads * dh) all = world.kv_of(sequence, plane, positions);
        for (int p = 0; p < positions; ++p) {
          const float* at = &all[(size_t(p) * world.shape.kv_heads + head / group) * dh];
          held[plane].emplace_back(at, at + dh);
        }
      }
      std::vector<reference::Near> query;
      const bool is_bf16 = world.dtype == DType::bf16;
      for (int i = 0; i < dh; ++i) query.push_back(reference::exactly(is_bf16 ? from_bf16(to_bf16(q[head * dh + i])) : q[head * dh + i]));
      const auto want = reference::attention(query, held[0], held[1], is_bf16 ? kPagePositions : 0);
      for (int i = 0; i < dh; ++i)
        CHECK(reference::agrees(first[r][head * dh + i], want[i]), where, ", row ", r, " at ", rows[r].position, ", head ", head,
              ", column ", i, ": got ", first[r][head * dh + i], ", expected ", want[i].value, " +- ", want[i].error);
    }
  }
  return first;
}

std::vector<Row> run_of(int slot, int first, int count) {
  std::vector<Row> rows;
  for (int i = 0; i < count; ++i) rows.push_back({slot, first + i});
  return rows;
}

}  // namespace

TEST(heads_of_every_shape) {
  for (const Heads& shape : {Heads{1, 1, 8}, {2, 1, 48}, {4, 1, 64}, {3, 3, 80}, {8, 1, 128}, {2, 2, 256}, {40, 1, 2}, {6, 2, 100},
                             {5, 1, 6}, {7, 1, 130}, {20, 1, 64}, {40, 2, 128}})
    for (DType dtype : {DType::fp32, DType::bf16})
      for (int context : {1, 2, 63, 64, 65, 130}) {
        const World world{shape, dtype, {7, 8}, 3};
        const int count = std::min(context, 1 + (context + shape.head_dim) % 7);
        checked(world, run_of(1, context - count, count), message(text_of(world), ", context ", context));
      }
}

TEST(ends_of_pages_and_groups) {
  for (DType dtype : {DType::fp32, DType::bf16})
    for (int context : {511, 512, 513, 1024, 1101}) {
      const World world{{2, 1, 16}, dtype, {3, 4}, 18};
      checked(world, run_of(0, context - 3, 3), message(text_of(world), ", context ", context));
    }
  const World longer{{2, 1, 64}, DType::bf16, {5}, 70};  // more groups than the second kernel takes at a time
  checked(longer, {{0, 4400}}, "nine groups");
}

TEST(ragged_rows_of_several_slots) {
  for (DType dtype : {DType::fp32, DType::bf16}) {
    const World world{{3, 1, 32}, dtype, {1, 2, 3, 4}, 18};
    // Positions are anything, and one slot has more rows than a tile.
    std::vector<Row> rows = {{2, 513}, {2, 0}, {2, 64}, {0, 63}, {3, 1100}, {3, 512}, {3, 511}, {3, 5}};
    for (int i = 0; i < 19; ++i) rows.push_back({1, (i * 53) % 200});
    checked(world, rows, text_of(world));
  }
}

// Seventeen rows of one sequence: any first few of them, then each alone, in another slot, on other pages, behind others' rows.
TEST(a_row_s_bits_are_its_own) {
  for (const Heads& shape : {Heads{4, 1, 20}, {2, 2, 24}})
    for (DType dtype : {DType::fp32, DType::bf16}) {
      const World world{shape, dtype, {1}, 10};
      const auto rows = run_of(0, 500, 17);  // across the end of a group
      const auto all = DevicePass(world, rows).run(Split::pages);
      for (int count = 1; count < 17; ++count) {
        const auto some = DevicePass(world, {rows.begin(), rows.begin() + count}).run(count % 2 ? Split::groups : Split::pages, count % 3 == 0);
        for (int r = 0; r < count; ++r) check_same(some[r], all[r], message(text_of(world), ", the first ", count, " rows, row ", r));
      }
      for (int r : {0, 6, 11, 12, 16}) {
        const World other{shape, dtype, {9, 5, 1}, 12 + r, unsigned(r + 2)};
        auto company = run_of(0, 30, r);
        company.push_back({1, 700});
        company.push_back({2, rows[r].position});
        for (Split split : {Split::pages, Split::groups}) {
          const auto alone = DevicePass(other, {{2, rows[r].position}}).run(split), among = DevicePass(other, company).run(split);
          check_same(alone[0], all[r], message(text_of(world), ", row ", r, " alone"));
          check_same(among.back(), all[r], message(text_of(world), ", row ", r, " among others"));
        }
      }
    }
}

// A pass of several tiles, so wide that a block takes several nodes: each row as if alone.
TEST(many_rows) {
  const World world{{8, 8, 2}, DType::bf16, {1, 2}, 9};
  std::vector<Row> rows = run_of(0, 420, 150);
  for (const Row& row : run_of(1, 100, 50)) rows.push_back(row);
  for (Split split : {Split::pages, Split::groups}) {
    const auto all = DevicePass(world, rows).run(split);
    for (int r : {0, 15, 16, 31, 63, 64, 149, 150, 160, 199})
      check_same(DevicePass(world, {rows[r]}).run(Split::pages)[0], all[r], message("row ", r));
  }
}

// Rows of one tile share its pages; what the later ones see must not touch the earlier ones.
TEST(a_row_sees_nothing_behind_its_position) {
  for (DType dtype : {DType::fp32, DType::bf16})
    for (int hole : {1, 62, 63, 64, 127, 130}) {
      World world{{4, 2, 24}, dtype, {1}, 3};
      const std::vector<Row> rows = {{0, hole + 1}, {0, hole - 1}, {0, 0}, {0, hole}};
      const auto clean = DevicePass(world, rows).run(Split::pages);
      world.hole = hole;
      for (Split split : {Split::pages, Split::groups}) {
        const auto got = DevicePass(world, rows).run(split);
        for (int r : {1, 2}) check_same(got[r], clean[r], message(text_of(world), ", hole ", hole, ", row ", r));
        for (int r : {0, 3})
          for (float value : got[r]) CHECK(std::isnan(value), "a row that sees the hole");
      }
    }
}

TEST(a_pass_without_rows_writes_nothing) {
  const World world{{2, 1, 16}, DType::fp32, {1}, 9};
  for_each_order([&](const std::string&) {
    DevicePass(world, {}).run(Split::pages);
    DevicePass(world, {}).run(Split::groups);
  });
}

TEST(scratch_holds_pages_of_a_few_rows_or_groups_of_all) {
  const AttentionShape shape{4, 2, 64, nullptr, nullptr};
  const size_t node = 4 * (64 + 2) * sizeof(float);
  CHECK(cuda::attention_scratch_bytes(1, 20, shape) == 20 * node);
  CHECK(cuda::attention_scratch_bytes(32, 20, shape) == 32 * 20 * node);
  CHECK(cuda::attention_scratch_bytes(33, 20, shape) == 32 * 20 * node);
  CHECK(cuda::attention_scratch_bytes(512, 20, shape) == 512 * 3 * node);
  DeviceRows rows({0}, {0}, {0});
  const KvLayer kv{nullptr, nullptr, nullptr, 9, DType::fp32};
  const size_t too_few = rows.rows().capacity * 2 * node - 1;
  CHECK_THROWS(cuda::attention(stream(), rows.rows(), nullptr, shape, kv, nullptr, too_few, nullptr), std::invalid_argument, "scratch");
}

TEST_MAIN()
