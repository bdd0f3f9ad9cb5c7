// Logprobs of accepted, residual and bonus tokens are those that a fresh pass over the finished text gives, bit for bit; and they are raw:
// log-softmax of the logits before any processor.
#include "cpp/test.h"
#include "cpp/tiny_models.h"

using namespace paceline;
using namespace paceline::test;

namespace {

std::shared_ptr<Backend> backend() {
  static std::shared_ptr<Backend> shared = make_cpu_backend(1, "");
  return shared;
}

struct Request {
  std::vector<int32_t> prompt;
  RequestParams params;
};

Request random_request(std::mt19937& random, int vocab) {
  const auto below = [&](int n) { return int(random() % unsigned(n)); };
  Request r;
  for (int length = 1 + below(70); int(r.prompt.size()) < length;) r.prompt.push_back(below(vocab));
  r.params.max_tokens = 1 + below(40);
  r.params.temperature = below(3) ? 0.1 * (1 + below(15)) : 0.0;
  r.params.seed = random();
  r.params.logprobs = below(6);
  r.params.num_speculative_tokens = below(7);
  if (below(2)) r.params.repetition_penalty = 1.4, r.params.frequency_penalty = 0.3;
  if (below(2)) r.params.top_p = 0.8, r.params.top_k = 12;
  if (below(2)) r.params.logit_bias = {{below(vocab), 3.0}, {below(vocab), -100.0}};
  return r;
}

struct Text {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<std::vector<TopLogprob>> top;
};

// Where the engine is idle its rows of `verify` are a prefill of the text.
void check_rescored(Engine& engine, const Request& request, const Text& text, const std::string& where) {
  const int vocab = engine.target_vocab_size();
  const std::vector<float> rows = engine.verify(request.prompt, {text.tokens.begin(), text.tokens.end() - 1});
  CHECK(text.logprobs.size() == text.tokens.size() && rows.size() == text.tokens.size() * size_t(vocab), where);
  for (size_t i = 0; i < text.tokens.size(); ++i) {
    const float* row = rows.data() + i * vocab;
    CHECK(text.logprobs[i] == row[text.tokens[i]], where, ", token ", i, ": ", text.logprobs[i], ", re-scored ", row[text.tokens[i]]);
    CHECK(int(text.top[i].size()) == request.params.logprobs, where);
    for (size_t k = 0; k < text.top[i].size(); ++k) {
      CHECK(text.top[i][k].logprob == row[text.top[i][k].token], where, ", token ", i, ", alternative ", k);
      if (k) CHECK(text.top[i][k].logprob <= text.top[i][k - 1].logprob, where);
    }
    if (request.params.logprobs > 0) CHECK(text.top[i][0].logprob == *std::max_element(row, row + vocab), where, ", token ", i, ": the best");
  }
}

}  // namespace

TEST(logprobs_equal_a_fresh_pass_over_the_text) {
  std::mt19937 random(17);
  long tokens = 0, accepted = 0;
  for (DType dtype : {DType::fp32, DType::bf16, DType::int8, DType::int4})
    for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection}) {
      const TinyShape shape;
      EngineOptions options;
      options.num_speculative_tokens = 6;
      options.acceptance = rule;
      options.max_model_len = shape.context;
      options.max_num_seqs = 3;
      options.kv_dtype = dtype == DType::fp32 ? DType::fp32 : DType::bf16;
      options.kv_cache_tokens = 3 * shape.context;
      Engine engine(backend(), tiny_weights(backend(), shape, dtype, 1), tiny_weights(backend(), shape, dtype, 1, 0.15f), options);
      std::map<int64_t, std::pair<Request, Text>> all;
      for (int i = 0; i < 50; ++i) {
        const Request request = random_request(random, shape.vocab);
        all[engine.add(request.prompt, request.params)].first = request;
      }
      while (!engine.idle())
        for (const Output& output : engine.step()) {
          Text& text = all.at(output.request).second;
          text.tokens.insert(text.tokens.end(), output.tokens.begin(), output.tokens.end());
          text.logprobs.insert(text.logprobs.end(), output.logprobs.begin(), output.logprobs.end());
          text.top.insert(text.top.end(), output.top_logprobs.begin(), output.top_logprobs.end());
          accepted += output.accepted;
        }
      for (const auto& [id, each] : all) {
        check_rescored(engine, each.first, each.second, message(name_of(dtype), ", rule ", int(rule), ", request ", id));
        tokens += long(each.second.tokens.size());
      }
    }
  std::printf("      400 requests, %ld tokens, %ld of them drafts\n", tokens, accepted);
  CHECK(tokens > 5000 && accepted > 1000 && tokens - accepted > 1000, tokens, " ", accepted);
}

TEST_MAIN()
