// Backends, checkpoints into them, and what an engine of them would take.
#include "core/checksum.h"
#include "memory_plan.h"
#include "python/bindings.h"

namespace paceline {
namespace {

void load(Weights& weights, const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape,
          const py::array_t<uint8_t, py::array::c_style>& data, int64_t first_row) {
  const TensorView view{name, dtype_of(dtype), shape, data.data()};
  require(size_t(data.nbytes()) == view.size() * size_of(view.dtype), "[Weights] ", name, ": ", describe(shape), " of ", dtype, " is ",
          view.size() * size_of(view.dtype), " bytes, got ", data.nbytes());
  const Unlocked unlocked;
  weights.load(view, first_row);
}

// The array's memory, held until the buffer goes; whoever drops it may not have the GIL.
Buffer buffer_of(const py::array_t<uint8_t, py::array::c_style>& array) {
  auto* owner = new py::object(array);
  return Buffer(const_cast<uint8_t*>(array.data()), size_t(array.nbytes()), [owner](void*) {
    const Locked locked;
    delete owner;
  });
}

uint64_t checksum_of(const py::array_t<uint8_t, py::array::c_style>& data) {
  const char* memory = reinterpret_cast<const char*>(data.data());
  const size_t bytes = size_t(data.nbytes());
  const Unlocked unlocked;
  return checksum(memory, bytes);
}

void bind_memory_plan(py::module_& m) {
  py::class_<MemoryUse>(m, "MemoryUse")
      .def_readonly("weights", &MemoryUse::weights)
      .def_readonly("draft_weights", &MemoryUse::draft_weights)
      .def_readonly("kv_cache", &MemoryUse::kv_cache)
      .def_readonly("workspace", &MemoryUse::workspace);
  m.def("plan_memory", [](const BackendHandle& backend, const ModelConfig& target, const std::string& dtype, const std::optional<ModelConfig>& draft,
                          const std::string& draft_dtype, const EngineOptions& options) {
          const Unlocked unlocked;
          return plan_memory(*backend.backend, target, dtype_of(dtype), draft ? &*draft : nullptr, dtype_of(draft_dtype), options);
        }, "backend"_a, "target"_a, "dtype"_a, "draft"_a, "draft_dtype"_a, "options"_a);
}

}  // namespace

void bind_loading(py::module_& m) {
  bind_memory_plan(m);
  m.def("checksum", &checksum_of, "data"_a);
  m.def("usable_threads", &usable_threads);

  py::class_<BackendHandle>(m, "Backend")
      .def(py::init([](int num_threads, const std::string& level) {
             return BackendHandle{shared(make_cpu_backend(num_threads, level).release())};
           }), "num_threads"_a, "level"_a)
      .def_static("load", [](const std::string& path, int device) {
             const Unlocked unlocked;
             return BackendHandle{shared(load_backend(path, device).release())};
           }, "path"_a, "device"_a)
      .def("scratch_bytes", [](const BackendHandle& self) { return self.backend->scratch_bytes(); })
      .def("free_bytes", [](const BackendHandle& self) {
             const Unlocked unlocked;  // the device is asked
             return self.backend->free_bytes();
           })
      .def_property_readonly("description", [](const BackendHandle& self) { return self.backend->description(); });

  py::class_<ModelConfig>(m, "ModelConfig")
      .def(py::init([](int vocab_size, int hidden_size, int intermediate_size, int num_layers, int num_heads, int num_kv_heads, int head_dim,
                       float rms_norm_eps, int max_position_embeddings, std::vector<double> rope_frequencies, double rope_scale,
                       bool qkv_bias, bool output_bias, bool qk_norm, bool tie_word_embeddings) {
             return ModelConfig{vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim, rms_norm_eps,
                                max_position_embeddings, std::move(rope_frequencies), rope_scale, qkv_bias, output_bias, qk_norm,
                                tie_word_embeddings};
           }), py::kw_only(), "vocab_size"_a, "hidden_size"_a, "intermediate_size"_a, "num_layers"_a, "num_heads"_a, "num_kv_heads"_a,
           "head_dim"_a, "rms_norm_eps"_a, "max_position_embeddings"_a, "rope_frequencies"_a, "rope_scale"_a, "qkv_bias"_a,
           "output_bias"_a, "qk_norm"_a, "tie_word_embeddings"_a);

  py::class_<Weights, std::shared_ptr<Weights>>(m, "Weights")
      .def(py::init([](const BackendHandle& backend, const ModelConfig& config, const std::string& dtype, const std::string& path,
                       const std::optional<py::array_t<uint8_t, py::array::c_style>>& packed) {
             std::optional<Buffer> memory;
             if (packed) memory = buffer_of(*packed);
             const Unlocked unlocked;  // gigabytes are taken now
             return shared(new Weights(backend.backend, config, dtype_of(dtype), path, std::move(memory)));
           }), "backend"_a, "config"_a, "dtype"_a, "path"_a, "packed"_a = py::none())
      .def("expected", [](const Weights& self) {
             std::vector<std::pair<std::string, std::vector<int64_t>>> all;
             for (const auto& each : self.expected()) all.emplace_back(each.name, each.shape);
             return all;
           })
      .def("load", &load, "name"_a, "dtype"_a, "shape"_a, "data"_a, "first_row"_a = 0)
      .def("finish", &Weights::finish)
      .def("packed", [](py::object self) {
             const Buffer& packed = self.cast<const Weights&>().packed();
             py::array_t<uint8_t> view(py::ssize_t(packed.bytes()), packed.as<uint8_t>(), self);  // keeps the weights alive
             view.attr("setflags")("write"_a = false);
             return view;
           })
      .def_property_readonly("nbytes", [](const Weights& self) { return self.packed().bytes(); });
}

}  // namespace paceline
