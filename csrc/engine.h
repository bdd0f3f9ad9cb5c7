// The public C++ API: two checkpoints in, tokens out, bit for bit those of the target alone.
//
//   auto backend = std::shared_ptr<Backend>(make_cpu_backend(0, ""));
//   auto weights = std::make_shared<Weights>(backend, config, DType::bf16, path);   // load() every expected tensor
//   Engine engine(backend, weights, draft_weights, options);
//   engine.add(prompt, params);
//   while (!engine.idle()) for (const Output& output : engine.step()) ...
//
// Not thread-safe: one caller at a time (EngineThread is one). Computing threads are the backend's.
#pragma once

#include <exception>

#include "decode/scheduler.h"
#include "decode/verification.h"
#include "model/weights.h"

namespace paceline {

class Engine {
 public:
  // draft may be null: plain decoding only.
  Engine(std::shared_ptr<Backend> backend, std::shared_ptr<Weights> target, std::shared_ptr<Weights> draft, const EngineOptions& options);
  // Any models (tests use a table model). They must have been made for limits_of(options, ...).
  Engine(std::shared_ptr<Backend> backend, std::unique_ptr<Model> target, std::unique_ptr<Model> draft, const EngineOptions& options);

  // Of any thread, at any time, these three: they look at nothing that changes.
  void check(const std::vector<int32_t>& prompt, const RequestParams& params) const { scheduler_->check(prompt, params); }
  Demand demand(int prompt_length, const RequestParams& params) const { return scheduler_->demand(prompt_length, params); }
  Demand capacity() const { return scheduler_->capacity(); }

  int64_t add(std::vector<int32_t> prompt, RequestParams params) { return alive().add(std::move(prompt), std::move(params)); }
  void cancel(int64_t request) { alive().cancel(request); }
  std::vector<Output> step();
  TraceColumns trace() { return alive().trace().columns(); }
  RequestStats stats() { return alive().stats(); }
  void profile(bool on) { alive(); backend_->profile(on); }
  void learn(const std::vector<CycleCost>& cycles) { alive().learn(cycles); }
  void set_controller(std::unique_ptr<Controller> controller) { alive().set_controller(std::move(controller)); }
  bool idle() { return alive().idle(); }
  int waiting() { return alive().waiting(); }  // requests not admitted yet
  int64_t prefix_cache_bytes() { return alive().prefix_cache().bytes(); }  // held now
  std::vector<float> verify(const std::vector<int32_t>& prefix, const std::vector<int32_t>& drafts);
  // The same a pass at a time, with steps between: of one that was begun whether it has all its logprobs now.
  std::unique_ptr<Verification> begin_verification(const std::vector<int32_t>& prefix, const std::vector<int32_t>& drafts) {
    return std::make_unique<Verification>(alive(), prefix, drafts);
  }
  bool advance(Verification& verification);

  int target_vocab_size() const { return target_->vocab_size(); }
  size_t weight_bytes() const;
  size_t kv_bytes() const;
  size_t workspace_bytes() const;  // everything else that was taken, the backend's scratch included

  // What a model must be made for under these options.
  struct ModelLimits {
    int max_rows, max_len, num_slots, num_pages;
  };
  static ModelLimits limits_of(const EngineOptions& options, int model_max_len);

 private:
  Scheduler& alive();  // throws EngineDead once a step has failed

  std::shared_ptr<Backend> backend_;
  std::shared_ptr<Weights> target_weights_, draft_weights_;
  std::unique_ptr<Model> target_, draft_;
  std::unique_ptr<Scheduler> scheduler_;
  std::exception_ptr cause_of_death_;
};

}  // namespace paceline
