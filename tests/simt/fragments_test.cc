// What ptx.cuh says of the tensor cores and of pairs of bf16, on the host that stands in for them.
#include "backend/cuda/ptx.cuh"
#include "cpp/test.h"
#include "reference/near.h"
#include "simt/kernel_test.h"

using namespace paceline;
using namespace paceline::test;
using reference::agrees;
using reference::exactly;
using reference::Near;

namespace {

__global__ void multiply_add_kernel(const uint32_t* a, const uint32_t* b, float* c, bool changes) {
  cuda::take_turn();
  const int lane = int(threadIdx.x);
  cuda::FragmentA fragment{{a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3]}};
  cuda::FragmentB other{{b[2 * lane], b[2 * lane + 1]}};
  cuda::FragmentC sums{{c[4 * lane], c[4 * lane + 1], c[4 * lane + 2], c[4 * lane + 3]}};
  cuda::multiply_add(sums, fragment, other);
  if (changes) fragment = {}, other = {};  // as the next turn of a loop does
  cuda::multiply_add(sums, fragment, other);
  for (int i = 0; i < 4; ++i) c[4 * lane + i] = sums.c[i];
}

// 32 rows of 8 values that say which lane names the row, and the column; lanes name them from the last up.
__global__ void load_matrices_kernel(uint32_t* straight, uint32_t* transposed) {
  cuda::take_turn();
  auto* rows = cuda::shared_memory<uint16_t>();
  const int lane = int(threadIdx.x);
  for (int i = 0; i < 8; ++i) rows[8 * (31 - lane) + i] = uint16_t(lane * 256 + i);
  __syncthreads();
  uint32_t to[4];
  cuda::load_matrices<cuda::Matrices::straight>(rows + 8 * (31 - lane), to);
  for (int m = 0; m < 4; ++m) straight[4 * lane + m] = to[m];
  cuda::load_matrices<cuda::Matrices::transposed>(rows + 8 * (31 - lane), to);
  for (int m = 0; m < 4; ++m) transposed[4 * lane + m] = to[m];
}

// A thread for each two integers.
__global__ void integers_kernel(uint32_t* pairs) {
  cuda::take_turn();
  const uint32_t first = threadIdx.x / 16, second = threadIdx.x % 16;
  pairs[threadIdx.x] = cuda::subtract_pairs((first | second << 16) | 0x43004300u, 0x43084308u);
}

uint32_t pair_of(float low, float high) { return uint32_t(to_bf16(low)) | uint32_t(to_bf16(high)) << 16; }

}  // namespace

// Element i of a lane's fragment is, in the words of the PTX manual (groupID = lane >> 2, threadID_in_group = lane % 4):
//   A  row = groupID (i = 0, 1, 4, 5) or groupID + 8; column = threadID_in_group * 2 + (i & 1), + 8 from i = 4 on
//   B  row = threadID_in_group * 2 + (i & 1), + 8 from i = 2 on; column = groupID
//   C  row = groupID (i = 0, 1) or groupID + 8; column = threadID_in_group * 2 + (i & 1)
TEST(fragments_are_those_of_the_manual) {
  for_each_order([](const std::string& order) {
    for (bool changes : {false, true}) {
      const auto a = random_floats(16 * 16, 1), b = random_floats(16 * 8, 2), c = random_floats(16 * 8, 3);
      std::vector<uint32_t> a_lanes(128), b_lanes(64);
      std::vector<float> c_lanes(128);
      for (int lane = 0; lane < 32; ++lane) {
        const int group = lane >> 2, thread = lane % 4;
        for (int i = 0; i < 8; i += 2) {
          const float* from = &a[(group + (i == 2 || i == 6 ? 8 : 0)) * 16 + thread * 2 + (i >= 4 ? 8 : 0)];
          a_lanes[4 * lane + i / 2] = pair_of(from[0], from[1]);
        }
        for (int i = 0; i < 4; i += 2) {
          const float* from = &b[(thread * 2 + (i >= 2 ? 8 : 0)) * 8 + group];
          b_lanes[2 * lane + i / 2] = pair_of(from[0], from[8]);
        }
        for (int i = 0; i < 4; ++i) c_lanes[4 * lane + i] = c[(group + (i < 2 ? 0 : 8)) * 8 + thread * 2 + (i & 1)];
      }
      Device<uint32_t> da(a_lanes), db(b_lanes);
      Device<float> dc(c_lanes);
      cuda::launch(multiply_add_kernel, dim3(1), 32, 0, stream(), da.data(), db.data(), dc.data(), changes);
      const std::vector<float> got = dc.read();
      for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i) {
          const int row = (lane >> 2) + (i < 2 ? 0 : 8), column = lane % 4 * 2 + (i & 1);
          Near want = exactly(c[row * 8 + column]);
          for (int turn = 0; turn < (changes ? 1 : 2); ++turn)
            for (int k = 0; k < 16; ++k)
              want = want + exactly(reference::nearest_bf16(double(a[row * 16 + k])) * reference::nearest_bf16(double(b[k * 8 + column])));
          CHECK(agrees(got[4 * lane + i], want), order, ", lane ", lane, ", element ", i, ": got ", got[4 * lane + i], ", expected ",
                want.value);
        }
    }
  });
}

// PTX manual, ldmatrix .x4: a lane's register m holds of matrix m, whose rows lanes 8 m to 8 m + 7 name, row lane / 4, elements
// 2 (lane % 4) and the next; with .trans, column lane / 4, those rows.
TEST(matrices_are_loaded_as_the_manual_says) {
  for_each_order([](const std::string& order) {
    Device<uint32_t> straight(128), transposed(128);
    cuda::launch(load_matrices_kernel, dim3(1), 32, 32 * 8 * sizeof(uint16_t), stream(), straight.data(), transposed.data());
    const auto got = straight.read(), turned = transposed.read();
    for (uint32_t lane = 0; lane < 32; ++lane)
      for (uint32_t m = 0; m < 4; ++m) {
        const uint32_t line = lane / 4, pair = 2 * (lane % 4);
        const uint32_t want = ((8 * m + line) * 256 + pair) | ((8 * m + line) * 256 + pair + 1) << 16;
        const uint32_t want_turned = ((8 * m + pair) * 256 + line) | ((8 * m + pair + 1) * 256 + line) << 16;
        CHECK(got[4 * lane + m] == want, order, ", lane ", lane, ", matrix ", m);
        CHECK(turned[4 * lane + m] == want_turned, order, ", transposed, lane ", lane, ", matrix ", m);
      }
  });
}

TEST(exact_integers_of_all_values) {
  Device<uint32_t> d_pairs(256);
  cuda::launch(integers_kernel, dim3(1), 256, 0, stream(), d_pairs.data());
  const std::vector<uint32_t> pairs = d_pairs.read();
  for (int first = 0; first < 16; ++first)
    for (int second = 0; second < 16; ++second) {
      const uint32_t pair = pairs[first * 16 + second];
      CHECK(from_bf16(bf16(pair)) == float(first - 8) && from_bf16(bf16(pair >> 16)) == float(second - 8), first, ", ", second);
    }
}

TEST_MAIN()
