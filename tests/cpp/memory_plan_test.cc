// What a plan says is what the engine takes, and planning takes nothing.
#include "memory_plan.h"

#include "cpp/allocations.h"
#include "cpp/test.h"
#include "cpp/tiny_models.h"

using namespace paceline;
using namespace paceline::test;

namespace {

EngineOptions options_of(int tau, int batch, int length, int tokens, DType kv, DrafterKind drafter = DrafterKind::model) {
  EngineOptions options;
  options.drafter = drafter;
  options.num_speculative_tokens = tau;
  options.max_num_seqs = batch;
  options.max_model_len = length;
  options.kv_cache_tokens = tokens;
  options.kv_dtype = kv;
  options.prefill_chunk = 48;
  return options;
}

}  // namespace

TEST(a_plan_is_what_the_engine_takes) {
  TinyShape shape, small;
  shape.bias = true, shape.context = 500;
  small.vocab = 61, small.intermediate = 112, small.tied = true, small.qk_norm = true;
  for (int threads : {1, 3})
    for (DType dtype : {DType::fp32, DType::bf16, DType::int8, DType::int4, DType::int4_g32})
      for (const EngineOptions& options : {options_of(0, 1, 300, 300, DType::fp32), options_of(3, 2, 320, 640, DType::bf16),
                                           options_of(5, 4, 500, 900, DType::fp32), options_of(1, 1, 64, 65, DType::bf16),
                                           options_of(4, 3, 500, 900, DType::bf16, DrafterKind::ngram),
                                           options_of(2, 2, 300, 600, DType::fp32, DrafterKind::chain)}) {
        const bool has_draft = options.num_speculative_tokens > 0 && options.drafter != DrafterKind::ngram;
        const DType draft_dtype = dtype == DType::bf16 ? DType::int4 : dtype;
        const std::shared_ptr<Backend> backend = make_cpu_backend(threads, "");
        const size_t own = backend->scratch_bytes();
        const ModelConfig config = config_of(shape), draft_config = config_of(small);
        const MemoryUse plan = plan_memory(*backend, config, dtype, has_draft ? &draft_config : nullptr, draft_dtype, options);
        CHECK(backend->scratch_bytes() == own, "planning has made the real backend take memory");

        const long before = Allocations::buffer_bytes(), buffers = Allocations::calls(Allocations::kBuffer);
        const auto target = tiny_weights(backend, shape, dtype, 1), draft = has_draft ? tiny_weights(backend, small, draft_dtype, 2) : nullptr;
        const Engine engine(backend, target, draft, options);
        const std::string what = message(name_of(dtype), ", tau ", options.num_speculative_tokens, ", ", threads, " threads");
        CHECK(plan.weights == engine.weight_bytes() && plan.draft_weights == (draft ? draft->packed().bytes() : 0), what, ": weights ", plan.weights,
              ", the engine's ", engine.weight_bytes());
        CHECK(plan.kv_cache == engine.kv_bytes(), what, ": KV ", plan.kv_cache, ", the engine's ", engine.kv_bytes());
        CHECK(plan.workspace == engine.workspace_bytes(), what, ": workspace ", plan.workspace, ", the engine's ", engine.workspace_bytes());
        // Buffers are taken in units of 64 bytes.
        const long taken = Allocations::buffer_bytes() - before + long(own), planned = long(plan.weights + plan.kv_cache + plan.workspace);
        const long rounding = 64 * (Allocations::calls(Allocations::kBuffer) - buffers);
        CHECK(taken >= planned && taken <= planned + rounding, what, ": ", planned, " bytes planned, ", taken, " taken");
      }
}

// A shape of 70 billion parameters and its longest context.
TEST(planning_takes_next_to_nothing) {
  TinyShape shape;
  shape.vocab = 128256, shape.hidden = 8192, shape.intermediate = 28672, shape.layers = 80, shape.heads = 64, shape.kv_heads = 8, shape.head_dim = 128;
  shape.context = 131072;
  const ModelConfig config = config_of(shape);
  const std::shared_ptr<Backend> backend = make_cpu_backend(2, "");
  Allocations::reset_bytes();
  const MemoryUse plan = plan_memory(*backend, config, DType::bf16, &config, DType::int4, options_of(7, 16, 131072, 262144, DType::bf16));
  CHECK(plan.weights - plan.draft_weights > size_t(140e9) && plan.weights - plan.draft_weights < size_t(142e9), plan.weights - plan.draft_weights);
  CHECK(plan.kv_cache > 2 * size_t(262144) * 80 * 2 * 8 * 128 * 2, plan.kv_cache);
  CHECK(Allocations::most_bytes() < (20 << 20), Allocations::most_bytes(), " bytes taken");
}

TEST(a_plan_refuses_what_the_constructors_refuse) {
  const std::shared_ptr<Backend> backend = make_cpu_backend(1, "");
  const ModelConfig config = config_of({});
  CHECK_THROWS(plan_memory(*backend, config, DType::bf16, nullptr, DType::bf16, options_of(3, 1, 100, 100, DType::bf16)), std::invalid_argument,
               "num_speculative_tokens must be 0 without a draft");
  CHECK_THROWS(plan_memory(*backend, config, DType::bf16, nullptr, DType::bf16, options_of(0, 1, 100000, 100, DType::bf16)), std::invalid_argument,
               "max_model_len must be at most");
  ModelConfig endless = config;
  endless.max_position_embeddings = INT32_MAX;
  for (const int many : {(1 << 24) + 1, INT32_MAX - 70, INT32_MAX}) {  // no sum of lengths or pages may overflow before it is looked at
    CHECK_THROWS(plan_memory(*backend, config, DType::bf16, nullptr, DType::bf16, options_of(0, 1, 100, many, DType::bf16)), std::invalid_argument,
                 "kv_cache_tokens must be in [2, 16777216], got");
    CHECK_THROWS(plan_memory(*backend, endless, DType::bf16, &config, DType::bf16, options_of(1, 1, many, 100, DType::bf16)), std::invalid_argument,
                 "max_model_len must be in [2, 16777216], got");
  }
}

TEST_MAIN()
