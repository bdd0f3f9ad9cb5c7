#include "memory_plan.h"

#include <algorithm>

#include "backend/planning_backend.h"

namespace paceline {
namespace {

// Weights that have been loaded, as far as the engine can tell. Vectors are read on their way to the backend: they are given zeros.
std::shared_ptr<Weights> planned_weights(const std::shared_ptr<Backend>& backend, const ModelConfig& config, DType dtype) {
  auto weights = std::make_shared<Weights>(backend, config, dtype, "a plan");
  int64_t longest = 0;
  for (const auto& tensor : weights->expected())
    if (tensor.shape.size() == 1) longest = std::max(longest, tensor.shape[0]);
  const std::vector<float> zeros(size_t(longest), 0.0f);
  for (const auto& tensor : weights->expected()) weights->load({tensor.name, DType::fp32, tensor.shape, zeros.data()});
  return weights;
}

}  // namespace

MemoryUse plan_memory(const Backend& backend, const ModelConfig& target, DType dtype, const ModelConfig* draft, DType draft_dtype,
                      const EngineOptions& options) {
  const auto planning = std::make_shared<PlanningBackend>(backend);
  const auto weights = planned_weights(planning, target, dtype);
  const auto draft_weights = draft ? planned_weights(planning, *draft, draft_dtype) : nullptr;
  const Engine engine(planning, weights, draft_weights, options);
  const size_t taken = planning->bytes_asked_for() + planning->scratch_bytes();  // whatever the engine knows of it
  return {engine.weight_bytes(), draft ? draft_weights->packed().bytes() : 0, engine.kv_bytes(), taken - engine.weight_bytes() - engine.kv_bytes()};
}

}  // namespace paceline
