// Limits: a sequence gets exactly min(max_tokens, room) tokens whatever is drafted, nothing is ever written beyond what it may
// hold, and near a limit the text, its logprobs and its KV rows are those of plain decoding.
#include <algorithm>

#include "cpp/scripted_engine.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr int kVocab = 16;
constexpr int kFirst = kPagePositions;  // the end of the first page, around which the texts end

// A text whose cycles of tau drafts accept `accepted` each, as long as no limit cuts them short. Its first cycle drafts
// nothing: the draft's prompt is cached only after the first token is out.
Script dialled(int number, int prompt_length, int accepted, int length) {
  Script script;
  uint32_t state = 77 * uint32_t(number) + 5;
  for (int i = 0; i < length; ++i) script.tokens.push_back(int((state = state * 1664525u + 1013904223u) >> 16) % kVocab);
  script.tokens[0] = number;
  script.drafts = script.tokens;
  for (int i = prompt_length + 1 + accepted; i < length; i += accepted + 1) script.drafts[i] = (script.tokens[i] + 1) % kVocab;
  return script;
}

struct Case {
  int tau, end_length, draft_max_len;
};

// The cycles of a request, worked out with a pencil.
std::vector<CycleTrace> expected_cycles(const Script& script, int prompt_length, const Case& c) {
  std::vector<CycleTrace> cycles;
  int length = prompt_length;
  while (length < c.end_length) {
    const bool draft_ready = length > prompt_length || prompt_length <= 2;  // one or two rows need no prefill
    int drafts = draft_ready ? std::min({c.tau, c.end_length - length - 1, c.draft_max_len - length + 1}) : 0;
    drafts = std::max(drafts, 0);
    int accepted = 0;
    while (accepted < drafts && script.drafts[length + accepted] == script.tokens[length + accepted]) ++accepted;
    cycles.push_back({drafts, accepted, accepted + 1});
    length += accepted + 1;
  }
  return cycles;
}

void check_ended_by_length(const Text& text, const Script& script, int prompt_length, const Case& c, const std::string& where) {
  CHECK(text.finish == FinishReason::length, where, ": ended by \"", name_of(text.finish), "\"");
  CHECK(int(text.tokens.size()) == c.end_length - prompt_length, where, ": ", text.tokens.size(), " tokens, expected ",
        c.end_length - prompt_length);
  CHECK(std::equal(text.tokens.begin(), text.tokens.end(), script.tokens.begin() + prompt_length), where,
        ": not the target's text");
  const std::vector<CycleTrace> cycles = expected_cycles(script, prompt_length, c);
  CHECK(text.cycles.size() == cycles.size(), where, ": ", text.cycles.size(), " cycles, expected ", cycles.size());
  for (size_t i = 0; i < cycles.size(); ++i)
    CHECK(text.cycles[i] == cycles[i], where, ", cycle ", i, ": ", text.cycles[i].accepted, " of ", text.cycles[i].tau,
          " accepted, expected ", cycles[i].accepted, " of ", cycles[i].tau);
}

// Every token but the last is fed to the target once, every draft once; the draft is fed what it lacks, when it drafts.
void check_rows_fed(const ScriptedEngine& engine, const std::vector<Job>& jobs, const std::vector<Text>& texts,
                    const std::string& where) {
  size_t target_rows = 0, draft_rows = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    int length = jobs[i].prompt_length, cached = 0;
    target_rows += length - 1;
    for (const CycleTrace& cycle : texts[i].cycles) {
      target_rows += cycle.tau + 1;
      if (cycle.tau > 0) {
        draft_rows += length + cycle.tau - 1 - cached;
        cached = std::min(length + cycle.tau - 1, length + cycle.emitted - 1);
      }
      length += cycle.emitted;
    }
  }
  CHECK(engine.target->trace().size() == target_rows, where, ": ", engine.target->trace().size(),
        " rows of the target, expected ", target_rows);
  CHECK(engine.draft->trace().size() == draft_rows, where, ": ", engine.draft->trace().size(), " rows of the draft, expected ",
        draft_rows);
}

// The last token is never fed: nothing is written at end_length - 1 or beyond, not even a draft that is rejected.
void check_writes(const ScriptedModel& model, int end_length, const std::string& where) {
  for (const auto& row : model.trace())
    CHECK(row.position < end_length - 1, where, ": KV write at position ", row.position, " of a sequence of at most ", end_length);
}

// `batch` ragged requests in a context with `room` tokens left for the first; max_tokens = room + `allowed_more`, or none.
// Returns how many requests were decoded.
int check_room(int tau, int accepted, int prompt_length, int room, int batch, bool limited, int allowed_more,
               const std::string& where) {
  const int max_model_len = prompt_length + room;
  if (limited && room + allowed_more < 1) return 0;
  auto scripts = std::make_shared<Scripts>();
  std::vector<Job> jobs;
  for (int i = 0; i < batch; ++i) {
    const int length = prompt_length - i;
    scripts->push_back(dialled(i, length, (accepted + i) % (tau + 1), std::max(max_model_len, length) + 1));
    jobs.push_back(job_of(i, length, limited ? room + i + allowed_more : -1));
  }
  const ScriptedOptions options = options_of(kVocab, tau, batch, max_model_len);
  ScriptedEngine engine(options, scripts);
  const auto refused = [&](const Job& job) { return job.prompt_length >= max_model_len; };
  for (const Job& job : jobs)
    if (refused(job)) CHECK_THROWS(engine.add(job), std::invalid_argument, "prompt must be shorter than max_model_len");
  std::erase_if(jobs, refused);
  if (jobs.empty()) return 0;

  const std::vector<Text> texts = engine.run(jobs), reference = plain(options, scripts, jobs);
  int longest = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const std::string which = message(where, ", request ", i);
    const int own_room = max_model_len - jobs[i].prompt_length, max_tokens = jobs[i].params.max_tokens;
    const Case c{tau, jobs[i].prompt_length + (limited ? std::min(max_tokens, own_room) : own_room), 1 << 20};
    longest = std::max(longest, c.end_length);
    check_ended_by_length(texts[i], scripts->at(jobs[i].script), jobs[i].prompt_length, c, which);
    check_same(texts[i], reference[i], which);
  }
  check_rows_fed(engine, jobs, texts, where);
  check_writes(*engine.target, longest, where);
  check_writes(*engine.draft, longest, where);
  return int(jobs.size());
}

// Calls body(tau, accepted, prompt_length, batch) for the grid all limit tests share.
template <class Body>
void for_grid(Body body) {
  for (int tau : {1, 2, 4, 8})
    for (int accepted = 0; accepted <= tau; ++accepted)
      for (int prompt_length = kFirst - 8; prompt_length < kFirst + 8; ++prompt_length)
        for (int batch : {1, 3}) body(tau, accepted, prompt_length, batch);
}

std::string describe(int tau, int accepted, int prompt_length, int batch, int room) {
  return message("tau ", tau, ", accepted ", accepted, ", prompt ", prompt_length, ", batch ", batch, ", room ", room);
}

}  // namespace

TEST(context_limit) {
  int cases = 0, decoded = 0;
  for_grid([&](int tau, int accepted, int prompt_length, int batch) {
    for (int room = -2; room <= tau + 2; ++room, ++cases)
      decoded += check_room(tau, accepted, prompt_length, room, batch, false, 0,
                            describe(tau, accepted, prompt_length, batch, room));
  });
  std::printf("%d cases, %d requests decoded\n", cases, decoded);
  CHECK(cases >= 6000, cases);
}

// One token fewer than the room, exactly as many, one more: the smaller limit counts.
TEST(max_tokens_against_the_room) {
  for_grid([&](int tau, int accepted, int prompt_length, int batch) {
    if ((prompt_length + accepted) % 4) return;  // every residue and every accepted, a quarter of their pairs
    for (int room = 1; room <= tau + 2; ++room)
      for (int more : {-1, 0, 1, INT32_MAX - room - 2})  // and as many as an int holds: no sum of lengths may overflow
        check_room(tau, accepted, prompt_length, room, batch, true, more,
                   describe(tau, accepted, prompt_length, batch, room) + message(", max_tokens ", room + more));
  });
}

// kv_cache_tokens smaller than the context is a limit like any other.
TEST(cache_smaller_than_the_context) {
  for (int tau : {1, 4, 8})
    for (int accepted = 0; accepted <= tau; ++accepted)
      for (int room = -1; room <= tau + 3; ++room)
        for (int prompt_length : {kFirst - 3, kFirst, kFirst + 2}) {
          const std::string where = describe(tau, accepted, prompt_length, 1, room);
          auto scripts = std::make_shared<Scripts>(1, dialled(0, prompt_length, accepted, 300));
          ScriptedOptions options = options_of(kVocab, tau, 1, 256);
          options.engine.kv_cache_tokens = prompt_length + room;
          const std::vector<Job> jobs = {job_of(0, prompt_length, -1)};
          ScriptedEngine engine(options, scripts);
          if (room < 1) {
            CHECK_THROWS(engine.add(jobs[0]), CapacityError, "raise kv_cache_tokens");
            continue;
          }
          CHECK_THROWS(engine.add(job_of(0, prompt_length, room + 1)), CapacityError, "raise kv_cache_tokens");
          const Text text = engine.run(jobs)[0];
          check_ended_by_length(text, scripts->at(0), prompt_length, {tau, prompt_length + room, 1 << 20}, where);
          check_same(text, plain(options, scripts, jobs)[0], where);
          check_writes(*engine.target, prompt_length + room, where);
          check_writes(*engine.draft, prompt_length + room, where);
        }
}

// Beyond the draft's own context decoding is plain, and costs what plain decoding costs: not one row of the draft.
TEST(draft_with_a_shorter_context) {
  for_grid([&](int tau, int accepted, int prompt_length, int batch) {
    for (int reach = -2; reach <= tau + 2; ++reach) {
      const int max_model_len = prompt_length + 2 * tau + 6, draft_max_len = prompt_length + reach;
      const std::string where = message(describe(tau, accepted, prompt_length, batch, 2 * tau + 6), ", draft_max_len ", draft_max_len);
      auto scripts = std::make_shared<Scripts>();
      std::vector<Job> jobs;
      for (int i = 0; i < batch; ++i) {
        scripts->push_back(dialled(i, prompt_length - i, (accepted + i) % (tau + 1), max_model_len + 1));
        jobs.push_back(job_of(i, prompt_length - i, -1));
      }
      ScriptedOptions options = options_of(kVocab, tau, batch, max_model_len);
      options.draft_max_len = draft_max_len;
      ScriptedEngine engine(options, scripts);
      const std::vector<Text> texts = engine.run(jobs), reference = plain(options, scripts, jobs);
      for (int i = 0; i < batch; ++i) {
        check_ended_by_length(texts[i], scripts->at(i), jobs[i].prompt_length, {tau, max_model_len, draft_max_len}, where);
        check_same(texts[i], reference[i], where);
      }
      check_rows_fed(engine, jobs, texts, where);
      check_writes(*engine.draft, draft_max_len + 1, where);
    }
  });
}

// A request that cannot draft (one token, two, or none wanted) does not make the draft read its prompt.
TEST(no_draft_rows_without_drafts) {
  for (int max_tokens : {1, 2, 9}) {
    auto scripts = std::make_shared<Scripts>(1, dialled(0, 70, 4, 300));
    Job job = job_of(0, 70, max_tokens);
    if (max_tokens > 2) job.params.num_speculative_tokens = 0;
    ScriptedEngine engine(options_of(kVocab, 4, 1, 256), scripts);
    CHECK(int(engine.run({job})[0].tokens.size()) == max_tokens);
    CHECK(engine.draft->trace().empty(), "max_tokens ", max_tokens, ": ", engine.draft->trace().size(),
          " rows of the draft in vain");
  }
}

// No drafts, one, as many as an engine may be asked for, and contexts that have no room for any: plain decoding's text, and at tau = 0
// plain decoding itself.
// What a request costs is counted, not timed: passes, rows and cycles. With a draft that is never right the target has plain decoding's passes,
// the draft tau passes a cycle; and from one length to the next every count grows by the one token that has to be read, and by a pass where a
// piece of the prompt is full, at the ends of pages as anywhere.
TEST(no_length_and_no_draft_makes_a_jump_in_what_is_done) {
  constexpr int kTokens = 24, kChunk = 48;
  const auto pieces = [](int rows) { return (rows + kChunk - 1) / kChunk; };
  for (const int tau : {1, 4, 8}) {
    int target_rows = -1, draft_rows = -1, changes = 0;  // beyond the prompt's, at the length before
    for (int length = 3; length < 5 * kPagePositions; ++length) {
      const std::string where = message("tau ", tau, ", prompt ", length);
      auto scripts = std::make_shared<Scripts>(1, dialled(0, length, 0, length + kTokens + 80));
      ScriptedOptions options = options_of(kVocab, tau, 1, length + kTokens + 64);
      options.engine.prefill_chunk = options.engine.prefill_chunk_beside = kChunk;
      ScriptedEngine engine(options, scripts);
      const Text text = engine.run({job_of(0, length, kTokens)})[0];
      ScriptedOptions without = options;
      without.has_draft = false, without.engine.num_speculative_tokens = 0;
      ScriptedEngine plain(without, scripts);
      check_same(text, plain.run({job_of(0, length, kTokens)})[0], where);
      CHECK(text.stats.num_accepted_draft_tokens == 0, where, ": a draft was right");

      CHECK(plain.target->passes() == kTokens + pieces(length - 1), where, ": plain decoding took ", plain.target->passes(), " passes");
      CHECK(engine.target->passes() == plain.target->passes(), where, ": ", engine.target->passes(), " passes, plain ", plain.target->passes());
      CHECK(engine.draft->passes() <= tau * kTokens + pieces(length), where, ": ", engine.draft->passes(), " passes of the draft");
      const int target_more = int(engine.target->trace().size()) - length, draft_more = int(engine.draft->trace().size()) - length;
      CHECK(target_more <= (tau + 1) * kTokens && draft_more <= (tau + 1) * kTokens, where, ": ", target_more, " and ", draft_more, " rows");
      // Where the draft has one more piece to read (of a text that has grown meanwhile), one more cycle goes by without drafts: once in a piece
      // there are fewer rows, never more.
      if (target_rows < 0) target_rows = target_more, draft_rows = draft_more;
      CHECK(target_more <= target_rows && target_more >= target_rows - tau, where, ": ", target_more, " rows of the target beyond the prompt's, ",
            target_rows, " before");
      CHECK(draft_more <= draft_rows && draft_more >= draft_rows - tau, where, ": ", draft_more, " rows of the draft beyond the prompt's, ",
            draft_rows, " before");
      changes += target_more != target_rows;
      target_rows = target_more, draft_rows = draft_more;
      CHECK(text.stats.num_cycles == kTokens, where, ": ", text.stats.num_cycles, " cycles");
    }
    CHECK(changes <= pieces(5 * kPagePositions), "tau ", tau, ": ", changes, " changes");
  }
}

TEST(every_tau_up_to_the_cap) {
  long drafted = 0;
  for (int tau : {0, 1, 2, 16, 33, 64})
    for (int max_model_len : {2, 3, 17, 64, 65, 200})
      for (int accepted : {0, 1, 15, 1000})
        for (int batch : {1, 3}) {
          auto scripts = std::make_shared<Scripts>();
          std::vector<Job> jobs;
          for (int i = 0; i < batch; ++i) {
            const int prompt_length = 1 + i * (max_model_len - 2) / 3;
            scripts->push_back(dialled(i, prompt_length, accepted, max_model_len + 1));
            jobs.push_back(job_of(i, prompt_length, i == 1 ? 20 : -1));
          }
          const ScriptedOptions options = options_of(kVocab, tau, batch, max_model_len);
          ScriptedEngine engine(options, scripts);
          const std::vector<Text> texts = engine.run(jobs), reference = plain(options, scripts, jobs);
          for (int i = 0; i < batch; ++i) {
            const std::string where = message("tau ", tau, ", context ", max_model_len, ", accepted ", accepted, ", ", i, " of ", batch);
            check_same(texts[i], reference[i], where);
            if (tau == 0) CHECK(texts[i].cycles == reference[i].cycles && engine.draft->trace().empty(), where);
            for (const CycleTrace& cycle : texts[i].cycles) drafted = std::max<long>(drafted, cycle.tau);
          }
        }
  CHECK(drafted == 64, "no cycle had more than ", drafted, " drafts");
  auto scripts = std::make_shared<Scripts>(1, dialled(0, 3, 1, 300));
  for (int tau : {65, 1000})
    CHECK_THROWS(ScriptedEngine(options_of(kVocab, tau, 1, 256), scripts), std::invalid_argument, "num_speculative_tokens must be in [0");
  ScriptedEngine engine(options_of(kVocab, 4, 1, 256), scripts);
  for (int tau : {-2, 5, 64, 1 << 30}) {
    Job job = job_of(0, 3, 9);
    job.params.num_speculative_tokens = tau;
    CHECK_THROWS(engine.add(job), std::invalid_argument, "num_speculative_tokens must be in [0, 4]");
  }
}

// One page, one sequence, more drafts than pages, fewer slots than requests, prefill by single rows: slower or refused with
// CapacityError, never stuck. The watchdogs are a bound on steps, and on the seconds of a case.
TEST(tiny_capacities) {
  int decoded = 0, refused = 0;
  for (int cache : {2, 5, 64, 130})
    for (int slots = 1; slots <= 4; ++slots)
      for (int tau = 1; tau <= 4; ++tau)
        for (int chunk = 1; chunk <= 4; ++chunk)
          for (int requests = 1; requests <= 4; ++requests)
            for (int max_model_len : {2, 4, 131}) {
              const Watchdog five_seconds(5);
              auto scripts = std::make_shared<Scripts>();
              ScriptedOptions options = options_of(kVocab, tau, slots, max_model_len);
              options.engine.kv_cache_tokens = cache;
              options.engine.prefill_chunk = chunk;
              ScriptedEngine engine(options, scripts);
              std::vector<std::pair<Job, int64_t>> taken;
              for (int i = 0; i < requests; ++i) {
                const int prompt_length = 1 + (i * 61 + slots + tau) % 66;
                scripts->push_back(dialled(i, prompt_length, (i + chunk) % (tau + 1), 200));
                const Job job = job_of(i, prompt_length, 1 + (i * 5 + tau) % 9);
                const bool fits_context = prompt_length < max_model_len;
                const int end = std::min(max_model_len, prompt_length + job.params.max_tokens);
                const bool fits_cache = prompt_length < cache && end <= cache;
                if (fits_context && fits_cache) taken.push_back({job, engine.add(job)});
                else if (fits_context) CHECK_THROWS(engine.add(job), CapacityError, "raise kv_cache_tokens");
                else CHECK_THROWS(engine.add(job), std::invalid_argument, "prompt must be shorter");
                refused += !fits_context || !fits_cache;
              }
              engine.drain(4 * (66 + 9) + 10);
              for (const auto& [job, id] : taken) {
                const Text& text = engine.text(id);
                const int expected = std::min(max_model_len - job.prompt_length, job.params.max_tokens);
                const std::string where = message("cache ", cache, ", slots ", slots, ", tau ", tau, ", chunk ", chunk,
                                                  ", requests ", requests, ", context ", max_model_len, ", request ", id);
                CHECK(text.finish == FinishReason::length && int(text.tokens.size()) == expected, where, ": ",
                      text.tokens.size(), " tokens");
                CHECK(std::equal(text.tokens.begin(), text.tokens.end(),
                                 scripts->at(job.script).tokens.begin() + job.prompt_length), where);
                ++decoded;
              }
            }
  std::printf("%d requests decoded, %d refused\n", decoded, refused);
  CHECK(decoded > 1000 && refused > 1000, decoded, " ", refused);
}

// More slots than pages for all of them: requests wait for pages, first come, first served, and none of them starves.
TEST(requests_queue_for_pages) {
  for (int slots = 1; slots <= 4; ++slots)
    for (int tau : {1, 4})
      for (int draft_max_len : {40, 130}) {  // a short draft never lacks pages: the target's alone are counted
        auto scripts = std::make_shared<Scripts>();
        ScriptedOptions options = options_of(kVocab, tau, slots, 130);
        options.engine.kv_cache_tokens = 130;
        options.draft_max_len = draft_max_len;
        std::vector<Job> jobs;
        for (int i = 0; i < 8; ++i) {
          const int prompt_length = 2 + (i * 37) % 120;
          scripts->push_back(dialled(i, prompt_length, i % (tau + 1), 131));
          jobs.push_back(job_of(i, prompt_length, i % 3 ? -1 : 9));  // most want all of the context: 3 of 3 + slots - 1 pages
        }
        ScriptedEngine engine(options, scripts);
        const std::vector<Text> texts = engine.run(jobs), reference = plain(options, scripts, jobs);
        for (int i = 0; i < 8; ++i) check_same(texts[i], reference[i], message("slots ", slots, ", tau ", tau, ", request ", i));
        int begun = 0;  // in the order they came
        for (const auto& row : engine.target->trace())
          if (row.position == 0) CHECK(row.token == begun++, "request ", row.token, " begins before request ", begun - 1);
        CHECK(begun == 8);
      }
}

TEST_MAIN()
