#include "backend/cpu/cpu_backend.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace paceline::cpu {
namespace {

static_assert(kGroupPages == kPageGroup && kPagePositions == 64 && kLongestHead == kMaxHeadDim, "the kernels' pages are the backend's");
constexpr int kPrivateRows = 16;  // up to here each thread packs all rows for itself: cheaper than a barrier

class Line final : public Graph {
 public:
  Line(ThreadPool& pool, std::function<void()> run) : pool_(pool), run_(std::move(run)) {}
  void launch() override {
    const ThreadPool::Turn turn(pool_);
    run_();
  }

 private:
  ThreadPool& pool_;
  std::function<void()> run_;
};

}  // namespace

Level level_of(const std::string& name) {
  // Everything CMakeLists.txt lets the compiler use at the level.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  const struct {
    const char* name;
    bool here;
    Level level;
  } all[] = {
      {"avx512_bf16", avx512_bf16, {&avx512_bf16::kernels(), &avx512_bf16::sampling_kernels()}},
      {"avx512", avx512, {&avx512::kernels(), &avx512::sampling_kernels()}},
      {"avx2", avx2, {&avx2::kernels(), &avx2::sampling_kernels()}},
  };
  std::string available;
  for (const auto& each : all) {
    if (!each.here) continue;
    if (name.empty() || name == each.name) return each.level;
    available += (available.empty() ? "" : ", ") + std::string(each.name);
  }
  require(!available.empty(), "[Engine] the CPU engine needs a processor with AVX2 and FMA");
  throw std::invalid_argument(message("[Engine] the instruction level must be one of ", available, " on this machine, got ", name));
}

CpuBackend::CpuBackend(int num_threads, const std::string& level) : CpuBackend(shared_pool(num_threads), level_of(level), false) {}

CpuBackend::CpuBackend(std::shared_ptr<ThreadPool> pool, const Level& level, bool is_dry)
    : pool_(std::move(pool)), level_(level), kernels_(level.forward), sampling_(level.sampling), is_dry_(is_dry) {
  if (pool_->num_threads() > 1) attention_states_ = allocate(10 * size_t(pool_->num_threads()) * kTaskQueries * sizeof(AttentionState));
}

std::string CpuBackend::description() const { return message("cpu ", kernels_->name, ", ", pool_->num_threads(), " threads"); }

// Zeroed by the system, on huge pages where it is worth it: weights stream 5 to 10 % faster from them than from small ones of this kind
// (docs/performance.md, which also says that the pages of a mapped file lose nothing).
Buffer CpuBackend::allocate(size_t bytes) {
  if (bytes == 0) return {};
  if (is_dry_) return Buffer(nullptr, bytes, nullptr);
  constexpr size_t kHuge = 2 << 20;
  const size_t unit = bytes >= kHuge ? kHuge : 64, size = (bytes + unit - 1) / unit * unit;
  void* memory = std::aligned_alloc(unit, size);
  if (!memory) throw std::bad_alloc();
  madvise(memory, bytes / kHuge * kHuge, MADV_HUGEPAGE);  // whole ones only: a hundred matrices would waste a megabyte each
  std::memset(memory, 0, bytes);
  return Buffer(memory, bytes, [](void* p) { std::free(p); });
}

void CpuBackend::upload(void* device, const void* host, size_t bytes) {
  if (bytes) std::memcpy(device, host, bytes);
}
void CpuBackend::download(void* host, const void* device, size_t bytes) {
  if (bytes) std::memcpy(host, device, bytes);
}
std::unique_ptr<Graph> CpuBackend::capture(std::function<void()> line) { return std::make_unique<Line>(*pool_, std::move(line)); }

// ------------------------------------------------------------------------------------------------ scratch

void CpuBackend::reserve_rows(int k, DType dtype) {
  const size_t bytes = kernels_->packed_row_bytes(k, dtype);
  if (bytes <= row_bytes_) return;
  row_bytes_ = bytes;
  shared_rows_ = allocate(bytes * kMaxRows);
  private_rows_ = allocate(bytes * kPrivateRows * pool_->num_threads());
}

// A thread works on one row at a time.
void CpuBackend::prepare_sampling(int, int, Acceptance, int vocab_size) {
  if (vocab_size <= vocab_size_) return;
  vocab_size_ = vocab_size;
  const size_t count = 2 * pool_->num_threads();
  logits_scratch_ = allocate(count * vocab_size * sizeof(float));
  counts_scratch_ = allocate(count * vocab_size * sizeof(int32_t));
  histogram_scratch_ = allocate(count * 2048 * sizeof(uint64_t));
}

size_t CpuBackend::scratch_bytes() const {
  size_t total = 0;
  for (const Buffer* each : {&shared_rows_, &private_rows_, &attention_states_, &logits_scratch_, &counts_scratch_, &histogram_scratch_})
    total += each->bytes();
  return total;
}

std::unique_ptr<Backend> CpuBackend::dry() const { return std::unique_ptr<Backend>(new CpuBackend(pool_, level_, true)); }

SamplingScratch CpuBackend::scratch_at(int index) const {
  return {logits_scratch_.as<float>() + size_t(index) * vocab_size_, counts_scratch_.as<int32_t>() + size_t(index) * vocab_size_,
          histogram_scratch_.as<uint64_t>() + size_t(index) * 2048};
}

// ------------------------------------------------------------------------------------------------ the network

void CpuBackend::product(const Rows& rows, const float* x, int stride, const float* norm, float eps, const Matrix& w, const Epilogue& to,
                         int thread, int num_threads) {
  const int live = *rows.live;
  const bool is_private = live <= kPrivateRows;
  char* memory = is_private ? private_rows_.as<char>() + row_bytes_ * kPrivateRows * thread : shared_rows_.as<char>();
  for (int row = is_private ? 0 : thread; row < live; row += is_private ? 1 : num_threads)
    kernels_->pack(x + size_t(row) * stride, w.k, norm, eps, w.dtype, memory, row, live);
  if (!is_private) pool_->barrier();
  // Whole pairs of blocks, as evenly as they go: gate and up stay together.
  const int pairs = (w.num_blocks + 1) / 2, begin = pairs * thread / num_threads * 2;
  const int end = std::min(pairs * (thread + 1) / num_threads * 2, w.num_blocks);
  kernels_->linear(w, memory, live, begin, end, to);
}

void CpuBackend::embed(const Rows& rows, const PackedMatrix& table, int d, float* x) {
  auto some = [&](int thread, int num_threads) {
    for (int row = thread; row < *rows.live; row += num_threads)
      kernels_->embed(matrix_of(table), rows.token[row], d, x + size_t(row) * d);
  };
  if (*rows.live > 4) return pool_->run(some);
  const FloatMode mode;  // integer tables are scaled here: not in the caller's rounding
  some(0, 1);
}

void CpuBackend::norm_qkv_rope_write(const Rows& rows, const float* x, int d, const QkvWeights& weights, const AttentionShape& shape,
                                     const KvLayer& kv, float* qkv) {
  if (*rows.live == 0) return;
  require(*rows.live <= kMaxRows, "[CpuBackend] a pass has at most ", kMaxRows, " rows, got ", *rows.live);
  const Matrix& w = matrix_of(*weights.qkv);
  const int stride = w.num_blocks * 16, dh = shape.head_dim, half = dh / 2;
  const int k_column = padded(shape.num_heads * dh), v_column = k_column + padded(shape.num_kv_heads * dh);
  pool_->run([&](int thread, int num_threads) {
    product(rows, x, d, weights.norm, weights.eps, w, {Epilogue::write, qkv, stride, stride, weights.bias}, thread, num_threads);
    pool_->barrier();
    const int heads = shape.num_heads + shape.num_kv_heads;
    for (int i = thread; i < *rows.live * heads; i += num_threads) {
      const int row = i / heads, head = i % heads, kv_head = head - shape.num_heads, position = rows.position[row];
      const float *cosines = shape.rope_cos + size_t(position) * half, *sines = shape.rope_sin + size_t(position) * half;
      float* values = qkv + size_t(row) * stride;
      if (kv_head < 0) {
        kernels_->norm_rope(values + head * dh, dh, weights.q_norm, weights.eps, cosines, sines);
        continue;
      }
      float* k = values + k_column + kv_head * dh;
      kernels_->norm_rope(k, dh, weights.k_norm, weights.eps, cosines, sines);
      const int page = kv.page_table[size_t(rows.slot[row]) * kv.pages_per_slot + position / kPagePositions];
      const size_t at = page * page_bytes(shape, kv.dtype) + kv_head * head_bytes(shape, kv.dtype);
      kernels_->write_kv(k, values + v_column + kv_head * dh, dh, position % kPagePositions, kv.dtype, static_cast<char*>(kv.keys) + at,
                         static_cast<char*>(kv.values) + at);
    }
  });
}

void CpuBackend::linear_residual(const Rows& rows, const float* in, int k, const PackedMatrix& packed, const float* bias, float* x, int d) {
  if (*rows.live == 0) return;
  pool_->run([&](int thread, int num_threads) {
    product(rows, in, k, nullptr, 0, matrix_of(packed), {Epilogue::add, x, d, d, bias}, thread, num_threads);
  });
}

void CpuBackend::norm_gate_up(const Rows& rows, const float* x, int d, const float* norm, float eps, const PackedMatrix& packed, int f,
                              float* out) {
  if (*rows.live == 0) return;
  pool_->run([&](int thread, int num_threads) {
    product(rows, x, d, norm, eps, matrix_of(packed), {Epilogue::gate, out, f, f, nullptr}, thread, num_threads);
  });
}

void CpuBackend::norm_head(const Rows& rows, const float* x, int d, const float* norm, float eps, const PackedMatrix& packed, int v,
                           float* logits) {
  if (*rows.live == 0) return;
  pool_->run([&](int thread, int num_threads) {
    product(rows, x, d, norm, eps, matrix_of(packed), {Epilogue::write, logits, v, v, nullptr}, thread, num_threads);
  });
}

// ------------------------------------------------------------------------------------------------ pages

void CpuBackend::copy_pages(const KvLayer& kv, const AttentionShape& shape, const int32_t* from, const int32_t* to, int count) {
  const size_t bytes = page_bytes(shape, kv.dtype);
  for (int i = 0; i < count; ++i)
    for (void* plane : {kv.keys, kv.values}) {
      char* pages = static_cast<char*>(plane);
      std::memcpy(pages + to[i] * bytes, pages + from[i] * bytes, bytes);
    }
}

uint64_t CpuBackend::hash_kv(const KvLayer& kv, const AttentionShape& shape, int slot, int position) {
  const int page = kv.page_table[size_t(slot) * kv.pages_per_slot + position / kPagePositions], offset = position % kPagePositions;
  const size_t width = size_of(kv.dtype), base = page * page_bytes(shape, kv.dtype);
  uint64_t hash = 0x243F6A8885A308D3u;
  const auto mix = [&](const void* plane, size_t element) {
    uint32_t bits = 0;
    std::memcpy(&bits, static_cast<const char*>(plane) + base + element * width, width);
    hash = (hash ^ bits) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 29;
  };
  for (int head = 0; head < shape.num_kv_heads; ++head)
    for (int i = 0; i < shape.head_dim; ++i) {
      const size_t plane = size_t(head) * kPagePositions * shape.head_dim;
      const bool paired = kv.dtype == DType::bf16;
      mix(kv.keys, plane + (paired ? (size_t(i / 2) * 64 + offset) * 2 + i % 2 : size_t(i) * 64 + offset));
      mix(kv.values, plane + (paired ? (size_t(offset / 2) * shape.head_dim + i) * 2 + offset % 2 : size_t(offset) * shape.head_dim + i));
    }
  return hash;
}

}  // namespace paceline::cpu

namespace paceline {

int usable_threads() { return cpu::ThreadPool::usable_threads(); }

// PACELINE_CPU_LEVEL forces a level for tests, as the argument does.
std::unique_ptr<Backend> make_cpu_backend(int num_threads, const std::string& level) {
  require(num_threads >= 0 && num_threads <= 1024, "[Engine] num_threads must be in [1, 1024] or None, got ", num_threads);
  const char* forced = std::getenv("PACELINE_CPU_LEVEL");
  return std::make_unique<cpu::CpuBackend>(num_threads, level.empty() && forced ? forced : level);
}

}  // namespace paceline
