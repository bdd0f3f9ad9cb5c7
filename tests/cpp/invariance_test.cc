// Row invariance: the bits of a row depend on its own sequence up to that row and on nothing else. One transformer layer with
// embedding and head, at every instruction level: each row computed alone, one thread, tidy pages, is the reference for the
// same rows in passes of any size and mixture, permuted slots, scattered pages, one to three threads, KV memory full of NaN
// wherever nothing was written, and a caller whose own floating-point mode is odd.
#include <xmmintrin.h>

#include <tuple>

#include "cpp/forward_pieces.h"
#include "cpp/test.h"

using namespace paceline;
using namespace paceline::test;

namespace {

struct Sizes {
  int d, heads, kv_heads, head_dim, f, v;
};
const Sizes kNarrow{80, 6, 3, 24, 112, 100};  // nothing fits the grid of 16 lanes
const Sizes kMany{64, 8, 1, 128, 96, 64};     // one KV head: page groups are shared out among threads

// Cached positions before the test feeds rows: around the ends of pages (64) and of page groups (512).
const std::vector<int> kCached = {0, 1, 47, 60, 64, 447, 505, 512, 1019, 2570};
constexpr int kFed = 18, kContext = 2600;

struct Place {  // row of sequence `sequence`, its index-th new one
  int sequence, index;
  auto operator<=>(const Place&) const = default;
};
using Pass = std::vector<Place>;

struct World {  // what must not matter
  int threads = 1;
  std::vector<int> slot_of;  // by sequence
  unsigned placement = 0;
  bool poisoned = false;
  unsigned float_mode = 0;  // of the caller; 0 = the usual one
};

struct Bits {
  std::vector<float> logits;
  uint64_t kv;
  bool operator==(const Bits& other) const {
    return kv == other.kv && std::memcmp(logits.data(), other.logits.data(), logits.size() * sizeof(float)) == 0;
  }
};
using Result = std::map<Place, Bits>;

// Keys (seed 0) or values (seed 1) of a sequence before the test: made once, as every layer needs them.
const std::vector<float>& cached_values(int sequence, size_t width, unsigned seed) {
  static std::map<std::tuple<int, size_t, unsigned>, std::vector<float>> made;
  std::vector<float>& values = made[{sequence, width, seed}];
  if (values.size() != kCached[sequence] * width) values = random_values(kCached[sequence] * width, 100 + 2 * unsigned(sequence) + seed);
  return values;
}

class Layer {
 public:
  Layer(const std::string& level, DType dtype, const Sizes& sizes, const World& world)
      : backend_(*backend_of(level, world.threads)), dtype_(dtype), s_(sizes), world_(world), rope_(kContext, s_.head_dim),
        pages_(backend_, int(kCached.size()), kContext, s_.kv_heads, s_.head_dim, kv_dtype_of(dtype), world.placement) {
    const RandomMatrix table(s_.v, s_.d, 1), q(s_.heads * s_.head_dim, s_.d, 2), k(s_.kv_heads * s_.head_dim, s_.d, 3), v(k.n, s_.d, 4);
    const RandomMatrix output(s_.d, q.n, 5), gate(s_.f, s_.d, 6), up(s_.f, s_.d, 7), down(s_.d, s_.f, 8);
    table_ = packed(backend_, dtype, table);
    qkv_ = packed_in_line(backend_, dtype, {&q, &k, &v});
    output_ = packed(backend_, dtype, output);
    gate_up_ = packed_in_turns(backend_, dtype, gate, up);
    down_ = packed(backend_, dtype, down);
    qkv_columns_ = padded(q.n) + 2 * padded(k.n);
    norm_ = random_values(std::max(s_.d, s_.head_dim), 9, 0.2f, 1);
    bias_ = random_values(qkv_columns_, 10);
    if (world.poisoned) pages_.fill_with_nan();
    for (size_t sequence = 0; sequence < kCached.size(); ++sequence) {
      const size_t width = size_t(s_.kv_heads) * s_.head_dim;
      const auto &keys = cached_values(int(sequence), width, 0), &values = cached_values(int(sequence), width, 1);
      for (int position = 0; position < kCached[sequence]; ++position)
        for (int head = 0; head < s_.kv_heads; ++head) {
          const size_t at = position * width + size_t(head) * s_.head_dim;
          pages_.write(world_.slot_of[sequence], position, head, &keys[at], &values[at]);
        }
    }
  }

  // Rows from `kept` on are drafts that will be rejected: they carry other tokens, or NaN, and are not recorded.
  void forward(const Pass& pass, Result& result, int kept = 1 << 30, bool broken = false) {
    const int count = int(pass.size()), q_size = s_.heads * s_.head_dim;
    RowsBuffer buffer(backend_, count);
    std::vector<int32_t> slot, position, token;
    for (int r = 0; r < count; ++r) {
      const Place& place = pass[r];
      slot.push_back(world_.slot_of[place.sequence]);
      position.push_back(kCached[place.sequence] + place.index);
      token.push_back((place.sequence * 31 + place.index * 7 + (r >= kept)) % s_.v);
    }
    buffer.fill(slot, position, token);
    const Rows rows = buffer.rows();
    std::vector<float> x(size_t(count) * s_.d), qkv(size_t(count) * qkv_columns_), attended(size_t(count) * q_size);
    std::vector<float> gated(size_t(count) * s_.f), logits(size_t(count) * s_.v);
    const AttentionShape shape{s_.heads, s_.kv_heads, s_.head_dim, rope_.cosines.data(), rope_.sines.data()};
    const KvLayer kv = pages_.layer();
    const unsigned callers = _mm_getcsr();
    if (world_.float_mode) _mm_setcsr(world_.float_mode);
    backend_.embed(rows, *table_, s_.d, x.data());
    if (broken) std::fill(x.begin() + size_t(std::min(kept, count)) * s_.d, x.end(), NAN);
    const QkvWeights weights{qkv_.get(), norm_.data(), bias_.data(), norm_.data(), norm_.data(), 1e-6f};
    backend_.norm_qkv_rope_write(rows, x.data(), s_.d, weights, shape, kv, qkv.data());
    backend_.attention(rows, qkv.data(), shape, kv, attended.data());
    backend_.linear_residual(rows, attended.data(), q_size, *output_, bias_.data(), x.data(), s_.d);
    backend_.norm_gate_up(rows, x.data(), s_.d, norm_.data(), 1e-6f, *gate_up_, s_.f, gated.data());
    backend_.linear_residual(rows, gated.data(), s_.f, *down_, nullptr, x.data(), s_.d);
    backend_.norm_head(rows, x.data(), s_.d, norm_.data(), 1e-6f, *table_, s_.v, logits.data());
    _mm_setcsr(callers);
    for (int r = 0; r < std::min(count, kept); ++r)
      result[pass[r]] = {{logits.begin() + size_t(r) * s_.v, logits.begin() + size_t(r + 1) * s_.v},
                         backend_.hash_kv(kv, shape, slot[r], position[r])};
  }

 private:
  Backend& backend_;
  DType dtype_;
  Sizes s_;
  World world_;
  RopeTables rope_;
  Pages pages_;
  std::unique_ptr<PackedMatrix> table_, qkv_, output_, gate_up_, down_;
  int qkv_columns_;
  std::vector<float> norm_, bias_;
};

World tidy() {
  World world;
  world.slot_of.resize(kCached.size());
  std::iota(world.slot_of.begin(), world.slot_of.end(), 0);
  return world;
}

// Each row alone.
Result rows_alone(const std::string& level, DType dtype, const Sizes& sizes) {
  Layer layer(level, dtype, sizes, tidy());
  Result result;
  for (int sequence = 0; sequence < int(kCached.size()); ++sequence)
    for (int index = 0; index < kFed; ++index) layer.forward({{sequence, index}}, result);
  for (const auto& [place, bits] : result)
    for (float l : bits.logits) CHECK(std::isfinite(l), level, ": sequence ", place.sequence);
  return result;
}

void check_equal(const Result& got, const Result& want, const std::string& where) {
  CHECK(got.size() == want.size(), where);
  for (const auto& [place, bits] : want)
    CHECK(got.at(place) == bits, where, ": sequence of ", kCached[place.sequence], " cached positions, new row ", place.index,
          got.at(place).kv == bits.kv ? ", logits" : ", KV");
}

// Passes of `rows` rows of one sequence each, as in verification and prefill.
std::vector<Pass> single_sequence(int rows) {
  std::vector<Pass> passes;
  for (int sequence = 0; sequence < int(kCached.size()); ++sequence)
    for (int index = 0; index < kFed; index += rows) {
      Pass pass;
      for (int i = index; i < std::min(kFed, index + rows); ++i) pass.push_back({sequence, i});
      passes.push_back(pass);
    }
  return passes;
}

// Passes of `rows` rows drawn from all sequences; a sequence's own rows keep their order, neighbours are random.
std::vector<Pass> mixed(int rows, unsigned seed, bool grouped) {
  std::mt19937 random(seed);
  std::vector<int> fed(kCached.size(), 0);
  std::vector<Pass> passes;
  for (size_t left = kCached.size() * kFed; left > 0;) {
    Pass pass;
    for (; int(pass.size()) < rows && left > 0;) {
      const int sequence = int(random() % kCached.size());
      if (fed[sequence] == kFed) continue;
      pass.push_back({sequence, fed[sequence]++});
      --left;
    }
    if (grouped) std::sort(pass.begin(), pass.end());
    passes.push_back(pass);
  }
  return passes;
}

void check_worlds(const Sizes& sizes) {
  for (const std::string& level : levels())
    for (DType dtype : kFormats) {
      const Result want = rows_alone(level, dtype, sizes);
      const auto check = [&](const World& world, const std::vector<Pass>& passes, const std::string& what) {
        Layer layer(level, dtype, sizes, world);
        Result got;
        for (const Pass& pass : passes) layer.forward(pass, got);
        check_equal(got, want, message(level, " ", name_of(dtype), ", ", world.threads, " threads, ", what));
      };
      for (int rows = 2; rows <= 17; ++rows) check(tidy(), single_sequence(rows), message("passes of ", rows));
      for (int threads : {1, 2, 3})
        for (int rows : {1, 3, 8, 17, 33, 180}) {
          World world = tidy();
          world.threads = threads;
          world.placement = unsigned(rows);
          world.poisoned = true;
          std::shuffle(world.slot_of.begin(), world.slot_of.end(), std::mt19937(rows + threads));
          world.float_mode = threads == 2 ? 0x3f80 : 0;  // round down, subnormals kept
          check(world, mixed(rows, unsigned(rows), false), message("mixed passes of ", rows));
          check(world, mixed(rows, unsigned(rows), true), message("grouped passes of ", rows));
        }
    }
}

}  // namespace

TEST(rows_of_a_narrow_layer) { check_worlds(kNarrow); }
TEST(rows_of_a_layer_with_one_kv_head) { check_worlds(kMany); }

// A verification that was rejected leaves its rows behind, even rows of NaN: neither the rows before them in their pass nor the
// rows that later take their positions know of it.
TEST(rejected_rows_leave_no_trace) {
  for (const std::string& level : levels())
    for (DType dtype : kFormats)
      for (bool broken : {false, true}) {
        const Result want = rows_alone(level, dtype, kNarrow);
        Layer layer(level, dtype, kNarrow, tidy());
        Result got;
        for (int sequence = 0; sequence < int(kCached.size()); ++sequence)
          for (int index = 0, kept; index < kFed; index += kept) {
            Pass pass;
            for (int i = index; i < std::min(kFed, index + 8); ++i) pass.push_back({sequence, i});
            kept = 1 + index % 3;  // kernels take rows in twos, fours and eights: the first bad row meets them anywhere
            layer.forward(pass, got, kept, broken);
          }
        check_equal(got, want, message(level, " ", name_of(dtype), broken ? ", rejected rows of NaN" : ", rejected rows"));
      }
}

TEST_MAIN()
