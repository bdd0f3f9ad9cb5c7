#include "engine.h"

#include <algorithm>
#include <cmath>

#include "model/transformer.h"

namespace paceline {
namespace {

// A pass of a cycle reads the weights, whatever it does with them.
EngineOptions with_draft_cost(EngineOptions options, const Weights* target, const Weights* draft) {
  if (draft && options.draft_cost == 0) options.draft_cost = double(draft->packed().bytes()) / double(target->packed().bytes());
  return options;
}

constexpr int kMostPositions = 1 << 24;  // of a sequence, and of a cache: far beyond every model, and sums of a few of them are ints

void check_options(const EngineOptions& o) {
  require(o.num_speculative_tokens >= 0 && o.num_speculative_tokens <= 64, "[Engine] num_speculative_tokens must be in [0, 64], got ",
          o.num_speculative_tokens);
  require(o.max_model_len >= 2 && o.max_model_len <= kMostPositions, "[Engine] max_model_len must be in [2, ", kMostPositions, "], got ",
          o.max_model_len);
  require(o.max_num_seqs >= 1 && o.max_num_seqs <= kMaxSlots, "[Engine] max_num_seqs must be in [1, 256], got ", o.max_num_seqs);
  require(o.kv_dtype != DType::fp16, "[Engine] kv_dtype must be fp32 or bf16, got fp16");
  require(o.kv_cache_tokens >= 2 && o.kv_cache_tokens <= kMostPositions, "[Engine] kv_cache_tokens must be in [2, ", kMostPositions, "], got ",
          o.kv_cache_tokens);
  require(o.prefill_chunk >= 1 && o.prefill_chunk <= 512, "[Engine] prefill_chunk must be in [1, 512], got ", o.prefill_chunk);
  require(o.prefill_chunk_beside >= 0, "[Engine] prefill_chunk_beside must be at least 0, got ", o.prefill_chunk_beside);
  require(o.trace_cycles >= 0 && o.trace_cycles <= 1 << 20, "[Engine] trace_cycles must be in [0, 1048576], got ", o.trace_cycles);
  require(o.verify_budget >= 0 && (o.verify_budget > 0) == (o.policy == Policy::budget), "[Engine] verify_budget must be at least 1 row under "
          "policy \"budget\" and 0 under others, got ", o.verify_budget);
  require(o.latency_target >= 0 && (o.latency_target > 0) == (o.policy == Policy::latency), "[Engine] latency_target must be above 0 seconds "
          "under policy \"latency\" and 0 under others, got ", o.latency_target);
  require(o.min_draft_confidence >= 0 && o.min_draft_confidence < 1, "[Engine] min_draft_confidence must be in [0, 1), got ",
          o.min_draft_confidence);
  require(o.prefix_cache_bytes >= -1, "[Engine] prefix_cache_bytes must be at least 0, or -1 for all that nobody needs, got ", o.prefix_cache_bytes);
  require(o.draft_cost >= 0 && std::isfinite(o.draft_cost), "[Engine] draft_cost must be in [0, inf), got ", o.draft_cost);
  require(o.max_num_seqs * (o.num_speculative_tokens + 1) <= 512,
          "[Engine] max_num_seqs * (num_speculative_tokens + 1) must be at most 512 rows, got ", o.max_num_seqs * (o.num_speculative_tokens + 1));
}

std::unique_ptr<Model> make_model(const std::shared_ptr<Weights>& weights, const EngineOptions& options) {
  if (!weights) return nullptr;
  check_options(options);
  const Engine::ModelLimits limits = Engine::limits_of(options, weights->config().max_position_embeddings);
  return std::make_unique<Transformer>(
      weights, Transformer::Limits{limits.max_rows, limits.max_len, limits.num_slots, limits.num_pages, options.kv_dtype});
}

}  // namespace

Engine::Engine(std::shared_ptr<Backend> backend, std::shared_ptr<Weights> target, std::shared_ptr<Weights> draft, const EngineOptions& options)
    : Engine(std::move(backend), make_model(target, options), make_model(draft, options), with_draft_cost(options, target.get(), draft.get())) {
  target_weights_ = std::move(target);
  draft_weights_ = std::move(draft);
}

Engine::Engine(std::shared_ptr<Backend> backend, std::unique_ptr<Model> target, std::unique_ptr<Model> draft, const EngineOptions& options)
    : backend_(std::move(backend)), target_(std::move(target)), draft_(std::move(draft)) {
  check_options(options);
  require(options.max_model_len <= target_->max_len(), "[Engine] max_model_len must be at most the target's ", target_->max_len(), ", got ",
          options.max_model_len);
  scheduler_ = std::make_unique<Scheduler>(*backend_, *target_, draft_.get(), options);
}

// Pages for kv_cache_tokens positions, and up to a page more per sequence for what the last page of each leaves unused.
Engine::ModelLimits Engine::limits_of(const EngineOptions& o, int model_max_len) {
  const int rows = std::max({o.prefill_chunk, 2 * o.max_num_seqs, o.max_num_seqs * (o.num_speculative_tokens + 1)});
  const int pages = (o.kv_cache_tokens + kPagePositions - 1) / kPagePositions + o.max_num_seqs - 1;
  return {rows, std::min(o.max_model_len, model_max_len), o.max_num_seqs + 1, pages};
}

// A step that throws leaves the state of the sequences unknown: from then on every call reports that first cause.
std::vector<Output> Engine::step() {
  Scheduler& scheduler = alive();
  try {
    return scheduler.step();
  } catch (const std::exception&) {
    cause_of_death_ = std::current_exception();  // takes no memory, which may be what was missing
  }
  alive();
  return {};
}

std::vector<float> Engine::verify(const std::vector<int32_t>& prefix, const std::vector<int32_t>& drafts) {
  const auto verification = begin_verification(prefix, drafts);
  while (!advance(*verification)) {
  }
  return std::move(verification->logprobs());
}

bool Engine::advance(Verification& verification) {
  alive();
  try {
    return verification.advance();
  } catch (const DeviceError&) {  // what else it throws leaves the sequences as they were
    cause_of_death_ = std::current_exception();
  }
  alive();
  return true;
}

Scheduler& Engine::alive() {
  if (!cause_of_death_) return *scheduler_;
  try {
    std::rethrow_exception(cause_of_death_);
  } catch (const std::exception& error) {
    throw EngineDead(std::string("[Engine] the engine cannot go on, build a new one: ") + error.what());
  }
}

size_t Engine::weight_bytes() const {
  return (target_weights_ ? target_weights_->packed().bytes() : 0) + (draft_weights_ ? draft_weights_->packed().bytes() : 0);
}
size_t Engine::kv_bytes() const { return target_->cache().bytes() + (draft_ ? draft_->cache().bytes() : 0); }
size_t Engine::workspace_bytes() const {
  return scheduler_->workspace_bytes() + target_->workspace_bytes() + (draft_ ? draft_->workspace_bytes() : 0) + backend_->scratch_bytes();
}

}  // namespace paceline
