// The integer formats, to the bit, on every instruction level of this machine: what a matrix holds, what a product gives, and what
// the fused operations make of normalised rows. Shapes end off every grid: lanes, fours, groups, pairs of groups, tiles.
#include "reference/quantised.h"

#include "cpp/forward_pieces.h"
#include "cpp/test.h"

using namespace paceline;
using namespace paceline::test;
using reference::Quantised;

namespace {

const std::vector<DType> kIntegerFormats = {DType::int8, DType::int4, DType::int4_g32};

template <class Body>
void everywhere(Body body) {
  for (const std::string& level : levels())
    for (DType dtype : kIntegerFormats)
      for (int threads : {1, 3}) body(*backend_of(level, threads), dtype, message(level, " ", name_of(dtype), ", ", threads, " threads"));
}

bool same(float a, float b) { return std::isnan(a) ? std::isnan(b) : bits_of(a) == bits_of(b); }

void check_row(const float* got, const std::vector<float>& want, const std::string& where) {
  for (size_t i = 0; i < want.size(); ++i) CHECK(same(got[i], want[i]), where, ", column ", i, ": got ", got[i], ", expected ", want[i]);
}

std::unique_ptr<PackedMatrix> packed_values(Backend& backend, DType dtype, int n, int k, const std::vector<float>& values) {
  auto to = backend.new_matrix((n + 15) / 16, k, dtype);
  backend.pack_weights(*to, {"values", DType::fp32, {n, k}, values.data()}, 0, 1);
  return to;
}

RowsBuffer rows_of(Backend& backend, int count) {
  RowsBuffer rows(backend, count);
  const std::vector<int32_t> zero(count, 0);
  rows.fill(zero, zero, zero);
  return rows;
}

// Products of every row of x with w, plus bias, added to `before`.
void check_products(Backend& backend, DType dtype, int n, int k, const std::vector<float>& w, const std::vector<float>& x, const std::string& where) {
  const int count = int(x.size() / k);
  const auto matrix = packed_values(backend, dtype, n, k, w);
  const Quantised weights = reference::weights(w, n, k, dtype), rows = reference::rows(x, count, k, dtype);
  const std::vector<float> bias = random_values(padded(n), 5), before = random_values(size_t(count) * n, 6);
  std::vector<float> out = before;
  backend.linear_residual(rows_of(backend, count).rows(), x.data(), k, *matrix, bias.data(), out.data(), n);
  for (int r = 0; r < count; ++r) {
    std::vector<float> want;
    for (int i = 0; i < n; ++i) want.push_back(before[size_t(r) * n + i] + (reference::product(weights, i, rows, r, dtype) + bias[i]));
    check_row(&out[size_t(r) * n], want, message(where, ", rows ", count, ", N ", n, ", K ", k, ", row ", r));
  }
}

struct Shape {
  int rows, n, k;
};
const std::vector<Shape> kShapes = {{1, 16, 16},  {1, 5, 2},   {2, 33, 48},  {3, 130, 31}, {4, 64, 64},  {5, 100, 80},  {6, 17, 256},  {7, 96, 33},  {8, 48, 192},
                                    {9, 272, 40}, {10, 40, 1}, {11, 90, 65}, {12, 31, 96}, {13, 50, 97}, {14, 33, 128}, {15, 65, 130}, {16, 80, 160}, {17, 161, 50},
                                    {25, 34, 63}, {33, 40, 2050}};

}  // namespace

TEST(a_table_holds_quantised_values) {
  // Groups of zeros, of one value, of ties, of both extremes, of values no inverse exists for, of NaN and infinity.
  const std::vector<std::vector<float>> kinds = {{0, -0.0f}, {3}, {1, 0.5f, -0.5f, 1.5f, 127, -63.5f}, {-8, 7.5f, 8, -7.5f, 0.5f}, {8, -8, 7.49f},
                                                 {0x1p-110f, -0x1p-120f}, {0x1p-100f, 1e-31f}, {3e38f, -1e38f}, {1, NAN}, {INFINITY, 2}};
  everywhere([&](Backend& backend, DType dtype, const std::string& where) {
    for (int d : {1, 6, 64, 131, 200}) {
      const int n = 37;
      std::vector<float> values(n * d);
      for (int row = 0; row < n; ++row)
        for (int i = 0; i < d; ++i) {
          const auto& kind = kinds[(row + i / 40) % kinds.size()];
          values[row * d + i] = row < 20 ? kind[i % kind.size()] : random_values(1, row * 1000 + i)[0];
        }
      const auto matrix = packed_values(backend, dtype, n, d, values);
      const Quantised want = reference::weights(values, n, d, dtype);
      RowsBuffer rows(backend, n);
      std::vector<int32_t> zero(n, 0), token(n);
      for (int i = 0; i < n; ++i) token[i] = (i * 5) % n;
      rows.fill(zero, zero, token);
      std::vector<float> out(n * d);
      backend.embed(rows.rows(), *matrix, d, out.data());
      for (int r = 0; r < n; ++r)
        for (int i = 0; i < d; ++i)
          CHECK(same(out[r * d + i] + 0.0f, want.value(token[r], i) + 0.0f), where, ", width ", d, ", token ", token[r], ", value ", i, ": got ",
                out[r * d + i], ", expected ", want.value(token[r], i), " for ", values[token[r] * d + i]);
    }
  });
}

TEST(sources_of_any_dtype_quantise_alike) {
  const int n = 21, k = 70;
  std::vector<float> values = random_values(n * k, 1);
  std::vector<uint16_t> narrow(n * k);
  for (int i = 0; i < n * k; ++i) narrow[i] = to_bf16(values[i]), values[i] = from_bf16(narrow[i]);
  everywhere([&](Backend& backend, DType dtype, const std::string& where) {
    const auto a = packed_values(backend, dtype, n, k, values), b = backend.new_matrix(2, k, dtype);
    backend.pack_weights(*b, {"narrow", DType::bf16, {n, k}, narrow.data()}, 0, 1);
    std::vector<float> out_a(n, 0), out_b(n, 0);
    backend.linear_residual(rows_of(backend, 1).rows(), values.data(), k, *a, nullptr, out_a.data(), n);
    backend.linear_residual(rows_of(backend, 1).rows(), values.data(), k, *b, nullptr, out_b.data(), n);
    check_row(out_b.data(), out_a, where);
  });
}

TEST(products) {
  everywhere([](Backend& backend, DType dtype, const std::string& where) {
    for (const Shape& s : kShapes)
      check_products(backend, dtype, s.n, s.k, random_values(size_t(s.n) * s.k, 1), random_values(size_t(s.rows) * s.k, 2, 3), where);
  });
}

// The largest products there are, all of one sign: 16-bit sums of two would saturate.
TEST(nothing_saturates) {
  everywhere([](Backend& backend, DType dtype, const std::string& where) {
    for (float a : {1.0f, -1.0f})
      for (float b : {1.0f, -1.0f}) check_products(backend, dtype, 16, 256, std::vector<float>(16 * 256, a), std::vector<float>(2 * 256, b), where);
  });
}

TEST(rows_of_zeros_and_what_is_not_finite) {
  const int k = 150, n = 40;
  std::vector<float> x = random_values(7 * k, 1), w = random_values(n * k, 2);
  std::fill(&x[k], &x[2 * k], 0.0f);
  x[2 * k + 149] = NAN, x[3 * k] = INFINITY, x[4 * k + 5] = -INFINITY;
  for (int i = 0; i < k; ++i) x[5 * k + i] *= 1e-35f;
  w[3 * k + 149] = NAN, w[17 * k + 2] = -INFINITY;
  std::fill(&w[5 * k], &w[6 * k], 0.0f);
  everywhere([&](Backend& backend, DType dtype, const std::string& where) { check_products(backend, dtype, n, k, w, x, where); });
}

// The norm is the fp32 kernel's own, seen through an identity matrix; what follows has its bits prescribed.
TEST(fused_operations_quantise_normalised_rows) {
  everywhere([](Backend& backend, DType dtype, const std::string& where) {
    for (const Shape& s : {Shape{3, 48, 96}, Shape{13, 33, 70}}) {
      const int n = s.n, k = s.k;
      const float eps = 0.05f;
      const std::vector<float> x = random_values(size_t(s.rows) * k, 1, 4), norm = random_values(k, 2, 0.3f, 1);
      std::vector<float> identity(size_t(k) * k, 0.0f), normalised(size_t(s.rows) * k);
      for (int i = 0; i < k; ++i) identity[size_t(i) * k + i] = 1;
      const RowsBuffer rows = rows_of(backend, s.rows);
      backend.norm_head(rows.rows(), x.data(), k, norm.data(), eps, *packed_values(backend, DType::fp32, k, k, identity), k, normalised.data());
      const RandomMatrix gate(n, k, 3), up(n, k, 4);
      const Quantised gates = reference::weights(gate.values, n, k, dtype), ups = reference::weights(up.values, n, k, dtype);
      const Quantised in = reference::rows(normalised, s.rows, k, dtype);
      std::vector<float> logits(size_t(s.rows) * n), gated(logits.size());
      backend.norm_head(rows.rows(), x.data(), k, norm.data(), eps, *packed(backend, dtype, gate), n, logits.data());
      backend.norm_gate_up(rows.rows(), x.data(), k, norm.data(), eps, *packed_in_turns(backend, dtype, gate, up), n, gated.data());
      Pages pages(backend, 1, 64, 1, n / 2 * 2, DType::bf16, 1);
      const int dh = n / 2 * 2, columns = 3 * padded(dh);
      const RandomMatrix q(dh, k, 5), key(dh, k, 6), value(dh, k, 7);
      const auto qkv_matrix = packed_in_line(backend, dtype, {&q, &key, &value});
      const std::vector<float> ones(dh, 1.0f), zeros(dh, 0.0f);
      std::vector<float> qkv(size_t(s.rows) * columns);
      const RowsBuffer first = rows_of(backend, 1);
      const QkvWeights weights{qkv_matrix.get(), norm.data(), nullptr, nullptr, nullptr, eps};
      backend.norm_qkv_rope_write(first.rows(), x.data(), k, weights, {1, 1, dh, ones.data(), zeros.data()}, pages.layer(), qkv.data());
      for (int r = 0; r < s.rows; ++r) {
        std::vector<float> want;
        for (int i = 0; i < n; ++i) want.push_back(reference::product(gates, i, in, r, dtype));
        check_row(&logits[size_t(r) * n], want, message(where, ", head row ", r));
        for (int i = 0; i < n; ++i) {
          const double g = want[i], up_value = reference::product(ups, i, in, r, dtype), expected = g / (1 + std::exp(-g)) * up_value;
          const double got = gated[size_t(r) * n + i];
          CHECK(std::fabs(got - expected) <= 1e-6 * std::fabs(expected) + 1e-30, where, ", gated row ", r, ", column ", i, ": got ", got, ", expected ", expected);
        }
      }
      const Quantised queries = reference::weights(q.values, dh, k, dtype), keys = reference::weights(key.values, dh, k, dtype);
      const Quantised values = reference::weights(value.values, dh, k, dtype);
      for (int i = 0; i < dh; ++i) {
        CHECK(same(qkv[i], reference::product(queries, i, in, 0, dtype)), where, ", query ", i);
        CHECK(pages.key(0, 0, 0, i) == held(reference::product(keys, i, in, 0, dtype), DType::bf16), where, ", key ", i);
        CHECK(pages.value(0, 0, 0, i) == held(reference::product(values, i, in, 0, dtype), DType::bf16), where, ", value ", i);
      }
    }
  });
}

TEST_MAIN()
