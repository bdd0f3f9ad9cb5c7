// Processors that look at the past: penalties, biases and min_tokens, each alone and all together, with so many drafts that most of a
// row's history is made of them, beside requests that draft nothing. Plain decoding, one request after the other, is the reference.
#include "cpp/scripted_engine.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr int kVocab = 24, kMaxLen = 150, kTokens = 70;

enum Processor { kRepetition = 1, kFrequency = 2, kPresence = 4, kBias = 8, kMinTokens = 16, kAll = 32 };

RequestParams params_of(int processors, double temperature, uint64_t seed) {
  RequestParams p;
  p.temperature = temperature;
  p.seed = seed;
  p.max_tokens = kTokens;
  p.logprobs = 1;
  if (processors & kRepetition) p.repetition_penalty = 4.5;
  if (processors & kFrequency) p.frequency_penalty = 0.55;
  if (processors & kPresence) p.presence_penalty = 3.1;
  if (processors & kBias) p.logit_bias = {{3, 4.0}, {8, -3.5}, {19, 0.6}};
  if (processors & kMinTokens) p.min_tokens = 33, p.stop_token_ids = {5, 6, 7, 11};
  return p;
}

// Texts of few ids that repeat, so that counts grow; one draft in eight is wrong.
std::shared_ptr<Scripts> scripts() {
  auto all = std::make_shared<Scripts>();
  for (int number = 0; number < 3; ++number) {
    Script& script = all->emplace_back();
    for (int i = 0; i <= kMaxLen; ++i) script.tokens.push_back(i ? (i * i / 3 + number) % 9 : number);
    for (int i = 0; i <= kMaxLen; ++i) script.drafts.push_back((script.tokens[i] + (i % 8 == 5)) % kVocab);
  }
  return all;
}

// Three requests of other lengths; the last one never drafts.
std::vector<Job> jobs_of(int processors, double temperature) {
  std::vector<Job> jobs;
  for (int i = 0; i < 3; ++i) jobs.push_back({i, std::vector{2, 21, 66}[i], params_of(processors, temperature, 40 + uint64_t(i))});
  jobs[2].params.num_speculative_tokens = 0;
  return jobs;
}

}  // namespace

TEST(every_combination_equals_plain_decoding) {
  const auto texts = scripts();
  long drafted = 0, accepted = 0;
  for (double temperature : {0.0, 0.8}) {
    std::vector<Text> without;
    for (int processors = 0; processors < kAll; ++processors) {
      const std::vector<Job> jobs = jobs_of(processors, temperature);
      const std::vector<Text> reference = plain(options_of(kVocab, 2, 1, kMaxLen), texts, jobs);
      if (processors == 0) without = reference;
      else CHECK(reference[1].tokens != without[1].tokens, "processors ", processors, " change nothing");
      for (int tau : {2, 8, 48})
        for (int batch : {1, 3}) {
          const std::vector<Text> got = ScriptedEngine(options_of(kVocab, tau, batch, kMaxLen), texts).run(jobs);
          for (size_t i = 0; i < jobs.size(); ++i) {
            const std::string where =
                message("processors ", processors, ", T ", temperature, ", tau ", tau, ", batch ", batch, ", request ", i);
            check_same(got[i], reference[i], where);
            drafted += got[i].stats.num_draft_tokens, accepted += got[i].stats.num_accepted_draft_tokens;
          }
          CHECK(got[2].stats.num_draft_tokens == 0);
        }
    }
  }
  std::printf("      %ld of %ld drafts accepted\n", accepted, drafted);
  CHECK(accepted > 10000 && drafted - accepted > 3000, accepted, " of ", drafted);
}

TEST_MAIN()
