#include "backend/cuda/cuda_backend.h"

#include <cuda_profiler_api.h>

#include <algorithm>
#include <cstdlib>

#include "backend/cuda/check.h"
#include "backend/cuda/tiles.h"

namespace paceline::cuda {
namespace {

const DeviceMatrix& matrix_of(const PackedMatrix& packed) { return static_cast<const CudaMatrix&>(packed).view(); }

bool cublas_is_forced() {
  const char* forced = std::getenv("PACELINE_CUDA_MATMUL");
  const std::string name = forced ? forced : "";
  require(name.empty() || name == "cublas", "[Engine] PACELINE_CUDA_MATMUL must be cublas or unset, got ", name);
  return !name.empty();
}

size_t page_bytes(const AttentionShape& shape, DType dtype) {
  return size_t(shape.num_kv_heads) * kPagePositions * shape.head_dim * size_of(dtype);
}

bool is_missing_code(cudaError_t error) {
  return error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction || error == cudaErrorInvalidPtx ||
         error == cudaErrorUnsupportedPtxVersion;
}

// Leaves the core to its other thread while this one watches.
void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class CudaGraph final : public Graph {
 public:
  CudaGraph(cudaGraphExec_t executable, cudaStream_t stream) : executable_(executable), stream_(stream) {}
  ~CudaGraph() override { cudaGraphExecDestroy(executable_); }
  void launch() override { check(cudaGraphLaunch(executable_, stream_), "cudaGraphLaunch"); }

 private:
  cudaGraphExec_t executable_;
  cudaStream_t stream_;
};

}  // namespace

CudaBackend::CudaBackend(int device) : bf16_by_cublas_(cublas_is_forced()) {
  cudaDeviceProp properties{};
  check(cudaSetDevice(device), "cudaSetDevice");
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  const std::string name = message(properties.name, ", compute capability ", properties.major, ".", properties.minor);
  require(properties.major >= 8, "[Engine] device cuda needs compute capability 8.0 or newer, got ", name);
  const cudaError_t code = code_for_device();
  require(!is_missing_code(code), "[Engine] this build of the CUDA engine has no code for ", name,
          ": install paceline[cuda], or build with CUDAARCHS=native");
  check(code, "cudaFuncGetAttributes");
  description_ = "cuda: " + name;
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  try {
    staging_ = std::make_unique<Staging>(stream_);
    matmul_ = std::make_unique<Matmul>(stream_);
  } catch (...) {
    staging_.reset();
    cudaStreamDestroy(stream_);
    throw;
  }
}

CudaBackend::~CudaBackend() {
  if (is_dry()) return;
  cudaStreamSynchronize(stream_);  // whatever still runs reads memory that goes now
  matmul_.reset();
  staging_.reset();
  cudaStreamDestroy(stream_);
}

// ------------------------------------------------------------------------------------------------ memory

Buffer CudaBackend::allocate(size_t bytes) {
  if (bytes == 0) return {};
  if (is_dry()) return Buffer(nullptr, bytes, nullptr);
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes), "cudaMalloc");
  Buffer buffer(memory, bytes, [](void* p) { cudaFree(p); });
  check(cudaMemsetAsync(memory, 0, bytes, stream_), "cudaMemsetAsync");
  return buffer;
}

// Pinned and mapped. Under unified addressing, which every supported device has, its address is the same on both sides.
Buffer CudaBackend::allocate_shared(size_t bytes) {
  if (bytes == 0) return {};
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, bytes, cudaHostAllocMapped), "cudaHostAlloc");
  std::memset(memory, 0, bytes);
  return Buffer(memory, bytes, [](void* p) { cudaFreeHost(p); });
}

void CudaBackend::upload(void* device, const void* host, size_t bytes) { staging_->upload(device, host, bytes); }

void CudaBackend::download(void* host, const void* device, size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync to the host");
  synchronize();
}

void CudaBackend::synchronize() { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

size_t CudaBackend::free_bytes() {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

size_t CudaBackend::scratch_bytes() const {
  size_t total = Staging::kBytes + Matmul::kWorkspaceBytes;
  for (const Buffer* each : {&operand_, &sums_, &attention_scratch_, &sampling_scratch_}) total += each->bytes();
  for (const Buffer& each : outgrown_) total += each.bytes();
  return total;
}

// What a line enqueues while it is captured is recorded instead of run. A line that throws leaves the stream as it was.
std::unique_ptr<Graph> CudaBackend::capture(std::function<void()> line) {
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  cudaGraph_t graph = nullptr;
  try {
    line();
  } catch (...) {
    cudaStreamEndCapture(stream_, &graph);
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
  cudaGraphExec_t executable = nullptr;
  const cudaError_t made = ended == cudaSuccess ? cudaGraphInstantiate(&executable, graph, 0) : ended;
  if (graph) cudaGraphDestroy(graph);
  check(ended, "cudaStreamEndCapture");
  check(made, "cudaGraphInstantiate");
  auto captured = std::make_unique<CudaGraph>(executable, stream_);
  check(cudaGraphUpload(executable, stream_), "cudaGraphUpload");  // or else the first launch does it
  return captured;
}

void CudaBackend::reserve(Buffer& buffer, size_t bytes) {
  if (bytes <= buffer.bytes()) return;
  Buffer larger = allocate(bytes);
  if (buffer.bytes()) outgrown_.push_back(std::move(buffer));
  buffer = std::move(larger);
}

// The counter lives in shared memory: the host watches it instead of waiting for the stream, and asks the stream only now and then
// whether it still lives.
void CudaBackend::wait_for(const int64_t* counter, int64_t value) {
  constexpr int kLooks = 1024;  // tens of microseconds, with a pause after each
  const auto reached = [&] { return __atomic_load_n(counter, __ATOMIC_ACQUIRE) >= value; };
  while (true) {
    for (int look = 0; look < kLooks; ++look) {
      if (reached()) return;
      pause_briefly();
    }
    const cudaError_t state = cudaStreamQuery(stream_);
    if (state == cudaErrorNotReady || reached()) continue;
    check(state, "cudaStreamQuery");
    throw DeviceError("[cuda] the stream has ended and the cycle left no result");
  }
}

// Between what is enqueued, not in its midst.
void CudaBackend::profile(bool on) {
  synchronize();
  if (on) check(cudaProfilerStart(), "cudaProfilerStart");
  else check(cudaProfilerStop(), "cudaProfilerStop");
}

// ------------------------------------------------------------------------------------------------ the network

template <class Each>
void CudaBackend::for_each_block(const Rows& rows, const float* x, const float* norm, float eps, const DeviceMatrix& w, Each each) {
  for (int first = 0; first < rows.capacity; first += kRowBlock) {
    pack_rows(stream_, rows, first, x, w, norm, eps, operand_.as<void>());
    each(first, operand_.as<void>());
  }
}

const float* CudaBackend::multiplied(const DeviceMatrix& w, const void* operand) {
  matmul_->multiply(w.data, kTile * w.num_blocks, padded_k(w.k), w.dtype, operand, sums_.as<float>());
  return sums_.as<float>();
}

void CudaBackend::embed(const Rows& rows, const PackedMatrix& table, int d, float* x) { cuda::embed(stream_, rows, matrix_of(table), d, x); }

void CudaBackend::norm_qkv_rope_write(const Rows& rows, const float* x, int, const QkvWeights& weights, const AttentionShape& shape,
                                      const KvLayer& kv, float* qkv) {
  const DeviceMatrix& w = matrix_of(*weights.qkv);
  const int columns = kTile * w.num_blocks;
  for_each_block(rows, x, weights.norm, weights.eps, w, [&](int first, const void* operand) {
    const float* sums = qkv + size_t(first) * columns;
    if (w.tiled) skinny_sums(stream_, rows, first, w, operand, qkv, columns, columns);
    else sums = multiplied(w, operand);
    finish_qkv(stream_, rows, first, sums, columns, weights, shape, kv, qkv);
  });
}

void CudaBackend::attention(const Rows& rows, const float* qkv, const AttentionShape& shape, const KvLayer& kv, float* out) {
  cuda::attention(stream_, rows, qkv, shape, kv, attention_scratch_.as<void>(), attention_scratch_.bytes(), out);
}

void CudaBackend::linear_residual(const Rows& rows, const float* in, int, const PackedMatrix& packed, const float* bias, float* x, int d) {
  const DeviceMatrix& w = matrix_of(packed);
  for_each_block(rows, in, nullptr, 0, w, [&](int first, const void* operand) {
    if (w.tiled) skinny_residual(stream_, rows, first, w, operand, bias, x, d);
    else finish_residual(stream_, rows, first, multiplied(w, operand), kTile * w.num_blocks, bias, x, d);
  });
}

void CudaBackend::norm_gate_up(const Rows& rows, const float* x, int, const float* norm, float eps, const PackedMatrix& packed, int f, float* out) {
  const DeviceMatrix& w = matrix_of(packed);
  for_each_block(rows, x, norm, eps, w, [&](int first, const void* operand) {
    if (w.tiled) skinny_gate_up(stream_, rows, first, w, operand, f, out);
    else finish_gate_up(stream_, rows, first, multiplied(w, operand), kTile * w.num_blocks, f, out);
  });
}

void CudaBackend::norm_head(const Rows& rows, const float* x, int, const float* norm, float eps, const PackedMatrix& packed, int v, float* logits) {
  const DeviceMatrix& w = matrix_of(packed);
  for_each_block(rows, x, norm, eps, w, [&](int first, const void* operand) {
    if (w.tiled) skinny_sums(stream_, rows, first, w, operand, logits, v, v);
    else finish_logits(stream_, rows, first, multiplied(w, operand), kTile * w.num_blocks, v, logits);
  });
}

// ------------------------------------------------------------------------------------------------ pages

void CudaBackend::prepare_attention(int rows, int pages_per_slot, const AttentionShape& shape) {
  reserve(attention_scratch_, attention_scratch_bytes(rows, pages_per_slot, shape));
}

void CudaBackend::copy_pages(const KvLayer& kv, const AttentionShape& shape, const int32_t* from, const int32_t* to, int count) {
  const size_t bytes = page_bytes(shape, kv.dtype);
  for (int i = 0; i < count; ++i)
    for (void* plane : {kv.keys, kv.values}) {
      char* pages = static_cast<char*>(plane);
      check(cudaMemcpyAsync(pages + to[i] * bytes, pages + from[i] * bytes, bytes, cudaMemcpyDeviceToDevice, stream_), "cudaMemcpyAsync of a page");
    }
}

uint64_t CudaBackend::hash_kv(const KvLayer& kv, const AttentionShape& shape, int slot, int position) {
  int32_t page = 0;
  download(&page, kv.page_table + size_t(slot) * kv.pages_per_slot + position / kPagePositions, sizeof page);
  const size_t head_bytes = size_t(shape.head_dim) * size_of(kv.dtype);
  std::vector<unsigned char> values(head_bytes);
  uint64_t hash = 0x243F6A8885A308D3u;
  for (int head = 0; head < shape.num_kv_heads; ++head)
    for (const void* plane : {kv.keys, kv.values}) {
      const size_t at = page * page_bytes(shape, kv.dtype) + (size_t(head) * kPagePositions + position % kPagePositions) * head_bytes;
      download(values.data(), static_cast<const char*>(plane) + at, head_bytes);
      for (unsigned char byte : values) hash = (hash ^ byte) * 0x9E3779B97F4A7C15u, hash ^= hash >> 29;
    }
  return hash;
}

// ------------------------------------------------------------------------------------------------ the cycle

void CudaBackend::log_softmax(const Rows& rows, const float* logits, int v, float* out) { cuda::log_softmax(stream_, rows, logits, v, out); }
// Always new: it is zeros when a cycle first meets it.
void CudaBackend::prepare_sampling(int num_slots, int tau_max, Acceptance acceptance, int vocab_size) {
  if (sampling_scratch_.bytes()) outgrown_.push_back(std::move(sampling_scratch_));
  sampling_scratch_ = allocate(sampling_scratch_bytes(num_slots, tau_max, acceptance, vocab_size));
  sampling_vocab_size_ = vocab_size;
}
void CudaBackend::begin_cycle(const CycleState& state) { cuda::begin_cycle(stream_, state); }
void CudaBackend::plan_draft(const CycleState& state, int step, const Rows& rows) { cuda::plan_draft(stream_, state, step, rows); }
void CudaBackend::sample_draft(const CycleState& state, int step) { cuda::sample_draft(stream_, state, step, sampling()); }
void CudaBackend::plan_verify(const CycleState& state, const Rows& rows) { cuda::plan_verify(stream_, state, rows); }
void CudaBackend::accept(const CycleState& state, const float* logits, int vocab_size, const CycleResults& results) {
  cuda::accept(stream_, state, logits, vocab_size, results, sampling());
}
void CudaBackend::record_catch_up(const CycleState& state, const CycleEvidence& evidence) {
  cuda::record_catch_up(stream_, state, evidence, sampling());
}
void CudaBackend::record_cycle(const CycleState& state, const Rows& rows, const float* logits, int vocab_size, const CycleResults&,
                               const CycleEvidence& evidence) {
  cuda::record_cycle(stream_, state, rows, logits, vocab_size, evidence, sampling());
}
void CudaBackend::timestamp(int64_t* nanoseconds) { cuda::timestamp(stream_, nanoseconds); }
void CudaBackend::count_up(int64_t* counter) { cuda::count_up(stream_, counter); }

}  // namespace paceline::cuda
