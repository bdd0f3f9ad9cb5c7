// The kernels of rows.cu against double, in every order of threads.
#include "cpp/test.h"
#include "math/bfloat16.h"
#include "reference/near.h"
#include "simt/kernel_test.h"

using namespace paceline;
using namespace paceline::test;

TEST(rows_are_packed_with_and_without_a_norm) {
  for_each_order([](const std::string& order) {
    for (int k : {1, 15, 16, 257, 700})
      for (bool normed : {false, true})
        for (DType dtype : {DType::fp32, DType::bf16})
          for (int live : {1, 5, 64}) {
            const auto x = random_floats(size_t(live) * k, 1), norm = random_floats(k, 2);
            DeviceRows rows(std::vector<int32_t>(live, 0), std::vector<int32_t>(live, 0), std::vector<int32_t>(live, 0));
            Device<float> dx(x), dnorm(norm);
            const int width = cuda::padded_k(k);
            Device<uint16_t> operand(size_t(cuda::kRowBlock) * width * (dtype == DType::fp32 ? 2 : 1));
            cuda::pack_rows(stream(), rows.rows(), 0, dx.data(), k, normed ? dnorm.data() : nullptr, 1e-5f, dtype, operand.data());
            const auto got = operand.read();
            for (int row = 0; row < live; ++row) {
              double mean = 0;
              for (int i = 0; i < k; ++i) mean += double(x[row * k + i]) * x[row * k + i] / k;
              const double scale = 1 / std::sqrt(mean + 1e-5f);
              for (int i = 0; i < width; ++i) {
                const size_t at = size_t(row) * width + i;
                const float value = dtype == DType::fp32 ? reinterpret_cast<const float*>(got.data())[at] : from_bf16(got[at]);
                const double want = i >= k ? 0 : normed ? x[row * k + i] * scale * norm[i] : double(x[row * k + i]);
                CHECK(std::abs(value - want) <= std::abs(want) * (dtype == DType::fp32 ? 1e-5 : 0x1p-8), order, ", k ", k, ", row ", row,
                      ", ", i, ": got ", value, ", expected ", want);
              }
            }
          }
  });
}

TEST_MAIN()
