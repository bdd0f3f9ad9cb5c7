// Memory runs out at any moment, of the host's or of the backend's: an exception, nothing lost, an engine that goes on or says that it
// cannot, and others that notice nothing.
#include "cpp/every_allocation.h"
#include "cpp/tiny_models.h"
#include "memory_plan.h"

using namespace paceline;
using namespace paceline::test;

namespace {

TinyShape small_shape() {
  TinyShape shape;
  shape.vocab = 31, shape.hidden = 32, shape.intermediate = 48, shape.heads = 2, shape.kv_heads = 1, shape.context = 128, shape.bias = true;
  return shape;
}

EngineOptions small_options() {
  EngineOptions options;
  options.num_speculative_tokens = 2;
  options.max_model_len = 128;
  options.max_num_seqs = 2;
  options.kv_cache_tokens = 192;  // four pages: two requests of kind 2 need them all
  options.prefill_chunk = 32;
  options.debug_hash = true;
  for (int id = 0; id < 31; ++id) options.token_bytes.push_back(std::string(1, char('a' + id % 5)));
  return options;
}

// A checkpoint in memory, made once.
struct Tensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};
std::vector<Tensor> tensors_of(float noise) {
  std::vector<Tensor> all;
  const Weights names(make_cpu_backend(1, ""), config_of(small_shape()), DType::fp32, "names");
  std::mt19937 random(1), other(2);
  std::normal_distribution<float> normal(0, 1);
  for (const auto& tensor : names.expected()) {
    Tensor& made = all.emplace_back(Tensor{tensor.name, tensor.shape, {}});
    int64_t size = 1;
    for (int64_t d : tensor.shape) size *= d;
    for (int64_t i = 0; i < size; ++i)
      made.values.push_back(tensor.shape.size() == 1 ? 1 + 0.1f * normal(random) : 0.3f * (normal(random) + noise * normal(other)));
  }
  return all;
}

std::shared_ptr<Weights> loaded(const std::shared_ptr<Backend>& backend, const std::vector<Tensor>& tensors, DType dtype) {
  auto weights = std::make_shared<Weights>(backend, config_of(small_shape()), dtype, "small");
  for (const Tensor& tensor : tensors) weights->load({tensor.name, DType::fp32, tensor.shape, tensor.values.data()});
  return weights;
}

RequestParams params_of(int kind) {
  RequestParams p;
  p.max_tokens = 5 + kind;
  p.seed = 11;
  if (kind == 0) p.temperature = 0.9, p.logprobs = 3, p.stop = {"zzz", "never of these letters"};
  if (kind == 1) p.num_speculative_tokens = 0, p.logprobs = 0;
  if (kind == 2) p.temperature = 1.2, p.repetition_penalty = 1.2, p.frequency_penalty = 0.1, p.top_k = 9, p.logit_bias = {{3, 0.5}, {4, -0.5}};
  if (kind == 3) p.temperature = 0.7, p.top_p = 0.9, p.stop_token_ids = {29, 30}, p.min_tokens = 2;
  return p;
}

std::vector<int32_t> prompt_of(int kind) {
  std::vector<int32_t> prompt(kind == 2 ? 70 : 4 + kind);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = int32_t((5 * i + kind) % 31);
  return prompt;
}

// Of the last request of this kind that is added now, beside whatever the engine has to do already.
std::vector<int> text(Engine& engine, int kind) {
  const int64_t id = engine.add(prompt_of(kind), params_of(kind));
  std::vector<int> tokens;
  while (!engine.idle())
    for (const Output& output : engine.step())
      if (output.request == id) tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
  return tokens;
}

// stepping: whether it was a step that did not come back.
void use(Engine& engine, bool& stepping) {
  for (int kind = 0; kind < 4; ++kind) engine.add(prompt_of(kind), params_of(kind));
  const int64_t dropped = engine.add(prompt_of(0), params_of(0));
  for (int step = 0; !engine.idle(); ++step) {
    stepping = true;
    engine.step();
    stepping = false;
    if (step == 1) engine.verify(prompt_of(1), {1, 2});
    if (step == 2) engine.cancel(dropped);
  }
  engine.stats();
}

}  // namespace

TEST(an_engine_survives_every_failing_allocation_or_says_that_it_does_not) {
  const std::vector<Tensor> target = tensors_of(0), draft = tensors_of(0.1f);
  const auto bystander_backend = std::shared_ptr<Backend>(make_cpu_backend(3, ""));
  Engine bystander(bystander_backend, loaded(bystander_backend, target, DType::bf16), loaded(bystander_backend, draft, DType::int8), small_options());
  const std::vector<int> want = text(bystander, 3);
  CHECK(want.size() >= 2);

  long usable = 0, dead = 0, unbuilt = 0;
  const auto scenario = [&](const FailureRun& run) {
    bool built = false;
    try {
      // Every other run makes the pool, the rest share it with the bystander.
      const std::shared_ptr<Backend> backend = make_cpu_backend(run.n % 2 ? 2 : 3, "");
      Engine engine(backend, loaded(backend, target, DType::bf16), loaded(backend, draft, DType::int8), small_options());
      built = true;
      bool stepping = false;
      try {
        use(engine, stepping);
      } catch (const std::exception&) {
        if (run.for_good && run.n % 2) throw;  // and all goes while nothing can be had
        Allocations::disarm();
        if (stepping) CHECK_THROWS(engine.add({1}, {}), EngineDead, "build a new one: std::bad_alloc");
        if (!stepping) {
          for (int i = 0; i < 2; ++i) engine.add(prompt_of(2), params_of(2));
          CHECK(text(engine, 3) == want, "allocation ", run.n, ": an engine that goes on gives another text");
        }
        ++(stepping ? dead : usable);
        throw;
      }
    } catch (const std::exception&) {
      unbuilt += !built;
      throw;
    }
  };
  long runs = 0;
  const long failed = fail_every_allocation(scenario, [&](const FailureRun&) {
    if (++runs % 16 == 0) CHECK(text(bystander, 3) == want, "another engine's text has changed");
  });
  CHECK(text(bystander, 3) == want);
  std::printf("      %ld runs: %ld engines not built, %ld go on, %ld dead\n", failed, unbuilt, usable, dead);
  CHECK(failed > 50 && unbuilt > 10 && usable > 0 && dead > 5, failed, " runs, ", unbuilt, " not built, ", usable, " usable, ", dead, " dead");
}

TEST(a_plan_survives_every_failing_allocation) {
  const std::shared_ptr<Backend> backend = make_cpu_backend(2, "");
  const ModelConfig config = config_of(small_shape());
  const size_t want = plan_memory(*backend, config, DType::bf16, &config, DType::int4, small_options()).workspace;
  const long failed = fail_every_allocation(
      [&](const FailureRun&) { plan_memory(*backend, config, DType::bf16, &config, DType::int4, small_options()); },
      [&](const FailureRun&) { CHECK(plan_memory(*backend, config, DType::bf16, &config, DType::int4, small_options()).workspace == want); });
  CHECK(failed > 10, failed);
}

TEST_MAIN()
