// The Python module: convert, release the GIL, map errors. No logic; python/paceline/_core.pyi is its contract.
#include <cxxabi.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include "async/engine_thread.h"
#include "core/checksum.h"
#include "memory_plan.h"

namespace py = pybind11;
using namespace py::literals;
using namespace paceline;

namespace {

// Once the interpreter is being finalised, Python ends every other thread that asks for the GIL: up to 3.13 by pthread_exit, whose
// unwinding would leave our guards' destructors (std::terminate), or run destructors of Python objects without the GIL. Such a thread
// stops here instead, with all it holds, until the process is gone: what Python 3.14 does itself.
template <class Take>
void take_gil(Take take) noexcept {
  try {
    take();
  } catch (abi::__forced_unwind&) {
    for (;;) pause();
  }
}

// The scope of a long call: other Python threads run meanwhile.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  ~Unlocked() { take_gil([this] { PyEval_RestoreThread(state_); }); }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* state_;
};

// The scope of a touch of Python's objects, by whoever does not know whether it has the GIL.
class Locked {
 public:
  Locked() {
    take_gil([this] { state_ = PyGILState_Ensure(); });
  }
  ~Locked() { PyGILState_Release(state_); }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

 private:
  PyGILState_STATE state_;
};

// An object whose destructor joins threads or frees gigabytes lets other Python threads run meanwhile. The last reference
// may also go where the GIL is not held: inside another such destructor, or a call that outlived `close`.
template <class T>
struct UnlockedDelete {
  void operator()(T* object) const {
    if constexpr (requires { object->is_left_behind(); })
      if (object->is_left_behind()) return;  // a forked child's copy
    if (!PyGILState_Check()) {
      delete object;
      return;
    }
    const Unlocked unlocked;
    delete object;
  }
};
template <class T>
std::shared_ptr<T> shared(T* object) { return std::shared_ptr<T>(object, UnlockedDelete<T>()); }

struct BackendHandle {
  std::shared_ptr<Backend> backend;
};

Acceptance acceptance_of(const std::string& name) {
  if (name == "coupled") return Acceptance::coupled;
  if (name == "rejection") return Acceptance::rejection;
  throw std::invalid_argument(message("[Engine] acceptance must be \"coupled\" or \"rejection\", got \"", name, "\""));
}

DrafterKind drafter_of(const std::string& name) {
  for (DrafterKind kind : {DrafterKind::model, DrafterKind::ngram, DrafterKind::chain})
    if (name == name_of(kind)) return kind;
  throw std::invalid_argument(message("[Engine] drafter must be \"model\", \"ngram\" or \"chain\", got \"", name, "\""));
}

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

py::object stop_reason(const Output& output) {
  if (!output.stop_string.empty()) return py::bytes(output.stop_string);
  if (output.stop_token >= 0) return py::int_(output.stop_token);
  return py::none();
}

std::vector<std::vector<std::pair<int, float>>> top_logprobs(const Output& output) {
  std::vector<std::vector<std::pair<int, float>>> all;
  for (const auto& row : output.top_logprobs) {
    auto& pairs = all.emplace_back();
    for (const TopLogprob& each : row) pairs.emplace_back(each.token, each.logprob);
  }
  return all;
}

// Set while the interpreter ends: its other threads have nothing left to do then but to wait for it.
std::atomic<bool> ending{false};

// What a call that waits for the engine may still throw.
template <class Body>
auto with_the_end_in_mind(Body&& body) {
  try {
    return body();
  } catch (const std::exception&) {
    if (!ending || getpid() == gettid()) throw;
    const Unlocked unlocked;
    for (;;) pause();
  }
}

constexpr std::chrono::nanoseconds kPoll = std::chrono::milliseconds(50);  // a signal is noticed that soon

// ready(at_most) waits with the GIL released, again and again until it gives something, `seconds` are over (false) or a signal's
// handler raises.
template <class Ready>
bool wait_for(Ready&& ready, std::optional<double> seconds) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  if (ready(std::chrono::nanoseconds(0))) return true;
  for (;;) {
    std::chrono::nanoseconds at_most = kPoll;
    if (seconds) {
      const double left = *seconds - std::chrono::duration<double>(Clock::now() - start).count();
      if (left <= 0) return false;
      if (left < 0.05) at_most = std::chrono::nanoseconds(int64_t(left * 1e9) + 1);
    }
    {
      const Unlocked unlocked;
      if (ready(at_most)) return true;
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

Submission::Until until_of(bool whole) { return whole ? Submission::Until::end : Submission::Until::something; }

std::optional<Output> take(Submission& self, bool whole, std::optional<double> timeout) {
  return with_the_end_in_mind([&] {
    std::optional<Output> output;
    wait_for([&](std::chrono::nanoseconds at_most) {
      output = self.take(until_of(whole), at_most);
      return output.has_value() || self.done();
    }, timeout);
    return output;
  });
}

// What the engine's thread does for a caller. The result belongs to both: the caller may be interrupted and go.
py::array_t<float> verify(EngineThread& self, const std::vector<int32_t>& prefix, const std::vector<int32_t>& drafts) {
  return with_the_end_in_mind([&] {
    const auto logprobs = std::make_shared<std::vector<float>>();
    const auto call = self.call([=](Engine& engine) { *logprobs = engine.verify(prefix, drafts); });
    const py::ssize_t vocab_size = self.engine()->target_vocab_size();
    wait_for([&](std::chrono::nanoseconds at_most) { return call->wait(at_most); }, std::nullopt);
    return py::array_t<float>({py::ssize_t(drafts.size() + 1), vocab_size}, logprobs->data());
  });
}

// A handle of a submission: cancelled when Python has no use for it any more.
struct SubmissionHandle {
  explicit SubmissionHandle(std::shared_ptr<Submission> of) : submission(std::move(of)) {}
  SubmissionHandle(SubmissionHandle&&) = default;
  ~SubmissionHandle() {
    if (!submission) return;
    submission->cancel();
    if (submission->is_left_behind()) new std::shared_ptr<Submission>(std::move(submission));  // a forked child's copy: never destroyed
  }
  std::shared_ptr<Submission> submission;
};

std::vector<SubmissionHandle> submit(EngineThread& self, std::vector<std::pair<std::vector<int32_t>, RequestParams>> wanted) {
  return with_the_end_in_mind([&] {
    std::vector<EngineThread::Wanted> all;
    for (auto& [prompt, params] : wanted) all.push_back({std::move(prompt), std::move(params)});
    std::vector<SubmissionHandle> handles;
    handles.reserve(all.size());  // from here on nothing that runs is without a handle
    for (auto& each : self.submit(std::move(all))) handles.emplace_back(std::move(each));
    return handles;
  });
}

void bind_loading(py::module_& m) {
  m.def("checksum", &checksum_of, "data"_a);

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

void bind_requests(py::module_& m) {
  py::class_<EngineOptions>(m, "EngineOptions")
      .def(py::init([](int num_speculative_tokens, const std::string& acceptance, int max_model_len, int max_num_seqs,
                       const std::string& kv_dtype, int kv_cache_tokens, int prefill_chunk, int vocab_limit,
                       std::vector<std::string> token_bytes, bool debug_hash, int64_t profile_first, int64_t profile_last, int cycles_in_flight,
                       int prefill_chunk_beside, int64_t prefix_cache_bytes, const std::string& drafter, double draft_cost) {
             return EngineOptions{num_speculative_tokens, acceptance_of(acceptance), max_model_len, max_num_seqs, dtype_of(kv_dtype),
                                  kv_cache_tokens, prefill_chunk, vocab_limit, std::move(token_bytes), debug_hash, profile_first, profile_last, cycles_in_flight,
                                  prefill_chunk_beside, 4096, prefix_cache_bytes, drafter_of(drafter), draft_cost};
           }), py::kw_only(), "num_speculative_tokens"_a, "acceptance"_a, "max_model_len"_a, "max_num_seqs"_a, "kv_dtype"_a,
           "kv_cache_tokens"_a, "prefill_chunk"_a, "vocab_limit"_a, "token_bytes"_a, "debug_hash"_a, "profile_first"_a, "profile_last"_a,
           "cycles_in_flight"_a, "prefill_chunk_beside"_a, "prefix_cache_bytes"_a, "drafter"_a, "draft_cost"_a);

  py::class_<RequestParams>(m, "RequestParams")
      .def(py::init([](int max_tokens, int min_tokens, double temperature, double top_p, int top_k, double min_p, double repetition_penalty,
                       double presence_penalty, double frequency_penalty, std::map<int, double> logit_bias, uint64_t seed,
                       std::vector<std::string> stop, std::vector<int> stop_token_ids, int logprobs, int num_speculative_tokens) {
             return RequestParams{max_tokens, min_tokens, temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty,
                                  frequency_penalty, std::move(logit_bias), seed, std::move(stop), std::move(stop_token_ids), logprobs,
                                  num_speculative_tokens};
           }), py::kw_only(), "max_tokens"_a, "min_tokens"_a, "temperature"_a, "top_p"_a, "top_k"_a, "min_p"_a, "repetition_penalty"_a,
           "presence_penalty"_a, "frequency_penalty"_a, "logit_bias"_a, "seed"_a, "stop"_a, "stop_token_ids"_a, "logprobs"_a,
           "num_speculative_tokens"_a);

  py::class_<RequestStats>(m, "RequestStats")
      .def_readonly("num_requests", &RequestStats::num_requests)
      .def_readonly("num_cached_prompt_tokens", &RequestStats::num_cached_prompt_tokens)
      .def_readonly("num_cycles", &RequestStats::num_cycles)
      .def_readonly("num_draft_tokens", &RequestStats::num_draft_tokens)
      .def_readonly("num_accepted_draft_tokens", &RequestStats::num_accepted_draft_tokens)
      .def_readonly("num_emitted_tokens", &RequestStats::num_emitted_tokens)
      .def_readonly("num_draft_faults", &RequestStats::num_draft_faults)
      .def_readonly("drafted_per_position", &RequestStats::drafted_per_position)
      .def_readonly("accepted_per_position", &RequestStats::accepted_per_position)
      .def_readonly("num_prefill_passes", &RequestStats::num_prefill_passes)
      .def_readonly("prefill_time", &RequestStats::prefill_time)
      .def_readonly("time_to_first_token", &RequestStats::time_to_first_token)
      .def_readonly("draft_time", &RequestStats::draft_time)
      .def_readonly("verify_time", &RequestStats::verify_time)
      .def_readonly("sample_time", &RequestStats::sample_time)
      .def_readonly("decode_time", &RequestStats::decode_time);

  py::class_<Output>(m, "Output")
      .def_readonly("token_ids", &Output::tokens)
      .def_readonly("logprobs", &Output::logprobs)
      .def_property_readonly("top_logprobs", &top_logprobs)
      .def_readonly("cycles", &Output::cycles)
      .def_readonly("tau", &Output::tau)
      .def_readonly("accepted", &Output::accepted)
      .def_readonly("verify_time", &Output::verify_time)
      .def_readonly("sample_time", &Output::sample_time)
      .def_property_readonly("finish_reason", [](const Output& self) { return name_of(self.finish); })
      .def_property_readonly("stop_reason", &stop_reason)
      .def_readonly("error", &Output::error)
      .def_property_readonly("stats", [](const Output& self) -> py::object {
             return self.finish == FinishReason::none ? py::none() : py::cast(self.stats);
           })
      .def_readonly("logits_hash", &Output::logits_hash)
      .def_readonly("target_kv_hashes", &Output::target_kv_hashes)
      .def_readonly("draft_kv_hashes", &Output::draft_kv_hashes);

  py::class_<Bell, std::shared_ptr<Bell>>(m, "Bell")
      .def(py::init<>())
      .def_property_readonly("descriptor", &Bell::descriptor)
      .def("rung", &Bell::rung);

  py::class_<SubmissionHandle>(m, "Submission")
      .def_property_readonly("serial", [](const SubmissionHandle& self) { return self.submission->serial; })
      .def("take", [](const SubmissionHandle& self, bool whole, std::optional<double> timeout) {
             return take(*self.submission, whole, timeout);
           }, "whole"_a, "timeout"_a)
      .def("ready", [](const SubmissionHandle& self) { return self.submission->ready(); })
      .def("done", [](const SubmissionHandle& self) { return self.submission->done(); })
      .def("cancel", [](const SubmissionHandle& self) { self.submission->cancel(); })
      .def("ring", [](const SubmissionHandle& self, std::shared_ptr<Bell> bell, bool whole) {
             self.submission->ring(std::move(bell), until_of(whole));
           }, "bell"_a, "whole"_a);
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

void bind_engine(py::module_& m) {
  py::class_<EngineThread, std::shared_ptr<EngineThread>>(m, "Engine")
      .def(py::init([](const BackendHandle& backend, std::shared_ptr<Weights> target, std::shared_ptr<Weights> draft,
                       const EngineOptions& options, int max_queue) {
             const Unlocked unlocked;
             return shared(new EngineThread(shared(new Engine(backend.backend, std::move(target), std::move(draft), options)), max_queue));
           }), "backend"_a, "target"_a, "draft"_a, "options"_a, "max_queue"_a)
      .def("check", &EngineThread::check, "prompt"_a, "params"_a)
      .def("submit", &submit, "wanted"_a)
      .def("verify", &verify, "prefix"_a, "drafts"_a)
      .def("stats", &EngineThread::stats)
      .def("profile", [](EngineThread& self, bool on) {
             with_the_end_in_mind([&] {
               const auto call = self.call([on](Engine& engine) { engine.profile(on); });
               wait_for([&](std::chrono::nanoseconds at_most) { return call->wait(at_most); }, std::nullopt);
             });
           }, "on"_a)
      .def("close", [](EngineThread& self) {
             const Unlocked unlocked;
             self.close();
           })
      .def_property_readonly("weight_bytes", [](const EngineThread& self) { return self.engine()->weight_bytes(); })
      .def_property_readonly("kv_bytes", [](const EngineThread& self) { return self.engine()->kv_bytes(); })
      .def_property_readonly("workspace_bytes", [](const EngineThread& self) { return self.engine()->workspace_bytes(); });

  m.def("interpreter_ends", [] { ending = true; });
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of Paceline. Private: use paceline.Engine.";
  py::register_exception<ModelFileError>(m, "ModelFileError", PyExc_RuntimeError);
  py::register_exception<CapacityError>(m, "CapacityError", PyExc_RuntimeError);
  py::register_exception<DeviceError>(m, "DeviceError", PyExc_RuntimeError);
  py::register_exception<NumericError>(m, "NumericError", PyExc_RuntimeError);
  py::register_exception<EngineDead>(m, "EngineDead", PyExc_RuntimeError);
  bind_loading(m);
  bind_requests(m);
  bind_memory_plan(m);
  bind_engine(m);
}
