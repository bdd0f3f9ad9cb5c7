// The CUDA engine's operations on a device: microseconds and GB/s of each, cold, against the bandwidth that the device shows in the
// same minutes and against cuBLASLt. One JSON object per line, as each is done; bench/gpu_gate.py runs it and says what the targets are.
//
//   cuda_kernels [--tiny] [--repetitions N] [--parts bandwidth,products,attention,cycle]
//
// Cold: an operation is captured over as many copies of what it reads as exceed every L2 several times, and a graph of all of them is
// timed with events. Contenders take turns, medians are printed. --tiny: small shapes, so that the program itself can be tried anywhere.
#include <cublasLt.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <sstream>
#include <vector>

#include "backend/cuda/check.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/device.cuh"
#include "backend/cuda/values.cuh"
#include "core/error.h"

using namespace paceline;

namespace {

struct Geometry {
  const char* name;
  int hidden, heads, kv_heads, head_dim, ffn, vocab;
};
constexpr Geometry kLlama[] = {{"Llama-3.1-8B", 4096, 32, 8, 128, 14336, 128256}, {"Llama-3.2-1B", 2048, 32, 8, 64, 8192, 128256}};
constexpr Geometry kTiny[] = {{"tiny", 32, 2, 1, 16, 48, 80}};

struct Options {
  bool tiny = false;
  int repetitions = 15;
  std::vector<std::string> parts = {"bandwidth", "products", "attention", "cycle"};
  bool has(const char* part) const { return std::find(parts.begin(), parts.end(), part) != parts.end(); }
  size_t cold_bytes() const { return tiny ? 8 << 10 : size_t(512) << 20; }  // ten times the L2 of a Hopper
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// ------------------------------------------------------------------------------------------------ values and reads
__device__ uint32_t scrambled(uint32_t x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

// Numbers of mean 0 and a deviation of `scale`, nearly normal.
template <class T>
__global__ void fill_kernel(T* to, size_t count, float scale) {
  cuda::take_turn();
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) {
    float sum = 0;
    for (uint32_t part = 0; part < 3; ++part) sum += float(int(scrambled(uint32_t(i) * 3 + part) >> 8) - (1 << 23)) * 0x1p-23f;
    cuda::put(to + i, sum * scale);
  }
}

// Reads everything, eight independent 16-byte loads at a time, and writes only what it never finds.
__global__ void read_kernel(const uint4* from, size_t count, unsigned* found) {
  cuda::take_turn();
  constexpr int kAhead = 8;
  const size_t threads = size_t(gridDim.x) * blockDim.x;
  unsigned seen = 0;
  for (size_t first = size_t(blockIdx.x) * blockDim.x + threadIdx.x; first < count; first += kAhead * threads) {
    uint4 ahead[kAhead] = {};
    PACELINE_UNROLL
    for (int i = 0; i < kAhead; ++i)
      if (first + i * threads < count) ahead[i] = from[first + i * threads];
    PACELINE_UNROLL
    for (int i = 0; i < kAhead; ++i) seen |= ahead[i].x ^ ahead[i].y ^ ahead[i].z ^ ahead[i].w;
  }
  if (seen == 0x12345678u) *found = seen;
}

// ------------------------------------------------------------------------------------------------ the device
class Device {
 public:
  Device() : backend(0) {
    cudaDeviceProp properties{};
    cuda::check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    blocks_ = 16 * std::max(1, properties.multiProcessorCount);
    for (cudaEvent_t* event : {&begin_, &end_}) cuda::check(cudaEventCreate(event), "cudaEventCreate");
    found_ = backend.allocate(sizeof(unsigned));
  }
  ~Device() {
    for (cudaEvent_t event : {begin_, end_}) cudaEventDestroy(event);
  }

  template <class T>
  Buffer filled(size_t count, float scale = 1) {
    Buffer buffer = backend.allocate(count * sizeof(T));
    cuda::launch(fill_kernel<T>, dim3(unsigned(blocks_)), 256, 0, backend.stream(), buffer.as<T>(), count, scale);
    return buffer;
  }
  template <class T>
  Buffer uploaded(const std::vector<T>& values) {
    Buffer buffer = backend.allocate(values.size() * sizeof(T));
    backend.upload(buffer.as<void>(), values.data(), values.size() * sizeof(T));
    return buffer;
  }
  void read(const Buffer& buffer) {
    cuda::launch(read_kernel, dim3(unsigned(blocks_)), 256, 0, backend.stream(), buffer.as<const uint4>(), buffer.bytes() / sizeof(uint4),
                 found_.as<unsigned>());
  }
  double microseconds(Graph& graph) {
    float milliseconds = 0;
    cuda::check(cudaEventRecord(begin_, backend.stream()), "cudaEventRecord");
    graph.launch();
    cuda::check(cudaEventRecord(end_, backend.stream()), "cudaEventRecord");
    cuda::check(cudaEventSynchronize(end_), "cudaEventSynchronize");
    cuda::check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
    return 1e3 * milliseconds;
  }

  cuda::CudaBackend backend;

 private:
  int blocks_;
  cudaEvent_t begin_, end_;
  Buffer found_;
};

// Something to be timed: a graph of `count` operations.
struct Contender {
  std::unique_ptr<Graph> graph;
  double count;
  std::vector<double> times = {};  // microseconds of one operation
  double time() const { return median(times); }
};

Contender contender(Device& device, int count, const std::function<void(int)>& operation) {
  return {device.backend.capture([&] {
            for (int i = 0; i < count; ++i) operation(i);
          }), double(count)};
}

void measure(Device& device, const std::vector<Contender*>& all, int repetitions) {
  for (int i = -1; i < repetitions; ++i)
    for (Contender* each : all) {
      const double time = device.microseconds(*each->graph) / each->count;
      if (i >= 0) each->times.push_back(time);
    }
}

// ------------------------------------------------------------------------------------------------ what is printed
void print(const std::string& cell, const std::vector<std::pair<const char*, double>>& values) {
  std::string line = "{\"cell\": \"" + cell + "\"";
  for (const auto& [name, value] : values) {
    char number[64];
    std::snprintf(number, sizeof number, ", \"%s\": %.6g", name, value);
    line += number;
  }
  std::puts((line + "}").c_str());
  std::fflush(stdout);
}

void print_not_run(const std::string& cell, const std::string& reason) {
  std::string text;
  for (char c : reason) text += c == '"' || c == '\\' ? '\'' : c;
  std::puts(("{\"cell\": \"" + cell + "\", \"not_run\": \"" + text + "\"}").c_str());
  std::fflush(stdout);
}

bool any_failed = false;

// A cell that fails is told and does not stop the others; after an error of the device all that follow fail as well.
void cell(const std::string& name, const std::function<void()>& body) {
  try {
    body();
  } catch (const std::invalid_argument& refused) {
    print_not_run(name, refused.what());
  } catch (const std::exception& error) {
    std::string text;
    for (char c : std::string(error.what())) text += c == '"' || c == '\\' ? '\'' : c;
    any_failed = true;
    std::puts(("{\"cell\": \"" + name + "\", \"failed\": \"" + text + "\"}").c_str());
    std::fflush(stdout);
  }
}

// ------------------------------------------------------------------------------------------------ bandwidth
Contender reader(Device& device, const Buffer& buffer) {
  return contender(device, 1, [&](int) { device.read(buffer); });
}

void bandwidth(Device& device, const Options& options) {
  const size_t bytes = 4 * options.cold_bytes();
  Buffer from = device.filled<float>(bytes / 4), to = device.filled<float>(bytes / 4);
  Contender read = reader(device, from), copy = contender(device, 1, [&](int) {
    cuda::check(cudaMemcpyAsync(to.as<void>(), from.as<void>(), bytes, cudaMemcpyDeviceToDevice, device.backend.stream()),
                "cudaMemcpyAsync");
  });
  measure(device, {&read, &copy}, options.repetitions);
  print("bandwidth, read", {{"microseconds", read.time()}, {"gb_per_s", double(bytes) / read.time() / 1e3}});
  print("bandwidth, copy (read and written)", {{"microseconds", copy.time()}, {"gb_per_s", 2.0 * double(bytes) / copy.time() / 1e3}});
}

// ------------------------------------------------------------------------------------------------ products
// Rows [0, count) of one sequence, the last at `last`.
struct PassRows {
  PassRows(Device& device, int count, int last) : capacity(count) {
    std::vector<int32_t> zeros(count, 0), places(count);
    for (int i = 0; i < count; ++i) places[i] = last - count + 1 + i;
    live = device.uploaded(std::vector<int32_t>{count});
    slot = device.uploaded(zeros), position = device.uploaded(places), token = device.uploaded(zeros);
  }
  Rows rows() const { return {capacity, live.as<int32_t>(), slot.as<int32_t>(), position.as<int32_t>(), token.as<int32_t>()}; }
  int capacity;
  Buffer live, slot, position, token;
};

// cuBLASLt's own product of exactly so many rows, in bf16 with fp32 sums: the fastest of what its heuristic proposes.
class Library {
 public:
  explicit Library(Device& device) : device_(device), workspace_(device.backend.allocate(kWorkspace)) { check(cublasLtCreate(&handle_)); }
  ~Library() { cublasLtDestroy(handle_); }

  Contender fastest(const std::vector<const void*>& weights, int outputs, int k, int rows, const void* operand, float* sums) {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulPreference_t preference;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    check(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    check(cublasLtMatrixLayoutCreate(&a, CUDA_R_16BF, k, outputs, k));
    check(cublasLtMatrixLayoutCreate(&b, CUDA_R_16BF, k, rows, k));
    check(cublasLtMatrixLayoutCreate(&c, CUDA_R_32F, outputs, rows, outputs));
    check(cublasLtMatmulPreferenceCreate(&preference));
    check(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspace, sizeof kWorkspace));
    cublasLtMatmulHeuristicResult_t found[8];
    int count = 0;
    check(cublasLtMatmulAlgoGetHeuristic(handle_, operation, a, b, c, c, preference, 8, found, &count));
    Contender best{};
    const float one = 1, zero = 0;
    for (int i = 0; i < count; ++i) {
      try {
        Contender next = contender(device_, int(weights.size()), [&](int copy) {
          check(cublasLtMatmul(handle_, operation, &one, weights[copy], a, operand, b, &zero, sums, c, sums, c, &found[i].algo,
                               workspace_.as<void>(), kWorkspace, device_.backend.stream()));
        });
        measure(device_, {&next}, 3);
        if (!best.graph || next.time() < best.time()) best = std::move(next);
      } catch (const std::exception&) {  // it proposed what it cannot do
      }
    }
    cublasLtMatmulPreferenceDestroy(preference);
    for (auto layout : {a, b, c}) cublasLtMatrixLayoutDestroy(layout);
    cublasLtMatmulDescDestroy(operation);
    best.times.clear();
    return best;
  }

 private:
  static void check(cublasStatus_t status) {
    if (status != CUBLAS_STATUS_SUCCESS) throw DeviceError(message("cuBLASLt: ", cublasLtGetStatusName(status)));
  }
  static constexpr size_t kWorkspace = 32 << 20;
  Device& device_;
  Buffer workspace_;
  cublasLtHandle_t handle_;
};

// One of a layer's matrices, in as many copies as make it cold, and the operation it belongs to.
struct Product {
  const char* name;
  int outputs, k;
  std::function<void(const PackedMatrix&, const Rows&)> operation;
};

void product(Device& device, Library& library, const Options& options, const Geometry& g, const Product& p, DType dtype,
             const Buffer& cold) {
  cuda::CudaBackend& backend = device.backend;
  const int blocks = cuda::padded_columns(p.outputs) / 16;
  const size_t bytes = backend.matrix_bytes(blocks, p.k, dtype);
  std::vector<Buffer> memories;
  std::vector<const void*> weights;
  std::vector<std::unique_ptr<PackedMatrix>> copies;
  for (size_t total = 0; total < options.cold_bytes() || copies.size() < 2; total += bytes) {
    Buffer memory = device.filled<bf16>(bytes / 2, 0.02f);
    weights.push_back(memory.as<void>());
    copies.push_back(backend.matrix_in(std::move(memory), blocks, p.k, dtype));
  }
  const auto operand = device.filled<bf16>(size_t(64) * cuda::padded_k(p.k)), sums = device.filled<float>(size_t(64) * 16 * blocks);
  std::vector<Contender> all;
  std::vector<int> counts = {1, 2, 4, 8, 16, 64};
  std::vector<std::unique_ptr<PassRows>> rows;
  all.reserve(2 * counts.size() + 1);
  all.push_back(reader(device, cold));
  for (int count : counts) {
    rows.push_back(std::make_unique<PassRows>(device, count, 127));
    all.push_back(contender(device, int(copies.size()), [&](int i) { p.operation(*copies[i], rows.back()->rows()); }));
    all.push_back({});
    if (dtype == DType::bf16)
      all.back() = library.fastest(weights, 16 * blocks, cuda::padded_k(p.k), count, operand.as<void>(), sums.as<float>());
  }
  std::vector<Contender*> timed;
  for (Contender& each : all)
    if (each.graph) timed.push_back(&each);
  measure(device, timed, options.repetitions);
  const double read = double(cold.bytes()) / all[0].time() / 1e3;
  for (size_t i = 0; i < counts.size(); ++i) {
    const Contender &ours = all[1 + 2 * i], &theirs = all[2 + 2 * i];
    std::vector<std::pair<const char*, double>> values = {
        {"microseconds", ours.time()}, {"bytes", double(bytes)}, {"gb_per_s", double(bytes) / ours.time() / 1e3},
        {"of_read", double(bytes) / ours.time() / 1e3 / read}, {"over_one_row", ours.time() / all[1].time()}};
    if (theirs.graph) {
      values.emplace_back("cublas_microseconds", theirs.time());
      values.emplace_back("cublas_over_ours", theirs.time() / ours.time());
    }
    print(message(g.name, ", ", name_of(dtype), ", ", p.name, ", ", counts[i], " rows"), values);
  }
}

void products(Device& device, const Options& options, const Geometry& g) {
  cuda::CudaBackend& backend = device.backend;
  Library library(device);
  const Buffer cold = device.filled<float>(options.cold_bytes() / 4);
  const int q = g.heads * g.head_dim, kv = g.kv_heads * g.head_dim;
  const int columns = cuda::padded_columns(q) + 2 * cuda::padded_columns(kv);
  Buffer x = device.filled<float>(size_t(64) * g.hidden), in = device.filled<float>(size_t(64) * std::max(q, g.ffn));
  Buffer out = device.filled<float>(size_t(64) * std::max(columns, g.ffn)), logits = device.filled<float>(size_t(64) * g.vocab);
  Buffer norm = device.filled<float>(g.hidden), rope = device.filled<float>(size_t(128) * g.head_dim / 2);
  Buffer pages = device.filled<bf16>(size_t(4) * kPagePositions * kv), table = device.uploaded(std::vector<int32_t>{0, 1});
  const AttentionShape shape{g.heads, g.kv_heads, g.head_dim, rope.as<float>(), rope.as<float>()};
  const KvLayer layer{pages.as<bf16>(), pages.as<bf16>() + size_t(2) * kPagePositions * kv, table.as<int32_t>(), 2, DType::bf16};
  const std::vector<Product> all = {
      {"qkv", columns, g.hidden, [&](const PackedMatrix& w, const Rows& rows) {
         backend.norm_qkv_rope_write(rows, x.as<float>(), g.hidden, {&w, norm.as<float>(), nullptr, nullptr, nullptr, 1e-5f}, shape, layer,
                                     out.as<float>());
       }},
      {"output", g.hidden, q, [&](const PackedMatrix& w, const Rows& rows) {
         backend.linear_residual(rows, in.as<float>(), q, w, nullptr, x.as<float>(), g.hidden);
       }},
      {"gate and up", 2 * cuda::padded_columns(g.ffn), g.hidden, [&](const PackedMatrix& w, const Rows& rows) {
         backend.norm_gate_up(rows, x.as<float>(), g.hidden, norm.as<float>(), 1e-5f, w, g.ffn, out.as<float>());
       }},
      {"down", g.hidden, g.ffn, [&](const PackedMatrix& w, const Rows& rows) {
         backend.linear_residual(rows, in.as<float>(), g.ffn, w, nullptr, x.as<float>(), g.hidden);
       }},
      {"head", g.vocab, g.hidden, [&](const PackedMatrix& w, const Rows& rows) {
         backend.norm_head(rows, x.as<float>(), g.hidden, norm.as<float>(), 1e-5f, w, g.vocab, logits.as<float>());
       }}};
  for (DType dtype : {DType::bf16, DType::int8, DType::int4})
    for (const Product& p : all)
      cell(message(g.name, ", ", name_of(dtype), ", ", p.name), [&] { product(device, library, options, g, p, dtype, cold); });
}

// ------------------------------------------------------------------------------------------------ attention
void attention(Device& device, const Options& options, const Geometry& g, int context) {
  cuda::CudaBackend& backend = device.backend;
  const int q = g.heads * g.head_dim, kv = g.kv_heads * g.head_dim, columns = cuda::padded_columns(q) + 2 * cuda::padded_columns(kv);
  const int pages = (context + kPagePositions - 1) / kPagePositions;
  const size_t plane = size_t(pages) * kPagePositions * kv;
  const int copies = std::max<int>(2, int(options.cold_bytes() / (4 * plane)));
  Buffer keys = device.filled<bf16>(plane * copies), values = device.filled<bf16>(plane * copies);
  Buffer cold = device.filled<float>(options.cold_bytes() / 4);
  std::vector<int32_t> places(pages);
  for (int i = 0; i < pages; ++i) places[i] = i;
  Buffer table = device.uploaded(places), qkv = device.filled<float>(size_t(16) * columns), out = device.filled<float>(size_t(16) * q);
  const AttentionShape shape{g.heads, g.kv_heads, g.head_dim, nullptr, nullptr};
  backend.prepare_attention(16, pages, shape);
  const std::vector<int> counts = {1, 2, 4, 8, 16};
  std::vector<std::unique_ptr<PassRows>> rows;
  std::vector<Contender> all;
  all.push_back(reader(device, cold));
  for (int count : counts) {
    rows.push_back(std::make_unique<PassRows>(device, count, context - 1));
    all.push_back(contender(device, copies, [&](int i) {
      backend.attention(rows.back()->rows(), qkv.as<float>(), shape,
                        {keys.as<bf16>() + i * plane, values.as<bf16>() + i * plane, table.as<int32_t>(), pages, DType::bf16},
                        out.as<float>());
    }));
  }
  std::vector<Contender*> timed;
  for (Contender& each : all) timed.push_back(&each);
  measure(device, timed, options.repetitions);
  const double bytes = 4.0 * context * kv, read = double(cold.bytes()) / all[0].time() / 1e3;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double rate = bytes / all[i + 1].time() / 1e3;
    print(message(g.name, ", attention at ", context, ", ", counts[i], " rows"),
          {{"microseconds", all[i + 1].time()}, {"bytes", bytes}, {"gb_per_s", rate}, {"of_read", rate / read},
           {"over_one_row", all[i + 1].time() / all[1].time()}});
  }
}

// ------------------------------------------------------------------------------------------------ what a cycle adds to its passes
SlotParams params_of(double temperature, int top_k, double top_p, int logprobs, int end) {
  SlotParams p{};
  p.temperature = temperature, p.top_k = top_k, p.top_p = top_p, p.repetition_penalty = 1, p.num_logprobs = logprobs;
  p.seed = 7, p.prompt_length = 1, p.end_length = end;
  return p;
}

// Planning, choosing and accepting at tau over a vocabulary, without the passes between them.
void cycle(Device& device, const Options& options, const char* name, int tau, int vocab, const SlotParams& params, Acceptance acceptance) {
  cuda::CudaBackend& backend = device.backend;
  const int length = options.tiny ? 8 : 2048, stride = params.end_length + tau + 1;
  backend.prepare_sampling(1, tau, acceptance, vocab);
  std::vector<Buffer> memory;
  const auto make = [&](std::vector<int32_t> values) {
    memory.push_back(device.uploaded(values));
    return memory.back().as<int32_t>();
  };
  CycleState state{};
  state.num_slots = 1, state.tau_max = tau, state.tokens_stride = stride;
  state.vocab_limit = state.draft_vocab_limit = state.draft_vocab_size = vocab;
  state.draft_max_len = params.end_length, state.acceptance = acceptance;
  state.tokens = make(std::vector<int32_t>(stride, 1)), state.length = make({length}), state.running = make({1});
  state.offered = make({0}), state.offers = make(std::vector<int32_t>(tau, 0)), state.proposed = make({0}), state.draft_fault = make({0}), state.looked = make({0});
  state.wanted_tau = make({tau}), state.drafting = make({0}), state.draft_fed = make({0});
  state.target_cached = make({length - 1}), state.draft_cached = make({length - 1});
  state.first_row = make({0}), state.draft_row = make(std::vector<int32_t>(tau + 1, 0));
  Buffer slot = device.uploaded(std::vector<SlotParams>{params});
  state.params = slot.as<SlotParams>();
  Buffer drafts = device.filled<float>(size_t(tau + 1) * vocab, 3), logits = device.filled<float>(size_t(tau + 1) * vocab, 3);
  state.draft_logits = drafts.as<float>();
  const size_t emitted = tau + 1;
  Buffer result = backend.allocate_shared(sizeof(CycleResult));
  Buffer tokens = backend.allocate_shared(4 * emitted), logprobs = backend.allocate_shared(4 * emitted);
  Buffer ids = backend.allocate_shared(4 * emitted * kMaxTopLogprobs), tops = backend.allocate_shared(4 * emitted * kMaxTopLogprobs);
  const CycleResults to{result.as<CycleResult>(), tokens.as<int32_t>(), logprobs.as<float>(), ids.as<int32_t>(), tops.as<float>(), nullptr, nullptr};
  const PassRows draft_rows(device, 2, length), verify_rows(device, tau + 1, length + tau);
  const auto line = [&](bool choosing, bool accepting) {
    backend.begin_cycle(state);
    for (int step = 0; step < tau; ++step) {
      backend.plan_draft(state, step, draft_rows.rows());
      if (choosing) backend.sample_draft(state, step);
    }
    backend.plan_verify(state, verify_rows.rows());
    if (accepting) backend.accept(state, logits.as<float>(), vocab, to);
  };
  Contender plans = contender(device, 1, [&](int) { line(false, false); });
  Contender drafting = contender(device, 1, [&](int) { line(true, false); });
  Contender whole = contender(device, 1, [&](int) { line(true, true); });
  measure(device, {&plans, &drafting, &whole}, options.repetitions);
  print(message("a cycle's own kernels, tau ", tau, ", vocabulary ", vocab, ", ", name),
        {{"microseconds", whole.time()}, {"plans", plans.time()}, {"draft_choices", drafting.time() - plans.time()},
         {"acceptance", whole.time() - drafting.time()}});
}

void cycles(Device& device, const Options& options) {
  const int vocab = options.tiny ? 3000 : 128256, end = options.tiny ? 64 : 4096;
  const auto one = [&](const char* name, const SlotParams& params, Acceptance acceptance) {
    cell(name, [&] { cycle(device, options, name, 4, vocab, params, acceptance); });
  };
  one("greedy", params_of(0, 0, 1, -1, end), Acceptance::coupled);
  one("greedy with 5 logprobs", params_of(0, 0, 1, 5, end), Acceptance::coupled);
  one("T 0.8", params_of(0.8, 0, 1, -1, end), Acceptance::coupled);
  one("T 0.8, top-k 50, top-p 0.9", params_of(0.8, 50, 0.9, -1, end), Acceptance::coupled);
  one("T 0.8, by rejection", params_of(0.8, 0, 1, -1, end), Acceptance::rejection);
}

Options options_of(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--tiny") {
      options.tiny = true;
      continue;
    }
    require(i + 1 < argc, "unknown option, or one without its value: ", name);
    std::stringstream value(argv[++i]);
    if (name == "--repetitions") {
      require(bool(value >> options.repetitions) && options.repetitions > 0, "--repetitions must be positive, got ", argv[i]);
    } else {
      require(name == "--parts", "unknown option ", name);
      options.parts.clear();
      for (std::string part; std::getline(value, part, ',');) options.parts.push_back(part);
    }
  }
  return options;
}

void run(const Options& options) {
  Device device;
  const std::vector<Geometry> geometries = options.tiny ? std::vector<Geometry>(std::begin(kTiny), std::end(kTiny))
                                                        : std::vector<Geometry>(std::begin(kLlama), std::end(kLlama));
  if (options.has("bandwidth")) cell("bandwidth", [&] { bandwidth(device, options); });
  if (options.has("products"))
    for (const Geometry& g : geometries) products(device, options, g);
  if (options.has("attention"))
    for (const Geometry& g : geometries)
      for (int context : options.tiny ? std::vector<int>{70} : std::vector<int>{2048, 16384})
        cell(message(g.name, ", attention at ", context), [&] { attention(device, options, g, context); });
  if (options.has("cycle")) cycles(device, options);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(options_of(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return any_failed;
}
