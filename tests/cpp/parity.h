// Texts decoded through an engine and compared bit for bit: what the parity tests of all backends share.
#pragma once

#include <functional>
#include <map>

#include "cpp/test.h"
#include "cpp/tiny_models.h"

namespace paceline::test {

std::shared_ptr<Backend> backend();  // of the test that includes this

struct Text {
  std::vector<int> tokens;
  std::vector<float> logprobs;
  std::vector<uint64_t> target_kv, draft_kv;
  uint64_t logits_hash = 0;
  FinishReason finish = FinishReason::none;
  int drafted = 0, accepted = 0;
};

struct Job {
  std::vector<int32_t> prompt;
  RequestParams params;
};

inline long tokens_decoded = 0;

// All jobs at once through one engine; results in the order of the jobs.
inline std::vector<Text> decode(const std::shared_ptr<Weights>& target, const std::shared_ptr<Weights>& draft, int tau, int batch,
                         const std::vector<Job>& jobs, Acceptance acceptance = Acceptance::coupled, int prefill_chunk = 64,
                         const std::function<void(EngineOptions&)>& adjust = nullptr, std::unique_ptr<Controller> controller = nullptr,
                         DrafterKind drafter = DrafterKind::model) {
  EngineOptions options;
  options.num_speculative_tokens = draft || drafter != DrafterKind::model ? tau : 0;
  options.drafter = drafter;
  options.max_model_len = target->config().max_position_embeddings;
  options.max_num_seqs = batch;
  options.kv_dtype = target->dtype() == DType::fp32 ? DType::fp32 : DType::bf16;
  options.kv_cache_tokens = batch * options.max_model_len;
  options.prefill_chunk = options.prefill_chunk_beside = prefill_chunk;  // when drafts begin must not hang on how fast this machine is
  options.acceptance = acceptance;
  options.debug_hash = true;
  options.cycles_in_flight = cycles_in_flight();
  options.prefix_cache_bytes = 0;
  if (adjust) adjust(options);
  Engine engine(backend(), target, draft, options);
  if (controller) engine.set_controller(std::move(controller));
  std::map<int64_t, size_t> place;
  std::vector<Text> texts(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) place[engine.add(jobs[i].prompt, jobs[i].params)] = i;
  while (!engine.idle())
    for (const Output& output : engine.step()) {
      for (int token : output.tokens) CHECK(token >= 0 && token < target->config().vocab_size, "token ", token, " does not exist");
      for (float logprob : output.logprobs) CHECK(std::isfinite(logprob) && logprob <= 0, "a logprob of ", logprob);
      Text& text = texts[place.at(output.request)];
      text.tokens.insert(text.tokens.end(), output.tokens.begin(), output.tokens.end());
      text.logprobs.insert(text.logprobs.end(), output.logprobs.begin(), output.logprobs.end());
      text.finish = output.finish;
      if (output.finish == FinishReason::none) continue;
      text.logits_hash = output.logits_hash;
      text.target_kv = output.target_kv_hashes;
      text.draft_kv = output.draft_kv_hashes;
      text.drafted = output.stats.num_draft_tokens;
      text.accepted = output.stats.num_accepted_draft_tokens;
      tokens_decoded += long(text.tokens.size());
    }
  return texts;
}

inline std::vector<Job> jobs_of(int count, double temperature, int vocab, unsigned seed, int max_tokens = 60) {
  std::mt19937 random(seed);
  std::vector<Job> jobs(count);
  for (int i = 0; i < count; ++i) {
    const int length = 1 + int(random() % 90);  // first pages fill up at any place of the text
    for (int k = 0; k < length; ++k) jobs[i].prompt.push_back(int(random() % vocab));
    RequestParams& p = jobs[i].params;
    p.max_tokens = max_tokens;
    p.temperature = temperature;
    p.seed = seed * 1000 + i;
    p.logprobs = 0;
    if (i % 3 == 1) p.top_p = 0.8;
    if (i % 3 == 2) p.repetition_penalty = 1.3, p.frequency_penalty = 0.2, p.top_k = 20;
    if (i % 5 == 4) p.stop_token_ids = {int(random() % vocab), int(random() % vocab)};
  }
  return jobs;
}

inline void check_equal(const std::vector<Text>& got, const std::vector<Text>& want, const std::string& what) {
  for (size_t i = 0; i < want.size(); ++i) {
    const std::string where = message(what, ", request ", i);
    CHECK(got[i].tokens == want[i].tokens, where, ": tokens differ");
    CHECK(got[i].logprobs == want[i].logprobs, where, ": logprobs differ");
    CHECK(got[i].logits_hash == want[i].logits_hash, where, ": logits of reached rows differ");
    CHECK(got[i].finish == want[i].finish, where, ": finish reason differs");
    CHECK(got[i].target_kv == want[i].target_kv, where, ": the target's KV rows differ");
  }
}

// The draft's cache must hold what a cold prefill of the same text would write. The draft itself, as a target, decodes one
// more token after the text; its KV rows are the reference.
inline void check_draft_kv(const std::shared_ptr<Weights>& draft, const std::vector<Job>& jobs, const std::vector<Text>& texts, const std::string& what) {
  std::vector<Job> cold(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    for (int32_t id : jobs[i].prompt) cold[i].prompt.push_back(id < draft->config().vocab_size ? id : 0);
    for (size_t k = 0; k + 1 < texts[i].tokens.size(); ++k) cold[i].prompt.push_back(texts[i].tokens[k] < draft->config().vocab_size ? texts[i].tokens[k] : 0);
    cold[i].params.max_tokens = 1;
  }
  const std::vector<Text> want = decode(draft, nullptr, 0, 4, cold);
  for (size_t i = 0; i < jobs.size(); ++i)
    for (size_t k = 0; k < texts[i].draft_kv.size(); ++k)
      CHECK(k < want[i].target_kv.size() && texts[i].draft_kv[k] == want[i].target_kv[k], what, ", request ", i, ": the draft's KV row ", k, " of ", texts[i].draft_kv.size(), ", cold ", want[i].target_kv.size(), ", prompt ", jobs[i].prompt.size(), ", tokens ", texts[i].tokens.size(), " ", name_of(texts[i].finish));
}

struct Pair {
  const char* name;
  std::shared_ptr<Weights> target, draft;
};

inline std::vector<Pair> pairs(DType dtype) {
  TinyShape shape, small = shape, large = shape;
  small.vocab = 61;
  large.vocab = 131;
  const auto target = tiny_weights(backend(), shape, dtype, 1);
  return {{"good draft", target, tiny_weights(backend(), shape, dtype, 1, 0.15f)},
          {"random draft", target, tiny_weights(backend(), shape, dtype, 99)},
          {"smaller vocabulary", target, tiny_weights(backend(), small, dtype, 5)},
          {"larger vocabulary", target, tiny_weights(backend(), large, dtype, 6)},
          {"draft == target", target, target}};
}

}  // namespace paceline::test
