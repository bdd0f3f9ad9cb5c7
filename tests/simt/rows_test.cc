// The kernels of rows.cu against double, in every order of threads.
#include "cpp/test.h"
#include "math/bfloat16.h"
#include "reference/near.h"
#include "simt/kernel_test.h"

using namespace paceline;
using namespace paceline::test;

namespace {

// What pack_rows left for input i of a row, read as the mma of the PTX manual would: B[k][n] is in lane 4 n + k % 8 / 2.
float operand_at(const std::vector<uint16_t>& operand, const cuda::DeviceMatrix& w, int width, int row, int i) {
  if (!w.tiled && w.dtype == DType::fp32) return reinterpret_cast<const float*>(operand.data())[size_t(row) * width + i];
  if (!w.tiled) return from_bf16(operand[size_t(row) * width + i]);
  const int k = i % 16, lane = 4 * (row % 8) + k % 8 / 2;
  const size_t fragment = (size_t(row / 8) * (width / 16) + i / 16) * 32 + lane;
  return from_bf16(operand[fragment * 4 + k / 8 * 2 + k % 2]);
}

struct Form {
  DType dtype;
  bool tiled;
  int unit;  // inputs are padded to a multiple of it
};

}  // namespace

TEST(rows_are_packed_with_and_without_a_norm) {
  for_each_order([](const std::string& order) {
    for (int k : {1, 15, 16, 257, 700})
      for (bool normed : {false, true})
        for (const Form& form : {Form{DType::fp32, false, 16}, {DType::bf16, false, 16}, {DType::bf16, true, 16}, {DType::int8, true, 32},
                                 {DType::int4, true, 64}, {DType::int4_g32, true, 64}})
          for (int live : {1, 5, 64}) {
            const DType dtype = form.tiled ? DType::bf16 : form.dtype;
            const cuda::DeviceMatrix w{nullptr, form.dtype, 1, k, form.tiled};
            const auto x = random_floats(size_t(live) * k, 1), norm = random_floats(k, 2);
            DeviceRows rows(std::vector<int32_t>(live, 0), std::vector<int32_t>(live, 0), std::vector<int32_t>(live, 0));
            Device<float> dx(x), dnorm(norm);
            const int width = (k + form.unit - 1) / form.unit * form.unit;
            Device<uint16_t> operand(size_t(cuda::kRowBlock) * width * (dtype == DType::fp32 ? 2 : 1));
            cuda::pack_rows(stream(), rows.rows(), 0, dx.data(), w, normed ? dnorm.data() : nullptr, 1e-5f, operand.data());
            const auto got = operand.read();
            for (int row = 0; row < live; ++row) {
              double mean = 0;
              for (int i = 0; i < k; ++i) mean += double(x[row * k + i]) * x[row * k + i] / k;
              const double scale = 1 / std::sqrt(mean + 1e-5f);
              for (int i = 0; i < width; ++i) {
                const float value = operand_at(got, w, width, row, i);
                const double want = i >= k ? 0 : normed ? x[row * k + i] * scale * norm[i] : double(x[row * k + i]);
                CHECK(std::abs(value - want) <= std::abs(want) * (dtype == DType::fp32 ? 1e-5 : 0x1p-8), order, ", k ", k, ", row ", row,
                      ", ", i, ": got ", value, ", expected ", want);
              }
            }
          }
  });
}

TEST_MAIN()
