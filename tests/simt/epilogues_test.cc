// The kernels of epilogues.cu against double, in every order of threads; tolerances come from the oracles (reference/near.h).
#include "backend/cuda/exp.cuh"
#include "backend/cuda/ptx.cuh"
#include "cpp/test.h"
#include "math/bfloat16.h"
#include "reference/linear.h"
#include "reference/norm.h"
#include "simt/kernel_test.h"

using namespace paceline;
using namespace paceline::test;
using reference::agrees;
using reference::exactly;
using reference::Near;

namespace {

constexpr float kEps = 0.05f;          // large enough to be missed
constexpr float kUntouched = 1234.5f;  // what memory holds that nobody may write
const float kNan = std::nanf("");

// Rows [0, live) of a pass, and those of them that one product covers.
struct Pass {
  int live, first_row;
  int covered() const { return std::min(live - first_row, cuda::kRowBlock); }
  bool covers(int row) const { return row >= first_row && row < first_row + covered(); }
};
const std::vector<Pass> kPasses = {{1, 0}, {2, 0}, {9, 0}, {17, 0}, {64, 0}, {70, 0}, {70, 64}};

// Sums as a product leaves them: those of rows that do not live are garbage.
std::vector<float> sums_of(const Pass& pass, int columns, float scale = 1) {
  auto sums = random_floats(size_t(cuda::kRowBlock) * columns, 1, scale);
  std::fill(sums.begin() + size_t(pass.covered()) * columns, sums.end(), kNan);
  return sums;
}

DeviceRows rows_of(const Pass& pass) {
  const std::vector<int32_t> zero(pass.live, 0);
  return DeviceRows(zero, zero, zero);
}

// Rows that the product covers hold what is wanted, all others what they held before.
template <class Want>
void check_rows(const std::vector<float>& got, const std::vector<float>& before, const Pass& pass, int n, const std::string& where,
                Want want) {
  for (size_t i = 0; i < got.size(); ++i) {
    const int row = int(i) / n, column = int(i) % n;
    if (pass.covers(row)) {
      const Near near = want(row - pass.first_row, column);
      CHECK(agrees(got[i], near), where, ", row ", row, ", column ", column, ": got ", got[i], ", expected ", near.value, " +- ",
            near.error);
    } else {
      CHECK(got[i] == before[i], where, ", row ", row, ": written, though it is none of the product's");
    }
  }
}

}  // namespace

namespace {

// natural[i] = e^x[i], binary[i] = 2^x[i]
__global__ void exponentials_kernel(const float* x, int count, float* natural, float* binary) {
  cuda::take_turn();
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  natural[i] = cuda::exp_of(x[i]);
  binary[i] = cuda::exp2_of(x[i]);
}

}  // namespace

TEST(exponentials) {
  std::vector<float> x = {0, -INFINITY, INFINITY, -87, 88};
  for (uint32_t nan : {0x7fc00000u, 0x7fffffffu, 0xffc00000u, 0xffffffffu}) x.push_back(float_from_bits(nan));
  const size_t specials = x.size();
  for (float each = -90; each <= 90; each += 0.0137f) x.push_back(each);
  for (float each = -130; each <= 0; each += 0.0071f) x.push_back(each);
  Device<float> dx(x), dnatural(x.size()), dbinary(x.size());
  const int count = int(x.size());
  cuda::launch(exponentials_kernel, dim3(unsigned(count + 255) / 256), 256, 0, stream(), dx.data(), count, dnatural.data(), dbinary.data());
  const auto natural = dnatural.read(), binary = dbinary.read();
  for (size_t i = specials; i < x.size(); ++i) {
    const double want = std::exp(std::min(88.0, std::max(-87.0, double(x[i]))));
    CHECK(std::abs(natural[i] - want) <= 0x1p-22 * want, "e^", x[i], ": got ", natural[i], ", expected ", want);
    if (x[i] > 0) continue;
    const double power = std::exp2(std::max(-126.0, double(x[i])));
    CHECK(std::abs(binary[i] - power) <= 0x1p-22 * power, "2^", x[i], ": got ", binary[i], ", expected ", power);
  }
  CHECK(natural[0] == 1 && binary[0] == 1);
  CHECK(binary[1] == 0x1p-126f);
  CHECK(natural[1] == natural[3] && natural[2] == natural[4]);
  for (size_t i = specials - 4; i < specials; ++i) CHECK(std::isnan(natural[i]) && std::isnan(binary[i]), i);
}

TEST(finish_residual) {
  for_each_order([](const std::string& order) {
    for (int d : {1, 15, 48, 257, 300})
      for (const Pass& pass : kPasses)
        for (bool biased : {false, true}) {
          const std::string where = message(order, ", d ", d, ", live ", pass.live, ", from ", pass.first_row, biased ? ", bias" : "");
          const int columns = cuda::padded_columns(d);
          const auto sums = sums_of(pass, columns), bias = random_floats(columns, 2), before = random_floats(size_t(pass.live + 4) * d, 3);
          Device<float> dsums(sums), dbias(bias), x(before);
          const DeviceRows rows = rows_of(pass);
          cuda::finish_residual(stream(), rows.rows(), pass.first_row, dsums.data(), columns, biased ? dbias.data() : nullptr, x.data(), d);
          check_rows(x.read(), before, pass, d, where, [&](int index, int column) {
            Near sum = exactly(sums[size_t(index) * columns + column]);
            if (biased) sum = sum + exactly(bias[column]);
            return exactly(before[size_t(pass.first_row + index) * d + column]) + sum;
          });
        }
  });
}

TEST(finish_gate_up) {
  for_each_order([](const std::string& order) {
    for (int f : {1, 16, 31, 80, 272})
      for (const Pass& pass : kPasses) {
        const int columns = 2 * cuda::padded_columns(f);
        const auto sums = sums_of(pass, columns, 4);
        const std::vector<float> before(size_t(pass.live + 4) * f, kUntouched);
        Device<float> dsums(sums), out(before);
        const DeviceRows rows = rows_of(pass);
        cuda::finish_gate_up(stream(), rows.rows(), pass.first_row, dsums.data(), columns, f, out.data());
        const std::string where = message(order, ", f ", f, ", live ", pass.live, ", from ", pass.first_row);
        check_rows(out.read(), before, pass, f, where, [&](int index, int column) {
          const float* row = &sums[size_t(index) * columns + column / 16 * 32];
          return reference::gated(exactly(row[column % 16]), exactly(row[16 + column % 16]));
        });
      }
  });
}

TEST(finish_logits) {
  for_each_order([](const std::string& order) {
    for (int v : {1, 33, 512, 700})
      for (const Pass& pass : kPasses) {
        const int columns = cuda::padded_columns(v);
        const auto sums = sums_of(pass, columns);
        const std::vector<float> before(size_t(pass.live + 4) * v, kUntouched);
        Device<float> dsums(sums), logits(before);
        const DeviceRows rows = rows_of(pass);
        cuda::finish_logits(stream(), rows.rows(), pass.first_row, dsums.data(), columns, v, logits.data());
        check_rows(logits.read(), before, pass, v, message(order, ", v ", v, ", live ", pass.live, ", from ", pass.first_row),
                   [&](int index, int column) { return Near{sums[size_t(index) * columns + column], 0}; });
      }
  });
}

namespace {

struct Heads {
  int heads, kv_heads, head_dim;
};

// finish_qkv of rows that lie anywhere in three slots, with everything it may look at.
struct QkvCase {
  static constexpr int kSlots = 3, kPerSlot = 2, kPages = 7;
  Heads shape;
  Pass pass;
  DType dtype;
  bool biased, normed;
  int half = shape.head_dim / 2, k_columns = cuda::padded_columns(shape.kv_heads * shape.head_dim);
  int k_column = cuda::padded_columns(shape.heads * shape.head_dim), v_column = k_column + k_columns, columns = v_column + k_columns;
  std::vector<int32_t> slot = {}, position = {}, table = {};
  std::vector<float> sums = sums_of(pass, columns), bias = random_floats(columns, 2);
  std::vector<float> q_norm = random_floats(shape.head_dim, 3), k_norm = random_floats(shape.head_dim, 4);
  std::vector<float> angles = random_floats(size_t(kPerSlot) * 64 * half, 5), cosines = {}, sines = {};
  std::vector<float> qkv = {}, keys = {}, values = {};  // what came out, as floats: [T, columns], [page][head][64][Dh]

  void run() {
    for (int row = 0; row < pass.live; ++row)
      slot.push_back(row * kSlots / pass.live), position.push_back((row * 37 + 62) % (kPerSlot * 64));
    for (int i = 0; i < kSlots * kPerSlot; ++i) table.push_back((i * 5 + 3) % kPages);  // all different
    for (float angle : angles) cosines.push_back(std::cos(angle)), sines.push_back(std::sin(angle));
    const std::vector<float> before(size_t(pass.live + 4) * columns, kUntouched);
    const size_t elements = size_t(kPages) * shape.kv_heads * 64 * shape.head_dim;
    Device<float> dsums(sums), dbias(bias), dq_norm(q_norm), dk_norm(k_norm), dcosines(cosines), dsines(sines), dqkv(before);
    Device<int32_t> dtable(table);
    Device<char> dkeys(std::vector<char>(elements * size_of(dtype), 0)), dvalues(std::vector<char>(elements * size_of(dtype), 0));
    const DeviceRows rows(slot, position, slot);
    const QkvWeights weights{nullptr, nullptr, biased ? dbias.data() : nullptr, normed ? dq_norm.data() : nullptr,
                             normed ? dk_norm.data() : nullptr, kEps};
    cuda::finish_qkv(stream(), rows.rows(), pass.first_row, dsums.data(), columns, weights,
                     {shape.heads, shape.kv_heads, shape.head_dim, dcosines.data(), dsines.data()},
                     {dkeys.data(), dvalues.data(), dtable.data(), kPerSlot, dtype}, dqkv.data());
    qkv = dqkv.read(), keys = floats(dkeys.read()), values = floats(dvalues.read());
  }

  std::vector<float> floats(const std::vector<char>& bytes) const {
    std::vector<float> all(bytes.size() / size_of(dtype));
    const auto* halves = reinterpret_cast<const bf16*>(bytes.data());
    for (size_t i = 0; i < all.size(); ++i)
      all[i] = dtype == DType::fp32 ? reinterpret_cast<const float*>(halves)[i] : from_bf16(halves[i]);
    return all;
  }

  std::vector<Near> head_at(int row, int column, const std::vector<float>& norm, bool turns) const {
    std::vector<Near> head;
    for (int i = column; i < column + shape.head_dim; ++i) {
      head.push_back(exactly(sums[size_t(row - pass.first_row) * columns + i]));
      if (biased) head.back() = head.back() + exactly(bias[i]);
    }
    if (normed && turns) head = reference::rms_norm(head, norm.data(), kEps);
    return turns ? reference::rotated(head, &cosines[size_t(position[row]) * half], &sines[size_t(position[row]) * half]) : head;
  }

  // Takes off what was to be written and finds it right; what is left must be as it was.
  void check_head(int row, int column, const std::vector<Near>& want, std::vector<float>* pages, int head, const std::string& where) {
    const int page = table[slot[row] * kPerSlot + position[row] / 64];
    for (int i = 0; i < shape.head_dim; ++i) {
      float& got = qkv[size_t(row) * columns + column + i];
      CHECK(agrees(got, want[i]), where, ", row ", row, ", column ", column + i, ": got ", got, ", expected ", want[i].value, " +- ",
            want[i].error);
      if (pages) {
        float& kept = (*pages)[((size_t(page) * shape.kv_heads + head) * 64 + position[row] % 64) * shape.head_dim + i];
        CHECK(kept == (dtype == DType::fp32 ? got : from_bf16(to_bf16(got))), where, ", row ", row, ", element ", i, " in its page: ", kept,
              ", in qkv ", got);
        kept = 0;
      }
      got = kUntouched;
    }
  }

  void check(const std::string& where) {
    for (int row = pass.first_row; row < pass.first_row + pass.covered(); ++row) {
      for (int head = 0; head < shape.heads; ++head) {
        const int column = head * shape.head_dim;
        check_head(row, column, head_at(row, column, q_norm, true), nullptr, 0, where);
      }
      for (int head = 0; head < shape.kv_heads; ++head) {
        const int k = k_column + head * shape.head_dim, v = v_column + head * shape.head_dim;
        check_head(row, k, head_at(row, k, k_norm, true), &keys, head, where + ", k");
        check_head(row, v, head_at(row, v, {}, false), &values, head, where + ", v");
      }
    }
    for (float value : qkv) CHECK(value == kUntouched, where, ": wrote beside its heads");
    for (float value : keys) CHECK(value == 0, where, ": wrote a key beside its position");
    for (float value : values) CHECK(value == 0, where, ": wrote a value beside its position");
  }
};

}  // namespace

TEST(finish_qkv) {
  for_each_order([](const std::string& order) {
    for (const Heads& shape : {Heads{1, 1, 2}, {2, 1, 48}, {4, 2, 64}, {3, 3, 80}, {8, 1, 128}, {2, 2, 256}, {5, 1, 6}})
      for (const Pass& pass : {Pass{1, 0}, {5, 0}, {17, 0}, {66, 0}, {66, 64}})
        for (DType dtype : {DType::fp32, DType::bf16})
          for (int options = 0; options < 4; ++options) {
            const bool biased = options & 1, normed = options & 2;
            if (pass.live != 5 && options != 3) continue;
            if (pass.live > 17 && shape.head_dim * shape.heads > 300) continue;
            QkvCase one{shape, pass, dtype, biased, normed};
            one.run();
            one.check(message(order, ", heads ", shape.heads, "/", shape.kv_heads, " x ", shape.head_dim, ", ", name_of(dtype), ", live ",
                              pass.live, ", from ", pass.first_row, biased ? ", bias" : "", normed ? ", norms" : ""));
          }
  });
}

// A value that is not finite, or not once its page holds it, never lies in a page: the key says so instead.
TEST(values_in_pages_are_finite) {
  for (DType dtype : {DType::fp32, DType::bf16})
    for (float bad : {kNan, INFINITY, -INFINITY, 3.4e38f}) {
      QkvCase one{{4, 2, 80}, {3, 0}, dtype, false, false};
      one.sums[size_t(1) * one.columns + one.v_column + 80 + 33] = bad;  // row 1, head 1
      one.run();
      const bool fits = dtype == DType::fp32 && bad == 3.4e38f;
      for (int row = 0; row < 3; ++row)
        for (int head = 0; head < 2; ++head)
          for (int i = 0; i < 80; ++i) {
            const bool spoiled = row == 1 && head == 1 && !fits;
            const int page = one.table[one.slot[row] * QkvCase::kPerSlot + one.position[row] / 64];
            const size_t at = ((size_t(page) * 2 + head) * 64 + one.position[row] % 64) * 80 + i;
            CHECK(std::isnan(one.keys[at]) == spoiled, bad, ", row ", row, ", head ", head, ", key ", i, ": ", one.keys[at]);
            CHECK(std::isfinite(one.values[at]) && (!spoiled || one.values[at] == 0), bad, ", row ", row, ", value ", i, ": ", one.values[at]);
          }
    }
}

// The row's bits are its own: alone, in company, in the second product of a pass.
TEST(rows_of_qkv_do_not_depend_on_their_company) {
  const Heads shape{4, 2, 80};
  QkvCase many{shape, {66, 0}, DType::fp32, true, true};
  many.run();
  for (int row : {0, 3, 40}) {
    QkvCase alone{shape, {65, 64}, DType::fp32, true, true};  // row 64 with the sums and the position of `row`
    std::copy_n(many.sums.begin() + size_t(row) * many.columns, many.columns, alone.sums.begin());
    const int position = (64 * 37 + 62) % (QkvCase::kPerSlot * 64), wanted = many.position[row];
    std::copy_n(many.angles.begin() + size_t(wanted) * many.half, many.half, alone.angles.begin() + size_t(position) * many.half);
    alone.run();
    for (int i = 0; i < many.columns; ++i)
      CHECK(bits_of(many.qkv[size_t(row) * many.columns + i]) == bits_of(alone.qkv[size_t(64) * many.columns + i]), row, ", ", i);
  }
}

TEST_MAIN()
