// Speculative decoding equals plain decoding bit for bit: tokens, logprobs, a hash of every reached row's logits, and the KV
// rows of both models, on random transformers. Together the tests of this file decode more than 100,000 tokens.
#include "cpp/parity.h"

using namespace paceline;
using namespace paceline::test;

std::shared_ptr<Backend> paceline::test::backend() {
  static std::shared_ptr<Backend> shared = make_cpu_backend(1, "");  // tiny products: threads are invariance_test
  return shared;
}

namespace {

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
