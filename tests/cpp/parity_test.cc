// Speculative decoding equals plain decoding bit for bit: tokens, logprobs, a hash of every reached row's logits, and the KV
// rows of both models, on random transformers. Together the tests of this file decode more than 100,000 tokens.
#include <map>

#include "cpp/test.h"
#include "cpp/tiny_models.h"

using namespace paceline;
using namespace paceline::test;

namespace {

std::shared_ptr<Backend> backend() {
  static std::shared_ptr<Backend> shared = make_cpu_backend(1, "");  // tiny products: threads are invariance_test
  return shared;
}

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

long tokens_decoded = 0;

// All jobs at once through one engine; results in the order of the jobs.
std::vector<Text> decode(const std::shared_ptr<Weights>& target, const std::shared_ptr<Weights>& draft, int tau, int batch,
                         const std::vector<Job>& jobs, Acceptance acceptance = Acceptance::coupled, int prefill_chunk = 64) {
  EngineOptions options;
  options.num_speculative_tokens = draft ? tau : 0;
  options.max_model_len = target->config().max_position_embeddings;
  options.max_num_seqs = batch;
  options.kv_dtype = target->dtype() == DType::fp32 ? DType::fp32 : DType::bf16;
  options.kv_cache_tokens = batch * options.max_model_len;
  options.prefill_chunk = prefill_chunk;
  options.acceptance = acceptance;
  options.debug_hash = true;
  Engine engine(backend(), target, draft, options);
  std::map<int64_t, size_t> place;
  std::vector<Text> texts(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) place[engine.add(jobs[i].prompt, jobs[i].params)] = i;
  while (!engine.idle())
    for (const Output& output : engine.step()) {
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

std::vector<Job> jobs_of(int count, double temperature, int vocab, unsigned seed, int max_tokens = 60) {
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

void check_equal(const std::vector<Text>& got, const std::vector<Text>& want, const std::string& what) {
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
void check_draft_kv(const std::shared_ptr<Weights>& draft, const std::vector<Job>& jobs, const std::vector<Text>& texts, const std::string& what) {
  std::vector<Job> cold(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    for (int32_t id : jobs[i].prompt) cold[i].prompt.push_back(id < draft->config().vocab_size ? id : 0);
    for (size_t k = 0; k + 1 < texts[i].tokens.size(); ++k) cold[i].prompt.push_back(texts[i].tokens[k] < draft->config().vocab_size ? texts[i].tokens[k] : 0);
    cold[i].params.max_tokens = 1;
  }
  const std::vector<Text> want = decode(draft, nullptr, 0, 4, cold);
  for (size_t i = 0; i < jobs.size(); ++i)
    for (size_t k = 0; k < texts[i].draft_kv.size(); ++k)
      CHECK(k < want[i].target_kv.size() && texts[i].draft_kv[k] == want[i].target_kv[k], what, ", request ", i, ": the draft's KV row ", k);
}

struct Pair {
  const char* name;
  std::shared_ptr<Weights> target, draft;
};

std::vector<Pair> pairs(DType dtype) {
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

void check_all_taus(DType dtype, double temperature, unsigned seed) {
  for (const Pair& pair : pairs(dtype)) {
    const std::vector<Job> jobs = jobs_of(8, temperature, pair.target->config().vocab_size, seed);
    const std::vector<Text> plain = decode(pair.target, nullptr, 0, 1, jobs);
    for (int tau = 0; tau <= 8; ++tau) {
      const int batch = 1 + (tau * 3 + int(seed)) % 8;
      const std::string what = message(pair.name, ", tau ", tau, ", batch ", batch, ", T ", temperature);
      const std::vector<Text> texts = decode(pair.target, pair.draft, tau, batch, jobs);
      check_equal(texts, plain, what);
      check_draft_kv(pair.draft, jobs, texts, what);
      if (pair.target == pair.draft)
        for (const Text& text : texts) CHECK(text.accepted == text.drafted || text.finish == FinishReason::stop, what, ": ", text.accepted, " of ", text.drafted);
    }
  }
}

}  // namespace

TEST(greedy_fp32) { check_all_taus(DType::fp32, 0.0, 1); }
TEST(greedy_bf16) { check_all_taus(DType::bf16, 0.0, 2); }
TEST(sampled_fp32) { check_all_taus(DType::fp32, 0.9, 3); }
TEST(sampled_bf16) { check_all_taus(DType::bf16, 1.2, 4); }
TEST(greedy_int8) { check_all_taus(DType::int8, 0.0, 5); }
TEST(sampled_int8) { check_all_taus(DType::int8, 0.9, 6); }
TEST(greedy_int4) { check_all_taus(DType::int4, 0.0, 7); }
TEST(sampled_int4_in_groups_of_32) { check_all_taus(DType::int4_g32, 0.9, 8); }

// A draft in another format than its target: the shape people run.
TEST(formats_may_differ) {
  const TinyShape shape;
  for (auto [target_dtype, draft_dtype] : {std::pair(DType::bf16, DType::int4), {DType::int8, DType::int4_g32}, {DType::int4, DType::bf16}, {DType::fp32, DType::int8}}) {
    const auto target = tiny_weights(backend(), shape, target_dtype, 1), draft = tiny_weights(backend(), shape, draft_dtype, 1, 0.1f);
    const std::vector<Job> jobs = jobs_of(8, 0.8, shape.vocab, 71);
    const std::vector<Text> plain = decode(target, nullptr, 0, 1, jobs);
    for (int tau : {1, 4, 8}) check_equal(decode(target, draft, tau, 3, jobs), plain, message(name_of(target_dtype), " with ", name_of(draft_dtype), ", tau ", tau));
  }
}

TEST(every_batch_size) {
  const auto all = pairs(DType::bf16);
  const std::vector<Job> jobs = jobs_of(8, 0.8, all[0].target->config().vocab_size, 11);
  const std::vector<Text> plain = decode(all[0].target, nullptr, 0, 1, jobs);
  for (int batch = 1; batch <= 8; ++batch)
    for (int tau : {0, 3, 8})
      check_equal(decode(all[0].target, all[0].draft, tau, batch, jobs, Acceptance::coupled, 7 + 31 * batch), plain,
                  message("batch ", batch, ", tau ", tau));
}

TEST(up_to_the_context_limit) {
  for (DType dtype : {DType::fp32, DType::bf16}) {
    const Pair pair = pairs(dtype)[0];
    std::vector<Job> jobs = jobs_of(8, 0.7, pair.target->config().vocab_size, 21, -1);
    for (Job& job : jobs) job.params.stop_token_ids.clear();
    const std::vector<Text> plain = decode(pair.target, nullptr, 0, 2, jobs);
    for (size_t i = 0; i < jobs.size(); ++i) {
      CHECK(plain[i].finish == FinishReason::length);
      CHECK(int(jobs[i].prompt.size() + plain[i].tokens.size()) == pair.target->config().max_position_embeddings);
    }
    for (int tau : {1, 3, 5, 8}) check_equal(decode(pair.target, pair.draft, tau, 3, jobs), plain, message("context limit, tau ", tau));
  }
}

TEST(a_draft_with_a_shorter_context_falls_back_to_plain) {
  TinyShape shape, brief = shape;
  brief.context = 70;
  const auto target = tiny_weights(backend(), shape, DType::fp32, 1), draft = tiny_weights(backend(), brief, DType::fp32, 1, 0.1f);
  const std::vector<Job> jobs = jobs_of(8, 0.0, shape.vocab, 31, 100);
  const std::vector<Text> plain = decode(target, nullptr, 0, 1, jobs);
  for (int tau : {1, 4}) check_equal(decode(target, draft, tau, 4, jobs), plain, message("short draft, tau ", tau));
}

TEST(architectures_differ_but_not_in_parity) {
  for (int variant = 0; variant < 4; ++variant) {
    TinyShape shape;
    shape.bias = variant == 1;
    shape.qk_norm = variant == 2;
    shape.tied = variant == 3;
    shape.kv_heads = variant == 0 ? 4 : (variant == 1 ? 1 : 2);
    shape.head_dim = variant == 2 ? 20 : 16;
    const auto target = tiny_weights(backend(), shape, DType::bf16, 40 + variant), draft = tiny_weights(backend(), shape, DType::bf16, 40 + variant, 0.1f);
    const std::vector<Job> jobs = jobs_of(6, 0.9, shape.vocab, 50 + variant);
    const std::vector<Text> plain = decode(target, nullptr, 0, 1, jobs);
    for (int tau : {2, 5}) check_equal(decode(target, draft, tau, 5, jobs), plain, message("variant ", variant, ", tau ", tau));
  }
}

TEST(rejection_is_plain_at_temperature_zero_and_accepts_everything_when_draft_is_target) {
  const auto all = pairs(DType::fp32);
  const std::vector<Job> greedy = jobs_of(8, 0.0, all[0].target->config().vocab_size, 61);
  const std::vector<Text> plain = decode(all[0].target, nullptr, 0, 1, greedy);
  for (int tau : {1, 4}) check_equal(decode(all[0].target, all[0].draft, tau, 3, greedy, Acceptance::rejection), plain, message("rejection, tau ", tau));
  const std::vector<Job> sampled = jobs_of(8, 1.0, all[0].target->config().vocab_size, 62);
  for (const Text& text : decode(all[4].target, all[4].draft, 4, 2, sampled, Acceptance::rejection))
    CHECK(text.accepted == text.drafted || text.finish == FinishReason::stop, text.accepted, " of ", text.drafted);
}

TEST(zz_one_hundred_thousand_tokens) {
  std::printf("%ld tokens decoded\n", tokens_decoded);
  CHECK(tokens_decoded >= 100000 || tokens_decoded == 0, tokens_decoded);  // 0: run alone by a filter
}

TEST_MAIN()
