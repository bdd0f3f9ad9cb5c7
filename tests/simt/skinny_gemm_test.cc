// The products of skinny_gemm.cu against double, in every order of threads: packed weights, each epilogue, and that the bits of a row
// are its own.
#include <array>

#include "backend/cuda/cuda_backend.h"
#include "cpp/test.h"
#include "math/quantised.h"
#include "reference/linear.h"
#include "simt/kernel_test.h"

using namespace paceline;
using namespace paceline::test;
using reference::agrees;
using reference::exactly;
using reference::Near;

namespace {

constexpr float kUntouched = 1234.5f;  // what memory holds that nobody may write
const float kNan = std::nanf("");
const std::vector<DType> kFormats = {DType::bf16, DType::int8, DType::int4, DType::int4_g32};

cuda::CudaBackend& backend() {
  static auto* the = new cuda::CudaBackend(0);
  return *the;
}

// ------------------------------------------------------------------------------------------------ oracles

// What a format makes of w [n, k].
std::vector<double> held(const std::vector<float>& w, int n, int k, DType dtype) {
  std::vector<double> values(w.begin(), w.end());
  const int group = dtype == DType::bf16 ? 1 : dtype == DType::int8 ? k : group_of(dtype);
  for (int row = 0; row < n; ++row)
    for (int first = 0; first < k; first += group) {
      double* from = &values[size_t(row) * k + first];
      const int count = std::min(group, k - first);
      float extreme = 0;
      for (int i = 0; i < count; ++i)
        if (std::abs(from[i]) > std::abs(extreme)) extreme = float(from[i]);
      const Scale scale = dtype == DType::int8 ? int8_scale(extreme) : int4_scale(extreme);
      for (int i = 0; i < count; ++i) {
        if (dtype == DType::bf16) from[i] = reference::nearest_bf16(from[i]);
        else if (dtype == DType::int8) from[i] = double(scale.scale) * int8_of(float(from[i]), scale.inverse);
        else from[i] = double(scale.scale) * int4_of(float(from[i]), scale.inverse);
      }
    }
  return values;
}

// A matrix, packed, and what it holds.
struct Matrix {
  int n, k;
  DType dtype;
  std::vector<float> w = random_floats(size_t(n) * k, 1);
  std::vector<double> values = held(w, n, k, dtype);

  TensorView part(int first, int count) const { return {"w", DType::fp32, {count, k}, &w[size_t(first) * k]}; }
  int blocks() const { return (n + 15) / 16; }
};

std::unique_ptr<PackedMatrix> packed(const Matrix& m) {
  auto matrix = backend().new_matrix(m.blocks(), m.k, m.dtype);
  backend().pack_weights(*matrix, m.part(0, m.n), 0, 1);
  backend().synchronize();
  return matrix;
}

// Blocks of a and b in turn.
std::unique_ptr<PackedMatrix> alternating(const Matrix& a, const Matrix& b) {
  auto matrix = backend().new_matrix(2 * a.blocks(), a.k, a.dtype);
  backend().pack_weights(*matrix, a.part(0, a.n), 0, 2);
  backend().pack_weights(*matrix, b.part(0, b.n), 1, 2);
  backend().synchronize();
  return matrix;
}

const cuda::DeviceMatrix& view(const std::unique_ptr<PackedMatrix>& matrix) { return static_cast<const cuda::CudaMatrix&>(*matrix).view(); }

DeviceRows rows_of(int live, int spare) {
  const std::vector<int32_t> zero(live, 0);
  return DeviceRows(zero, zero, zero, spare);
}

// Rows [0, live) of x in the form of a product's operand, NaN wherever no row is.
class Operand {
 public:
  Operand(const cuda::DeviceMatrix& w, const DeviceRows& rows, int first_row, const std::vector<float>& x)
      : memory_(std::vector<uint16_t>(size_t(cuda::kRowBlock) * ((w.k + 63) / 64 * 64), 0x7fc0)) {
    Device<float> dx(x);
    cuda::pack_rows(stream(), rows.rows(), first_row, dx.data(), w, nullptr, 0, memory_.data());
    cuda::check(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");  // before dx goes
  }
  const void* data() const { return memory_.data(); }

 private:
  Device<uint16_t> memory_;
};

std::vector<Near> sums_of(const Matrix& m, const float* row) {
  std::vector<Near> x(m.k);
  for (int i = 0; i < m.k; ++i) x[i] = exactly(reference::nearest_bf16(double(row[i])));
  return reference::linear(m.values, m.n, m.k, x);
}

// Live rows hold what is wanted in their first n columns; nothing else is written.
template <class Want>
void check(const std::vector<float>& got, const std::vector<float>& before, int live, int stride, int n, const std::string& where,
           Want want) {
  for (size_t i = 0; i < got.size(); ++i) {
    const int row = int(i) / stride, column = int(i) % stride;
    if (row < live && column < n) {
      const Near near = want(row, column);
      CHECK(agrees(got[i], near), where, ", row ", row, ", column ", column, ": got ", got[i], ", expected ", near.value, " +- ",
            near.error);
    } else {
      CHECK(got[i] == before[i], where, ", row ", row, ", column ", column, ": written, though it is none of the product's");
    }
  }
}

struct Shape {
  int n, k;
};

void check_products(const Shape& shape, DType dtype, int live, const std::string& order) {
  const std::string where = message(order, ", ", name_of(dtype), ", n ", shape.n, ", k ", shape.k, ", rows ", live);
  const Matrix m{shape.n, shape.k, dtype};
  Matrix up{shape.n, shape.k, dtype, random_floats(size_t(shape.n) * shape.k, 2)};
  const auto matrix = packed(m), pair = alternating(m, up);
  const auto x = random_floats(size_t(live) * shape.k, 3), bias = random_floats(shape.n, 4);
  const auto residual = random_floats(size_t(live + 4) * shape.n, 5);
  const DeviceRows rows = rows_of(live, live % 3);
  const Operand operand(view(matrix), rows, 0, x);
  std::vector<std::vector<Near>> sums, ups;
  for (int row = 0; row < live; ++row) {
    sums.push_back(sums_of(m, &x[size_t(row) * shape.k]));
    ups.push_back(sums_of(up, &x[size_t(row) * shape.k]));
  }

  const int stride = shape.n + 3;
  const std::vector<float> before(size_t(live + 4) * stride, kUntouched);
  Device<float> out(before), narrow(std::vector<float>(size_t(live + 4) * shape.n, kUntouched)), d_bias(bias);
  cuda::skinny_sums(stream(), rows.rows(), 0, view(matrix), operand.data(), out.data(), stride, shape.n);
  check(out.read(), before, live, stride, shape.n, where + ", sums", [&](int row, int column) { return sums[row][column]; });

  for (bool biased : {false, true}) {
    Device<float> to(residual);
    cuda::skinny_residual(stream(), rows.rows(), 0, view(matrix), operand.data(), biased ? d_bias.data() : nullptr, to.data(), shape.n);
    check(to.read(), residual, live, shape.n, shape.n, where + ", residual", [&](int row, int column) {
      const Near sum = biased ? sums[row][column] + exactly(bias[column]) : sums[row][column];
      return exactly(residual[size_t(row) * shape.n + column]) + sum;
    });
  }
  cuda::skinny_gate_up(stream(), rows.rows(), 0, view(pair), operand.data(), shape.n, narrow.data());
  check(narrow.read(), std::vector<float>(narrow.size(), kUntouched), live, shape.n, shape.n, where + ", gate and up",
        [&](int row, int column) { return reference::gated(sums[row][column], ups[row][column]); });
}

}  // namespace

TEST(products_of_edge_shapes) {
  for_each_order([](const std::string& order) {
    for (DType dtype : kFormats) {
      for (int live : {1, 9}) check_products({1, 1}, dtype, live, order);
      for (int live : {3, 8, 17}) check_products({40, 100}, dtype, live, order);
      check_products({16, 16}, dtype, 16, order);
      check_products({33, 64}, dtype, 33, order);
      check_products({17, 130}, dtype, 64, order);
    }
  });
}

TEST(products_of_all_small_numbers_of_rows) {
  for (DType dtype : kFormats)
    for (int live = 1; live <= 17; ++live) check_products({18, 150}, dtype, live, "forward");
}

// As a step of the draft that nobody takes: weights are fetched, and nothing comes of them.
TEST(products_of_no_rows) {
  for (DType dtype : kFormats) {
    const Matrix m{18, 150, dtype};
    const auto matrix = packed(m);
    const DeviceRows rows = rows_of(0, 9);
    const Operand operand(view(matrix), rows, 0, random_floats(size_t(9) * m.k, 3));
    const std::vector<float> before(size_t(9) * m.n, kUntouched);
    Device<float> out(before);
    cuda::skinny_sums(stream(), rows.rows(), 0, view(matrix), operand.data(), out.data(), m.n, m.n);
    CHECK(out.read() == before, name_of(dtype), ": something was written");
  }
}

// Every room of a warp is filled again, of all warps or of some.
TEST(products_of_long_inputs) {
  for (DType dtype : kFormats) {
    const int turn = 8 * 8 * (dtype == DType::bf16 ? 16 : dtype == DType::int8 ? 32 : 64);
    for (int k : {turn, turn + 83, 2 * turn + 1}) check_products({5, k}, dtype, k % 2 ? 3 : 10, "forward");
    check_products({5, turn + 40}, dtype, 34, "forward");
  }
}

namespace {

// Bits of all outputs of `place` in a pass of `live` rows: x there, NaN and infinities and numbers in the others.
std::vector<uint32_t> bits_at(const Matrix& m, const std::unique_ptr<PackedMatrix>& matrix, const std::unique_ptr<PackedMatrix>& pair,
                              const std::vector<float>& x, int place, int live, int spare) {
  auto rows_in = random_floats(size_t(live) * m.k, unsigned(live));
  for (int row = 0; row < live; row += 3) std::fill_n(&rows_in[size_t(row) * m.k], m.k, row % 2 ? kNan : INFINITY);
  std::copy(x.begin(), x.end(), rows_in.begin() + size_t(place) * m.k);
  const DeviceRows rows = rows_of(live, spare);
  const int first = place / cuda::kRowBlock * cuda::kRowBlock;
  const Operand operand(view(matrix), rows, first, rows_in);
  const std::vector<float> zeros(size_t(live) * m.n);
  Device<float> sums(zeros), residual(zeros), gated(zeros);
  cuda::skinny_sums(stream(), rows.rows(), first, view(matrix), operand.data(), sums.data(), m.n, m.n);
  cuda::skinny_residual(stream(), rows.rows(), first, view(matrix), operand.data(), nullptr, residual.data(), m.n);
  cuda::skinny_gate_up(stream(), rows.rows(), first, view(pair), operand.data(), m.n, gated.data());
  std::vector<uint32_t> bits;
  for (const auto& out : {sums.read(), residual.read(), gated.read()})
    for (int i = 0; i < m.n; ++i) bits.push_back(bits_of(out[size_t(place) * m.n + i]));
  return bits;
}

}  // namespace

TEST(a_row_keeps_its_bits_in_any_company) {
  for_each_order([](const std::string& order) {
    for (DType dtype : kFormats) {
      const Matrix m{18, 470, dtype}, up{18, 470, dtype, random_floats(18 * 470, 2)};
      const auto matrix = packed(m), pair = alternating(m, up);
      const auto x = random_floats(m.k, 7);
      const std::vector<uint32_t> want = bits_at(m, matrix, pair, x, 0, 1, 0);
      const std::vector<std::array<int, 3>> places = {{0, 1, 7},   {0, 1, 8},   {0, 1, 30}, {0, 1, 90},  {7, 8, 0}, {3, 9, 0},
                                                      {15, 16, 0}, {20, 30, 0}, {1, 64, 0}, {63, 64, 1}, {69, 70, 0}};
      for (const auto& [place, live, spare] : places)
        CHECK(bits_at(m, matrix, pair, x, place, live, spare) == want, order, ", ", name_of(dtype), ": as row ", place, " of ", live,
              " with ", spare, " to spare");
    }
  });
}

// As a pass enqueues them: nothing between rows and the product that takes them, nor between that and the rows which then lie in their
// place. The weights of a product are on their way before its rows are there, and nothing else is.
TEST(products_follow_right_behind_their_rows) {
  for_each_order([](const std::string& order) {
    for (DType dtype : kFormats)
      for (int live : {1, 12, 70}) {
        const Matrix m{40, 1100, dtype};
        const auto matrix = packed(m);
        const DeviceRows rows = rows_of(live, 2);
        const std::array<std::vector<float>, 2> in = {random_floats(size_t(live) * m.k, 3), random_floats(size_t(live) * m.k, 4)};
        Device<float> first(in[0]), second(in[1]), one(size_t(live) * m.n), other(size_t(live) * m.n);
        Device<uint16_t> operand(std::vector<uint16_t>(size_t(cuda::kRowBlock) * ((m.k + 63) / 64 * 64), 0x7fc0));
        const auto multiply = [&](const Device<float>& x, Device<float>& out) {
          for (int row = 0; row < live; row += cuda::kRowBlock) {
            cuda::pack_rows(stream(), rows.rows(), row, x.data(), view(matrix), nullptr, 0, operand.data());
            cuda::skinny_sums(stream(), rows.rows(), row, view(matrix), operand.data(), out.data(), m.n, m.n);
          }
        };
        multiply(first, one), multiply(second, other);
        const std::array<std::vector<float>, 2> got = {one.read(), other.read()};
        for (int of = 0; of < 2; ++of)
          for (int row = 0; row < live; ++row) {
            const std::vector<Near> want = sums_of(m, &in[of][size_t(row) * m.k]);
            for (int i = 0; i < m.n; ++i)
              CHECK(agrees(got[of][size_t(row) * m.n + i], want[i]), order, ", ", name_of(dtype), ", rows ", live, ": product ", of,
                    ", row ", row, ", column ", i, ": got ", got[of][size_t(row) * m.n + i], ", expected ", want[i].value);
          }
      }
  });
}

// Parts of a matrix in several calls, at their blocks; a row of weights is read back as an embedding.
TEST(weights_are_packed_part_by_part) {
  for (DType dtype : kFormats)
    for (int k : {16, 77, 130}) {
      const Matrix q{37, k, dtype}, v{20, k, dtype, random_floats(size_t(20) * k, 2)};
      const auto check_row = [&](const std::unique_ptr<PackedMatrix>& matrix, int output, const double* want, const std::string& what) {
        DeviceRows rows({0}, {0}, {output});
        const std::vector<float> before(size_t(k) + 5, kUntouched);
        Device<float> x(before);
        cuda::embed(stream(), rows.rows(), view(matrix), k, x.data());
        const std::vector<float> got = x.read();
        for (int i = 0; i < k + 5; ++i)
          CHECK(got[i] == (i < k ? float(want[i]) : kUntouched), name_of(dtype), ", ", what, ", output ", output, ", input ", i, ": got ",
                got[i]);
      };
      auto matrix = backend().new_matrix(3 + 2, k, dtype);
      CHECK(matrix->bytes() == backend().matrix_bytes(5, k, dtype));
      backend().pack_weights(*matrix, q.part(0, 32), 0, 1);
      backend().pack_weights(*matrix, q.part(32, 5), 2, 1);
      backend().pack_weights(*matrix, v.part(0, 20), 3, 1);
      backend().synchronize();
      for (int row = 0; row < 37; ++row) check_row(matrix, row, &q.values[size_t(row) * k], "one after the other");
      for (int row = 0; row < 20; ++row) check_row(matrix, 48 + row, &v.values[size_t(row) * k], "one after the other");
      const std::vector<double> nothing(k);
      for (int row = 37; row < 48; ++row) check_row(matrix, row, nothing.data(), "between the parts");

      const Matrix gate{20, k, dtype};
      const auto pair = alternating(gate, v);
      for (int row = 0; row < 20; ++row) {
        check_row(pair, row / 16 * 32 + row % 16, &gate.values[size_t(row) * k], "gate");
        check_row(pair, row / 16 * 32 + 16 + row % 16, &v.values[size_t(row) * k], "up");
      }
    }
}

// bf16 and fp16 checkpoints are packed to what their values in fp32 are.
TEST(weights_of_narrow_checkpoints) {
  constexpr int kN = 5, kK = 70;
  std::vector<uint16_t> halves(kN * kK);
  for (DType source : {DType::bf16, DType::fp16})
    for (DType dtype : kFormats) {
      std::vector<float> values;
      for (size_t i = 0; i < halves.size(); ++i) {
        halves[i] = uint16_t(0x3800 + i * 37 % 1024 + (i % 2 ? 0x8000 : 0));
        values.push_back(source == DType::bf16 ? from_bf16(halves[i]) : from_fp16(halves[i]));
      }
      const Matrix wide{kN, kK, dtype, values};
      const auto want = packed(wide);
      auto got = backend().new_matrix(1, kK, dtype);
      backend().pack_weights(*got, {"w", source, {kN, kK}, halves.data()}, 0, 1);
      std::vector<char> a(want->bytes()), b(got->bytes());
      backend().download(a.data(), view(want).data, a.size());
      backend().download(b.data(), view(got).data, b.size());
      CHECK(a == b, name_of(source), " to ", name_of(dtype));
    }
}

// A NaN among the weights comes out again, and only of its own output.
TEST(weights_that_are_no_numbers_come_out) {
  for (DType dtype : kFormats) {
    Matrix m{20, 100, dtype};
    m.w[size_t(3) * 100 + 90] = kNan;
    const auto matrix = packed(m);
    const DeviceRows rows = rows_of(2, 0);
    const Operand operand(view(matrix), rows, 0, random_floats(200, 3));
    Device<float> out(40);
    cuda::skinny_sums(stream(), rows.rows(), 0, view(matrix), operand.data(), out.data(), 20, 20);
    const std::vector<float> got = out.read();
    for (int i = 0; i < 40; ++i) CHECK(std::isnan(got[i]) == (i % 20 == 3), name_of(dtype), ", ", i, ": ", got[i]);
  }
}

TEST_MAIN()
