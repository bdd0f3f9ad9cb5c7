// What a reused prefix saves, counted: which rows are fed, in which cycles drafts are, and what stays of requests that end in every way.
// The models are scripted: their KV rows are tags, and one that is not what it should be changes tokens, logprobs and acceptance.
#include <algorithm>
#include <random>

#include "cpp/scripted_engine.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr int kVocab = 16, kLength = 400, kPage = kPagePositions;

std::shared_ptr<Scripts> scripts(int count = 4) {
  auto all = std::make_shared<Scripts>();
  for (int number = 0; number < count; ++number) {
    Script& script = all->emplace_back();
    for (int i = 0; i <= kLength; ++i) script.tokens.push_back(i ? (i * i + 3 * number) % kVocab : number);
    for (int i = 0; i <= kLength; ++i) script.drafts.push_back((script.tokens[i] + (i % 3 == 0)) % kVocab);
  }
  return all;
}

ScriptedOptions options_of(int tau, int slots, int64_t budget = -1) {
  ScriptedOptions options = test::options_of(kVocab, tau, slots, kLength);
  options.engine.prefix_cache_bytes = budget;
  return options;
}

int first_row(const ScriptedModel& model) {
  int first = kLength;
  for (const auto& row : model.trace()) first = std::min(first, row.position);
  return first;
}

Text run(ScriptedEngine& engine, const Job& job) {
  engine.target->forget_trace(), engine.draft->forget_trace();
  const int64_t id = engine.add(job);
  engine.drain();
  return engine.text(id);
}

int64_t bytes_of(const ScriptedEngine& engine, int target_pages, int draft_pages) {
  return int64_t(target_pages * engine.target->cache().page_bytes() + draft_pages * engine.draft->cache().page_bytes());
}

}  // namespace

// A turn of 100 + 60 tokens leaves two pages, whatever of them was prompt or output; the next one feeds neither model a row of those.
TEST(a_second_turn_reads_only_what_is_new) {
  const auto texts = scripts();
  for (int tau : {1, 4, 8})
    for (int prompt_length = 100; prompt_length <= 330; prompt_length += 23) {
      ScriptedEngine engine(options_of(tau, 1), texts);
      run(engine, job_of(0, 100, 60));
      CHECK(engine.prefix_cache_bytes() == bytes_of(engine, 2, 2), engine.prefix_cache_bytes());
      const Job job = job_of(0, prompt_length, 40);
      const Text text = run(engine, job);
      const std::string where = message("tau ", tau, ", prompt ", prompt_length);
      const int found = std::min(2, (prompt_length - 1) / kPage) * kPage;
      CHECK(text.stats.num_cached_prompt_tokens == found, where, ": ", text.stats.num_cached_prompt_tokens);
      CHECK(first_row(*engine.target) == found && first_row(*engine.draft) == found, where, ": rows from ", first_row(*engine.target), " and ",
            first_row(*engine.draft));
      check_same(text, plain(options_of(tau, 1, 0), texts, {job})[0], where);
    }
}

// The last token of a prompt belongs to the first cycle, cold or warm: a page that ends with it is not taken.
TEST(the_last_token_s_row_is_fed) {
  const auto texts = scripts();
  for (int prompt_length = 2 * kPage - 2; prompt_length <= 2 * kPage + 2; ++prompt_length) {
    ScriptedEngine engine(options_of(3, 1), texts);
    run(engine, job_of(0, 200, 5));
    const Job job = job_of(0, prompt_length, 9);
    const Text text = run(engine, job);
    CHECK(text.stats.num_cached_prompt_tokens == (prompt_length > 2 * kPage ? 2 : 1) * kPage, "prompt ", prompt_length, ": ",
          text.stats.num_cached_prompt_tokens);
    // A draft that lacks two rows or fewer drafts at once, as it does behind a prompt of one or two tokens.
    CHECK((text.cycles[0].tau > 0) == (prompt_length - text.stats.num_cached_prompt_tokens <= 2), "prompt ", prompt_length, ": tau ", text.cycles[0].tau);
    check_same(text, plain(options_of(3, 1, 0), texts, {job})[0], message("prompt ", prompt_length));
  }
}

TEST(what_ends_in_an_error_leaves_nothing) {
  auto texts = scripts();
  texts->at(1).target_broken = 140;
  ScriptedEngine engine(options_of(2, 1), texts);
  CHECK(run(engine, job_of(1, 130, 40)).finish == FinishReason::error);
  CHECK(engine.prefix_cache_bytes() == 0, engine.prefix_cache_bytes());
  CHECK(run(engine, job_of(1, 145, 4)).stats.num_cached_prompt_tokens == 0);
  CHECK(engine.prefix_cache_bytes() == bytes_of(engine, 2, 2));
}

// Cancelled after any number of steps: what was cached until then stays, in whole pages.
TEST(what_is_cancelled_leaves_what_it_has) {
  const auto texts = scripts();
  for (int steps = 0; steps < 16; ++steps) {
    ScriptedOptions options = options_of(3, 1);
    options.engine.prefill_chunk = 50;
    ScriptedEngine engine(options, texts);
    const int64_t id = engine.add(job_of(0, 260, 100));
    for (int i = 0; i < steps; ++i) engine.step();
    engine.cancel(id);
    engine.drain();
    const Text cut = engine.text(id);
    const int cached = int(cut.target_kv.size()), drafts = int(cut.draft_kv.size());
    CHECK(cached >= std::min(259, 50 * steps), "after ", steps, " steps ", cached);
    CHECK(engine.prefix_cache_bytes() == bytes_of(engine, cached / kPage, drafts / kPage), "after ", steps, " steps");
    const Job job = job_of(0, 300, 9);
    const Text text = run(engine, job);
    CHECK(text.stats.num_cached_prompt_tokens == cached / kPage * kPage);
    CHECK(first_row(*engine.target) == cached / kPage * kPage && first_row(*engine.draft) == drafts / kPage * kPage, "after ", steps, " steps");
    check_same(text, plain(options_of(3, 1, 0), texts, {job})[0], message("after ", steps, " steps"));
  }
}

// Of a draft with a shorter context there are fewer pages; it reads what it lacks and no more.
TEST(a_draft_with_a_shorter_context_keeps_fewer_pages) {
  const auto texts = scripts();
  for (int draft_max_len : {50, 64, 100, 128, 150}) {
    ScriptedOptions options = options_of(3, 1);
    options.draft_max_len = draft_max_len;
    ScriptedEngine engine(options, texts);
    const Text first = run(engine, job_of(0, 40, 200));
    const int drafts = int(first.draft_kv.size()) / kPage;
    CHECK(engine.prefix_cache_bytes() == bytes_of(engine, 3, drafts) && drafts <= draft_max_len / kPage, "draft ", draft_max_len);
    const Job job = job_of(0, 80, 60);
    const Text text = run(engine, job);
    check_same(text, plain(options_of(3, 1, 0), texts, {job})[0], message("draft of ", draft_max_len));
    if (!engine.draft->trace().empty()) CHECK(first_row(*engine.draft) == std::min(drafts, 1) * kPage);
  }
}

// Stops of every kind, cancels, sampling, a cycle ahead or not, pools that never suffice, every budget: 4,000 requests on a few texts.
TEST(four_thousand_requests_equal_plain_decoding) {
  const std::vector<std::string> pieces = {"a", "b", "ab", "ba", "aa", "c", "abc", "", "ca", "\xe2\x82", "\xac", "bb", "cab", "\n", "a\n", "abab"};
  std::mt19937 random(77);
  const auto below = [&](int n) { return int(random() % unsigned(n)); };
  int requests = 0, errors = 0, cancels = 0, by_string = 0;
  long found = 0, prompts = 0;
  while (requests < 4000) {
    const int tau = below(9), slots = 1 + below(4), max_model_len = 70 + below(300);
    auto texts = scripts(3);
    for (Script& script : *texts) {
      const int wrong = below(4) * below(30);  // per cent
      for (size_t i = 1; i < script.tokens.size(); ++i) script.tokens[i] = below(kVocab), script.drafts[i] = below(100) < wrong ? below(kVocab) : script.tokens[i];
      if (below(4) == 0) script.target_broken = 1 + below(max_model_len);
      if (below(4) == 0) script.draft_broken = 1 + below(max_model_len);
    }
    ScriptedOptions options = test::options_of(kVocab, tau, slots, max_model_len);
    options.engine.token_bytes = pieces;
    options.engine.kv_cache_tokens = max_model_len * (1 + below(slots));
    options.engine.prefill_chunk = 8 + below(100);
    options.engine.prefill_chunk_beside = 1 + below(100);  // not what the machine makes of it: a failure must come again
    if (below(4) == 0) options.draft_max_len = 2 + below(max_model_len);
    const ScriptedOptions cold = options;
    const int64_t page = 2 * kPage * 2 * sizeof(float);
    options.engine.prefix_cache_bytes = below(3) ? -1 : page * below(8);
    ScriptedEngine engine(options, texts);
    CHECK(page == bytes_of(engine, 1, 0));
    std::vector<Job> jobs;
    std::vector<int64_t> ids;
    std::map<int64_t, int> cancel_at;
    for (int steps = 0; jobs.size() < 40 || !engine.idle(); ++steps) {
      CHECK(steps < 20000, "no end");
      while (jobs.size() < 40 && engine.waiting() < 2) {
        Job job = job_of(below(3), 1 + below(max_model_len - 1), below(3) ? 1 + below(60) : -1);
        RequestParams& p = job.params;
        if (p.max_tokens > 0) p.max_tokens = std::min(p.max_tokens, max_model_len - job.prompt_length);
        for (int i = below(2); i > 0; --i) p.stop_token_ids.push_back(below(kVocab));
        for (int i = below(2) * below(3); i > 0; --i) p.stop.push_back(std::string(1, "abc\n"[below(4)]) + "abc\n"[below(4)]);
        if (below(3) == 0) p.temperature = 0.8, p.seed = random();
        if (below(6) == 0) p.num_speculative_tokens = below(tau + 1);
        jobs.push_back(job);
        ids.push_back(engine.add(job));
        if (below(5) == 0) cancel_at[ids.back()] = steps + below(30);
      }
      for (const auto& [id, at] : cancel_at)
        if (at == steps) engine.cancel(id);
      engine.step();
      if (options.engine.prefix_cache_bytes >= 0) CHECK(engine.prefix_cache_bytes() <= options.engine.prefix_cache_bytes, engine.prefix_cache_bytes(), " bytes kept");
    }
    engine.check_settled();
    const std::vector<Text> reference = plain(cold, texts, jobs);
    for (size_t i = 0; i < jobs.size(); ++i, ++requests) {
      const Text& text = engine.text(ids[i]);
      const std::string where = message("request ", requests, ", tau ", tau, ", slots ", slots, ", budget ", options.engine.prefix_cache_bytes);
      prompts += jobs[i].prompt_length, found += text.stats.num_cached_prompt_tokens;
      errors += text.finish == FinishReason::error, by_string += !text.stop_string.empty();
      if (text.finish != FinishReason::cancelled) {
        check_same(text, reference[i], where);
        continue;
      }
      ++cancels;
      CHECK(text.tokens.size() <= reference[i].tokens.size() && std::equal(text.tokens.begin(), text.tokens.end(), reference[i].tokens.begin()), where);
      for (size_t k = 0; k < text.target_kv.size(); ++k) CHECK(text.target_kv[k] == reference[i].target_kv[k], where, ": KV row ", k);
      for (size_t k = 0; k < text.draft_kv.size(); ++k) CHECK(text.draft_kv[k] == reference[i].target_kv[k], where, ": the draft's KV row ", k);
    }
  }
  std::printf("%d requests, %ld of %ld prompt tokens found, %d errors, %d cancels, %d ended by a string\n", requests, found, prompts, errors, cancels, by_string);
  CHECK(found > prompts / 10 && errors > 50 && cancels > 200 && by_string > 200);
}

TEST_MAIN()
