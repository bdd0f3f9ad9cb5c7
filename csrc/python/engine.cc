// The engine on its own thread, and its submissions.
#include "async/engine_thread.h"
#include "python/bindings.h"
#include "python/trace.h"
#include "python/waiting.h"

namespace paceline {
namespace {

Submission::Until until_of(bool whole) { return whole ? Submission::Until::end : Submission::Until::something; }

std::optional<Output> take(Submission& self, bool whole, std::optional<double> timeout, int64_t kept) {
  return with_the_end_in_mind([&] {
    std::optional<Output> output;
    wait_for([&](std::chrono::nanoseconds at_most) {
      output = self.take(until_of(whole), at_most, kept);
      return output.has_value() || self.drained(kept);
    }, timeout);
    return output;
  });
}

// What the engine's thread does for a caller. The result belongs to both: the caller may be interrupted and go.
py::array_t<float> verify(EngineThread& self, const std::vector<int32_t>& prefix, const std::vector<int32_t>& drafts) {
  return with_the_end_in_mind([&] {
    const auto logprobs = std::make_shared<std::vector<float>>();
    const auto call = self.verify(prefix, drafts, logprobs);
    const py::ssize_t vocab_size = self.engine()->target_vocab_size();
    wait_for([&](std::chrono::nanoseconds at_most) { return call->wait(at_most); }, std::nullopt);
    auto owned = std::make_unique<std::vector<float>>(std::move(*logprobs));  // the array's: a copy of gigabytes would hold the GIL
    const py::capsule owner(owned.get(), [](void* values) { delete static_cast<std::vector<float>*>(values); });
    return py::array_t<float>({py::ssize_t(drafts.size() + 1), vocab_size}, owned.release()->data(), owner);
  });
}

py::dict trace(EngineThread& self) {
  return with_the_end_in_mind([&] {
    const auto columns = std::make_shared<TraceColumns>();
    const auto call = self.call([=](Engine& engine) { *columns = engine.trace(); });
    wait_for([&](std::chrono::nanoseconds at_most) { return call->wait(at_most); }, std::nullopt);
    return as_dict(*columns);
  });
}

void learn(EngineThread& self, const std::vector<std::tuple<int, int, int, double, double, double>>& cycles) {
  with_the_end_in_mind([&] {
    const auto costs = std::make_shared<std::vector<CycleCost>>();
    for (const auto& [sequences, rows, steps, draft, verify, rest] : cycles) costs->push_back({sequences, rows, steps, draft, verify, rest});
    const auto call = self.call([=](Engine& engine) { engine.learn(*costs); });
    wait_for([&](std::chrono::nanoseconds at_most) { return call->wait(at_most); }, std::nullopt);
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

void bind_submissions(py::module_& m) {
  py::class_<Bell, std::shared_ptr<Bell>>(m, "Bell")
      .def(py::init<>())
      .def_property_readonly("descriptor", &Bell::descriptor)
      .def("rung", &Bell::rung);

  py::class_<SubmissionHandle>(m, "Submission")
      .def_property_readonly("serial", [](const SubmissionHandle& self) { return self.submission->serial; })
      .def("take", [](const SubmissionHandle& self, bool whole, std::optional<double> timeout, int64_t kept) {
             return take(*self.submission, whole, timeout, kept);
           }, "whole"_a, "timeout"_a, "kept"_a)
      .def("ready", [](const SubmissionHandle& self, int64_t kept) { return self.submission->ready(kept); }, "kept"_a)
      .def("done", [](const SubmissionHandle& self) { return self.submission->done(); })
      .def("drained", [](const SubmissionHandle& self, int64_t kept) { return self.submission->drained(kept); }, "kept"_a)
      .def("cancel", [](const SubmissionHandle& self) { self.submission->cancel(); })
      .def("ring", [](const SubmissionHandle& self, std::shared_ptr<Bell> bell, bool whole, int64_t kept) {
             self.submission->ring(std::move(bell), until_of(whole), kept);
           }, "bell"_a, "whole"_a, "kept"_a);
}

}  // namespace

void bind_engine(py::module_& m) {
  bind_submissions(m);
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
      .def("trace", &trace)
      .def("learn", &learn, "cycles"_a)
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
      .def_property_readonly("target_vocab_size", [](const EngineThread& self) { return self.engine()->target_vocab_size(); })
      .def_property_readonly("weight_bytes", [](const EngineThread& self) { return self.engine()->weight_bytes(); })
      .def_property_readonly("kv_bytes", [](const EngineThread& self) { return self.engine()->kv_bytes(); })
      .def_property_readonly("workspace_bytes", [](const EngineThread& self) { return self.engine()->workspace_bytes(); });

  m.attr("TAU_REASONS") = names_of(kTauReasons);
  m.attr("EXTRA_KINDS") = names_of(kExtraKinds);
  m.attr("DRAFT_SOURCES") = names_of(kDraftSources);
  ending = 0;  // of an interpreter that was ended before, where a program starts one again
  m.def("interpreter_ends", [] { ending = gettid(); });
}

}  // namespace paceline
