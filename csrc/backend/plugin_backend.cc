// The core's side of the boundary: every operation goes through the table, and what came back as a status is thrown again here.
#include <dlfcn.h>

#include <cstdlib>
#include <exception>

#include "backend/plugin.h"

namespace paceline {
namespace {

void check(const BackendPlugin& plugin, int32_t status) {
  if (status == kPluginOk) return;
  const std::string what = plugin.last_error();
  if (status == kPluginInvalid) throw std::invalid_argument(what);
  if (status == kPluginCapacity) throw CapacityError(what);
  throw DeviceError(what);
}

class PluginMatrix final : public PackedMatrix {
 public:
  PluginMatrix(const BackendPlugin& plugin, Buffer memory, void* handle) : plugin_(plugin), memory_(std::move(memory)), handle_(handle) {}
  ~PluginMatrix() override { plugin_.drop_matrix(handle_); }
  size_t bytes() const override { return memory_.bytes(); }
  void* handle() const { return handle_; }

 private:
  const BackendPlugin& plugin_;
  Buffer memory_;
  void* handle_;
};

void* handle_of(const PackedMatrix& matrix) { return static_cast<const PluginMatrix&>(matrix).handle(); }

class PluginGraph final : public Graph {
 public:
  PluginGraph(const BackendPlugin& plugin, void* handle) : plugin_(plugin), handle_(handle) {}
  ~PluginGraph() override { plugin_.drop_graph(handle_); }
  void launch() override { check(plugin_, plugin_.launch(handle_)); }

 private:
  const BackendPlugin& plugin_;
  void* handle_;
};

// PACELINE_CUDA_GRAPHS=off: what would be a graph is launched operation by operation. Slower, and the same bits: the oracle of graphs.
class Line final : public Graph {
 public:
  explicit Line(std::function<void()> line) : line_(std::move(line)) {}
  void launch() override { line_(); }

 private:
  std::function<void()> line_;
};

bool graphs_are_off() {
  const char* chosen = std::getenv("PACELINE_CUDA_GRAPHS");
  if (!chosen || !*chosen) return false;
  require(std::string(chosen) == "off", "[cuda] PACELINE_CUDA_GRAPHS must be off or unset, got ", chosen);
  return true;
}

class PluginBackend final : public Backend {
 public:
  PluginBackend(const BackendPlugin& plugin, int device) : plugin_(plugin), one_by_one_(graphs_are_off()) {
    check(plugin, plugin.create(device, &handle_));
  }
  PluginBackend(const BackendPlugin& plugin, void* handle) : plugin_(plugin), one_by_one_(false), handle_(handle) {}
  ~PluginBackend() override { plugin_.destroy(handle_); }

  std::string description() const override { return plugin_.description(handle_); }

  Buffer allocate(size_t bytes) override { return memory(false, bytes); }
  Buffer allocate_shared(size_t bytes) override { return memory(true, bytes); }
  void upload(void* device, const void* host, size_t bytes) override { call(plugin_.upload, device, host, bytes); }
  void download(void* host, const void* device, size_t bytes) override { call(plugin_.download, host, device, bytes); }
  void synchronize() override { call(plugin_.synchronize); }
  int cycles_in_flight() const override { return plugin_.cycles_in_flight(handle_); }
  size_t free_bytes() override {
    size_t bytes = 0;
    call(plugin_.free_bytes, &bytes);
    return bytes;
  }
  size_t scratch_bytes() const override { return plugin_.scratch_bytes(handle_); }
  std::unique_ptr<Backend> dry() const override {
    void* handle = nullptr;
    check(plugin_, plugin_.dry(handle_, &handle));
    return std::make_unique<PluginBackend>(plugin_, handle);
  }

  std::unique_ptr<Graph> capture(std::function<void()> line) override {
    if (one_by_one_) return std::make_unique<Line>(std::move(line));
    struct Context {
      std::function<void()>& line;
      std::exception_ptr thrown;
    } context{line, nullptr};
    const auto run = [](void* at) -> int32_t {
      auto& self = *static_cast<Context*>(at);
      try {
        self.line();
        return 0;
      } catch (...) {
        self.thrown = std::current_exception();
        return 1;
      }
    };
    void* graph = nullptr;
    const int32_t status = plugin_.capture(handle_, run, &context, &graph);
    if (context.thrown) std::rethrow_exception(context.thrown);
    check(plugin_, status);
    return std::make_unique<PluginGraph>(plugin_, graph);
  }

  size_t matrix_bytes(int num_blocks, int k, DType dtype) const override {
    size_t bytes = 0;
    check(plugin_, plugin_.matrix_bytes(handle_, num_blocks, k, dtype, &bytes));
    return bytes;
  }
  std::unique_ptr<PackedMatrix> matrix_in(Buffer memory, int num_blocks, int k, DType dtype) override {
    void* matrix = nullptr;
    call(plugin_.matrix_in, memory.as<void>(), memory.bytes(), num_blocks, k, dtype, &matrix);
    return std::make_unique<PluginMatrix>(plugin_, std::move(memory), matrix);
  }
  void pack_weights(PackedMatrix& matrix, const TensorView& part, int first_block, int block_stride) override {
    call(plugin_.pack_weights, handle_of(matrix), part.name.c_str(), part.dtype, part.shape[0], part.shape[1], part.data, first_block, block_stride);
  }

  void embed(const Rows& rows, const PackedMatrix& table, int d, float* x) override { call(plugin_.embed, &rows, handle_of(table), d, x); }
  void norm_qkv_rope_write(const Rows& rows, const float* x, int d, const QkvWeights& weights, const AttentionShape& shape, const KvLayer& kv,
                           float* qkv) override {
    QkvWeights theirs = weights;
    theirs.qkv = static_cast<const PackedMatrix*>(handle_of(*weights.qkv));
    call(plugin_.norm_qkv_rope_write, &rows, x, d, &theirs, &shape, &kv, qkv);
  }
  void attention(const Rows& rows, const float* qkv, const AttentionShape& shape, const KvLayer& kv, float* out) override {
    call(plugin_.attention, &rows, qkv, &shape, &kv, out);
  }
  void linear_residual(const Rows& rows, const float* in, int k, const PackedMatrix& w, const float* bias, float* x, int d) override {
    call(plugin_.linear_residual, &rows, in, k, handle_of(w), bias, x, d);
  }
  void norm_gate_up(const Rows& rows, const float* x, int d, const float* norm, float eps, const PackedMatrix& w, int f, float* out) override {
    call(plugin_.norm_gate_up, &rows, x, d, norm, eps, handle_of(w), f, out);
  }
  void norm_head(const Rows& rows, const float* x, int d, const float* norm, float eps, const PackedMatrix& w, int v, float* logits) override {
    call(plugin_.norm_head, &rows, x, d, norm, eps, handle_of(w), v, logits);
  }
  void log_softmax(const Rows& rows, const float* logits, int v, float* out) override { call(plugin_.log_softmax, &rows, logits, v, out); }

  void prepare_attention(int rows, int pages_per_slot, const AttentionShape& shape) override {
    call(plugin_.prepare_attention, rows, pages_per_slot, &shape);
  }
  void prepare_sampling(int num_slots, int tau_max, Acceptance acceptance, int vocab_size) override {
    call(plugin_.prepare_sampling, num_slots, tau_max, acceptance, vocab_size);
  }
  void begin_cycle(const CycleState& state) override { call(plugin_.begin_cycle, &state); }
  void plan_draft(const CycleState& state, int step, const Rows& rows) override { call(plugin_.plan_draft, &state, step, &rows); }
  void sample_draft(const CycleState& state, int step) override { call(plugin_.sample_draft, &state, step); }
  void plan_verify(const CycleState& state, const Rows& rows) override { call(plugin_.plan_verify, &state, &rows); }
  void accept(const CycleState& state, const float* logits, int vocab_size, const CycleResults& results) override {
    call(plugin_.accept, &state, logits, vocab_size, &results);
  }
  void record_catch_up(const CycleState& state, const CycleEvidence& evidence) override { call(plugin_.record_catch_up, &state, &evidence); }
  void record_cycle(const CycleState& state, const Rows& rows, const float* logits, int vocab_size, const CycleResults& results,
                    const CycleEvidence& evidence) override {
    call(plugin_.record_cycle, &state, &rows, logits, vocab_size, &results, &evidence);
  }
  void timestamp(int64_t* nanoseconds) override { call(plugin_.timestamp, nanoseconds); }
  void count_up(int64_t* counter) override { call(plugin_.count_up, counter); }
  void wait_for(const int64_t* counter, int64_t value) override { call(plugin_.wait_for, counter, value); }
  void copy_pages(const KvLayer& kv, const AttentionShape& shape, const int32_t* from, const int32_t* to, int count) override {
    call(plugin_.copy_pages, &kv, &shape, from, to, count);
  }
  void begin_span(Span span, int64_t payload) override { plugin_.begin_span(handle_, span, payload); }
  void end_span() override { plugin_.end_span(handle_); }
  void mark(Span span, int64_t payload) override { plugin_.mark(handle_, span, payload); }
  void profile(bool on) override { call(plugin_.profile, on); }
  uint64_t hash_kv(const KvLayer& kv, const AttentionShape& shape, int slot, int position) override {
    uint64_t hash = 0;
    call(plugin_.hash_kv, &kv, &shape, slot, position, &hash);
    return hash;
  }

 private:
  template <class Function, class... Arguments>
  void call(Function function, const Arguments&... arguments) {
    check(plugin_, function(handle_, arguments...));
  }
  Buffer memory(bool shared, size_t bytes) {
    if (bytes == 0) return {};
    void *buffer = nullptr, *data = nullptr;
    call(plugin_.allocate, shared, bytes, &buffer, &data);
    return Buffer(data, bytes, [plugin = &plugin_, buffer](void*) { plugin->release(buffer); });
  }

  const BackendPlugin& plugin_;
  const bool one_by_one_;
  void* handle_ = nullptr;
};

}  // namespace

std::unique_ptr<Backend> make_plugin_backend(const BackendPlugin& plugin, int device) {
  return std::make_unique<PluginBackend>(plugin, device);
}

// The library stays open for good: objects of it may outlive every handle we could count.
std::unique_ptr<Backend> load_backend(const std::string& path, int device) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw DeviceError(message("[Engine] the plugin cannot be loaded: ", dlerror()));
  const auto entry = reinterpret_cast<BackendPluginEntry>(dlsym(library, kPluginEntry));
  if (!entry) throw DeviceError(message("[Engine] ", path, " is not a Paceline plugin: it has no ", kPluginEntry));
  const BackendPlugin* plugin = entry(kPluginAbi);
  if (!plugin) throw DeviceError(message("[Engine] ", path, " was made for another version of Paceline (boundary ", kPluginAbi, " is needed): install the same version of both"));
  return make_plugin_backend(*plugin, device);
}

}  // namespace paceline
