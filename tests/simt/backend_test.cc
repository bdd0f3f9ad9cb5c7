// What surrounds the kernels, through the plugin's boundary: memory and copies, pages of a fork, contexts of other owners, a build
// without code for the device.
#include "backend/plugin.h"
#include "cpp/test.h"
#include "model/kv_cache.h"
#include "simt/kernel_test.h"
#include "simt/runtime.h"

extern "C" const paceline::BackendPlugin* paceline_backend_plugin(uint32_t abi);

using namespace paceline;
using namespace paceline::test;

namespace {

std::unique_ptr<Backend> new_backend(int device = 0) { return make_plugin_backend(*paceline_backend_plugin(kPluginAbi), device); }

std::vector<uint32_t> random_words(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<uint32_t> words(count);
  for (uint32_t& word : words) word = uint32_t(random());
  return words;
}

}  // namespace

// Far more than is staged at once, enqueued without a wait; the caller's memory is gone when the device gets to it.
TEST(uploads_arrive_whole_though_the_host_forgets_them) {
  const auto backend = new_backend();
  std::vector<Buffer> buffers;
  std::vector<size_t> counts{1, 7, 1 << 18, (1 << 18) + 1, 3 << 19, 5, 1 << 20, 9};
  for (size_t i = 0; i < counts.size(); ++i) {
    buffers.push_back(backend->allocate(counts[i] * 4));
    std::vector<uint32_t> words = random_words(counts[i], unsigned(i));
    backend->upload(buffers[i].as<void>(), words.data(), words.size() * 4);
    std::fill(words.begin(), words.end(), 0xDEADBEEF);
  }
  for (size_t i = 0; i < counts.size(); ++i) {
    std::vector<uint32_t> words(counts[i]);
    backend->download(words.data(), buffers[i].as<void>(), words.size() * 4);
    CHECK(words == random_words(counts[i], unsigned(i)), "upload ", i);
  }
}

TEST(memory_of_the_host_is_adopted_as_a_copy) {
  const auto backend = new_backend();
  std::vector<uint32_t> words = random_words(1000, 3);
  bool released = false;
  const Buffer copy = backend->adopt(Buffer(words.data(), 4000, [&](void*) { released = true; }));
  CHECK(released);
  std::fill(words.begin(), words.end(), 0);
  backend->download(words.data(), copy.as<void>(), 4000);
  CHECK(words == random_words(1000, 3));
}

// Contents are told apart by hashes that do not know pages.
TEST(a_forked_cache_holds_its_parents_rows_and_its_own_last_page) {
  const auto backend = new_backend();
  const AttentionShape shape{2, 2, 4, nullptr, nullptr};
  constexpr int kLayers = 2, kPages = 6;
  for (DType dtype : {DType::fp32, DType::bf16}) {
    KvCache cache(*backend, {kLayers, 2, 4, dtype}, kPages, 2, 192);
    const size_t page = size_t(kPagePositions) * 2 * 4 * size_of(dtype);
    CHECK(cache.reserve(0, 130));
    for (int i = 0; i < kLayers; ++i)
      for (void* plane : {cache.layer(i).keys, cache.layer(i).values})
        backend->upload(plane, random_words(kPages * page / 4, unsigned(i) + (plane == cache.layer(i).keys)).data(), kPages * page);
    CHECK(cache.share(0, 1, 100, shape));
    cache.publish();
    const std::vector<uint64_t> parent = cache.hashes(0, 100, shape);
    CHECK(cache.hashes(1, 100, shape) == parent);
    const std::vector<unsigned char> zeros(page);
    for (int i = 0; i < kLayers; ++i) backend->upload(static_cast<char*>(cache.layer(i).keys) + cache.pages().table(0)[1] * page, zeros.data(), page);
    CHECK(cache.hashes(0, 100, shape) != parent);  // the parent writes on where it had been shared in part
    CHECK(cache.hashes(1, 100, shape) == parent);
  }
}

TEST(a_table_of_another_size_is_refused) { CHECK(paceline_backend_plugin(kPluginAbi + 1) == nullptr); }

#ifdef PACELINE_HOST_SIMT  // what only the stub can tell or do

// Whoever embeds the engine keeps its own device; nothing is made on one that nobody asked for.
TEST(the_threads_context_is_left_as_it_was) {
  simt::set_device_count(3);
  CHECK(!simt::device_was_used(2));
  {
    const auto backend = new_backend(2);
    Buffer buffer = backend->allocate(64);
    const std::vector<uint32_t> words = random_words(16, 1);
    backend->upload(buffer.as<void>(), words.data(), 64);
    const auto graph = backend->capture([&] { backend->timestamp(buffer.as<int64_t>()); });
    graph->launch();
    backend->synchronize();
    CHECK(simt::device_was_used(2));
    CHECK(!simt::device_was_used(1));
    CHECK(simt::current_device() == 0);
    cudaSetDevice(1);  // another library of this thread
    graph->launch();
    backend->synchronize();
    CHECK(simt::current_device() == 1);
    CHECK_THROWS(backend->capture([] { throw std::runtime_error("the line failed"); }), std::runtime_error, "the line failed");
    CHECK(simt::current_device() == 1);
  }
  CHECK(simt::current_device() == 1);
  cudaSetDevice(0);
  simt::set_device_count(1);
}

TEST(a_build_without_code_for_the_device_says_so) {
  simt::set_code_is_missing(true);
  CHECK_THROWS(new_backend(), std::invalid_argument, "has no code for stub, compute capability 9.0");
  simt::set_code_is_missing(false);
}

// What a capture cannot hold fails, and leaves the stream usable.
TEST(a_line_that_allocates_is_refused) {
  const auto backend = new_backend();
  CHECK_THROWS(backend->capture([&] { backend->allocate(64); }), DeviceError, "cudaErrorStreamCaptureUnsupported");
  CHECK_THROWS(backend->capture([&] {
    try {
      backend->allocate(64);
    } catch (const DeviceError&) {
    }
  }), DeviceError, "cudaErrorStreamCaptureInvalidated");
  const Buffer stamp = backend->allocate(8);
  backend->capture([&] { backend->timestamp(stamp.as<int64_t>()); })->launch();
  backend->synchronize();
}

// A kernel that died takes the device from the whole process: a new engine would not help.
TEST(an_error_that_sticks_asks_for_a_new_process) {
  try {
    cuda::check(cudaErrorIllegalAddress, "cudaStreamSynchronize");
  } catch (const DeviceError& error) {
    CHECK(std::string(error.what()).find("start a new one") != std::string::npos, error.what());
  }
}

#endif

TEST_MAIN()
