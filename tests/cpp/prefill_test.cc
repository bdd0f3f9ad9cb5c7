// Prompts beside running streams: one piece of one prompt between two cycles at most, as large as four plain passes cost, and nobody starves.
#include <algorithm>
#include <chrono>

#include "cpp/scripted_engine.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr int kVocab = 32, kContext = 1200;

// Texts whose every third draft is wrong.
std::shared_ptr<Scripts> scripts() {
  auto all = std::make_shared<Scripts>();
  for (int number = 0; number < 12; ++number) {
    Script& script = all->emplace_back();
    for (int i = 0; i <= kContext; ++i) script.tokens.push_back(i ? (i * i + 5 * number) % kVocab : number);
    for (int i = 0; i <= kContext; ++i) script.drafts.push_back((script.tokens[i] + (i % 3 == 0)) % kVocab);
  }
  return all;
}

ScriptedOptions options_of(int slots, int beside) {
  ScriptedOptions options = test::options_of(kVocab, 3, slots, kContext);
  options.engine.prefill_chunk = 128;
  options.engine.prefill_chunk_beside = beside;
  return options;
}

void forget(ScriptedEngine& engine) { engine.target->forget_trace(), engine.draft->forget_trace(); }

}  // namespace

TEST(rows_cost_at_most_four_plain_passes) {
  CHECK(rows_beside(0, 0, 256) == 32 && rows_beside(1, 0, 256) == 32 && rows_beside(0, 1, 256) == 32, "before anything is known");
  CHECK(rows_beside(0.0010, 0.0150, 256) == 40);  // of four passes, 60 rows, three quarters: 45
  CHECK(rows_beside(0.0010, 0.0162, 256) == 48);
  CHECK(rows_beside(0.1000, 0.0100, 256) == 8);   // not even one: the least
  CHECK(rows_beside(0.0001, 1.0000, 256) == 256);
  CHECK(rows_beside(0.0001, 1.0000, 100) == 96);  // eights
  CHECK(rows_beside(1e-300, 1.0000, 512) == 512);
  for (int most : {1, 5, 7, 8}) CHECK(rows_beside(0.0001, 1, most) == most && rows_beside(0, 0, most) == most && rows_beside(9, 1, most) == most, most);
  for (int most : {8, 20, 64, 100, 256, 512})
    for (double row = 1e-6; row < 1; row *= 1.3) {
      const double plain = 0.004;
      const int rows = rows_beside(row, plain, most);
      CHECK(rows % 8 == 0 && rows >= 8 && rows <= most, rows, " of ", most);
      CHECK(rows == 8 || rows * row <= 3.01 * plain, rows, " rows of ", row, " s are too many");
      CHECK(rows + 8 > most || (rows + 8) * row > 2.99 * plain, rows, " rows of ", row, " s are too few");
    }
}

TEST(the_extremes_of_the_last_eight) {
  Recent recent;
  CHECK(recent.least() == 0 && recent.most() == 0, "before the first");
  recent.add(5);
  CHECK(recent.least() == 5 && recent.most() == 5);
  for (double value : {3, 9, 4, 4, 4, 4, 4}) recent.add(value);
  CHECK(recent.least() == 3 && recent.most() == 9);
  recent.add(4);
  CHECK(recent.least() == 3 && recent.most() == 9, "the first is forgotten, nothing else");
  recent.add(4);
  CHECK(recent.least() == 4 && recent.most() == 9, "3 is forgotten");
  recent.add(4);
  CHECK(recent.least() == 4 && recent.most() == 4, "9 is forgotten");
}

// Streams decode while long prompts come, their drafts' catching up included; the first one never drafts, so somebody always waits. Every stream
// gets tokens in every step, the two models read one piece between them, of so many rows as are allowed, and all end with plain decoding's text.
TEST(streams_wait_for_one_piece_at_most) {
  const auto texts = scripts();
  for (int beside : {0, 8, 32})
    for (int streams : {1, 2, 4}) {
      ScriptedEngine engine(options_of(streams + 2, beside), texts);
      std::vector<int64_t> ids;
      std::vector<Job> jobs;
      for (int i = 0; i < streams; ++i) jobs.push_back(job_of(i, 3 + i, i ? 500 : 1000));
      jobs[0].params.num_speculative_tokens = 0;
      for (const Job& job : jobs) ids.push_back(engine.add(job));
      for (int i = 0; i < 4; ++i) engine.step();
      for (int i = 0; i < 5; ++i) jobs.push_back(job_of(streams + i, 300 + 61 * i, 30)), ids.push_back(engine.add(jobs.back()));  // two at a time
      int pieces = 0;
      for (int steps = 0; !engine.idle(); ++steps) {
        const std::string where = message("beside ", beside, ", ", streams, " streams, step ", steps);
        CHECK(steps < 1100, where, ": no end");
        std::vector<size_t> had;
        for (int64_t id : ids) had.push_back(engine.text(id).tokens.size());
        forget(engine);
        engine.step();
        std::vector<int> rows = engine.target->prefills();
        rows.insert(rows.end(), engine.draft->prefills().begin(), engine.draft->prefills().end());
        CHECK(rows.size() <= 1, where, ": ", rows.size(), " pieces of prompts");
        if (!rows.empty()) CHECK(rows[0] <= (beside ? beside : 128), where, ": ", rows[0], " rows");
        for (size_t i = 0; i < ids.size(); ++i) {
          const Text& text = engine.text(ids[i]);
          if (had[i] > 0 && text.finish == FinishReason::none) CHECK(text.tokens.size() > had[i], where, ": stream ", ids[i], " gets nothing");
        }
        pieces += int(rows.size());
        if (engine.text(ids[0]).finish != FinishReason::none) CHECK(engine.idle(), where, ": others are still there when the first stream ends");
      }
      CHECK(pieces > 20, pieces);
      engine.check_settled();
      const std::vector<Text> reference = plain(options_of(1, beside), texts, jobs);
      for (size_t i = 0; i < jobs.size(); ++i) check_same(engine.text(ids[i]), reference[i], message("beside ", beside, ", request ", i));
    }
}

// A stream, a sequence whose draft has 700 rows to catch up and one whose prompt has 700 to go: the models read in turns.
TEST(the_models_take_turns) {
  ScriptedEngine engine(options_of(3, 16), scripts());
  const int64_t stream = engine.add(job_of(0, 2, 900));
  engine.step();
  const int64_t first = engine.add(job_of(1, 700, 300));
  while (engine.text(first).tokens.empty()) engine.step();
  const int64_t second = engine.add(job_of(2, 700, 5));
  std::vector<int> turns;  // 0: target, 1: draft
  while (engine.text(second).tokens.empty()) {
    forget(engine);
    engine.step();
    if (!engine.target->prefills().empty()) turns.push_back(0);
    if (!engine.draft->prefills().empty()) turns.push_back(1);
  }
  int alternations = 0;
  for (size_t i = 1; i < turns.size(); ++i) alternations += turns[i] != turns[i - 1];
  CHECK(turns.size() >= 80 && turns.size() <= 92 && alternations >= 80, turns.size(), " turns, ", alternations, " changes");  // 44 pieces each
  CHECK(engine.text(stream).finish == FinishReason::none);
  engine.drain();
}

// Alone, or with none but sequences that the pass serves, nobody waits for it: it may be as large as there is room.
TEST(a_pass_that_nobody_waits_for_is_as_large_as_it_may_be) {
  ScriptedEngine engine(options_of(3, 8), scripts());
  for (int i = 0; i < 3; ++i) engine.add(job_of(i, 100, 20));
  std::vector<int> target, draft;
  while (!engine.idle()) {
    forget(engine);
    engine.step();
    target.insert(target.end(), engine.target->prefills().begin(), engine.target->prefills().end());
    draft.insert(draft.end(), engine.draft->prefills().begin(), engine.draft->prefills().end());
  }
  CHECK(target.size() > 2 && target[0] == 128, target.size(), " passes, the first of ", target.at(0));
  CHECK(target[1] == 8, target[1]);  // the first of the three decodes now
  CHECK(!draft.empty() && *std::max_element(draft.begin(), draft.end()) > 8, "the draft's own sequence does not wait for itself");
}

// What passes really cost decides: a row of the target's prompt costs a 11th of a plain pass, one of the draft's a 200th.
TEST(rows_follow_the_cost_of_passes) {
  constexpr double kPlain = 1e-3;
  ScriptedOptions options = options_of(3, 0);
  ScriptedEngine engine(options, scripts());
  auto& now = scripted_backend()->now;
  now = 0;
  const auto work = [&](double seconds) { *now += int64_t(1e9 * seconds); };
  engine.target->before_rows = [&](int rows) { work(std::max(kPlain, rows * kPlain / 11.3)); };  // of four passes, 45 rows, three quarters: 33
  engine.draft->before_rows = [&](int rows) { work(rows * kPlain / 200); };
  engine.add(job_of(0, 2, 400));
  for (int i = 0; i < 12; ++i) engine.step();
  const int64_t long_one = engine.add(job_of(1, 1000, 150));
  std::vector<int> target, draft;
  while (engine.text(long_one).finish == FinishReason::none) {
    forget(engine);
    engine.step();
    target.insert(target.end(), engine.target->prefills().begin(), engine.target->prefills().end());
    draft.insert(draft.end(), engine.draft->prefills().begin(), engine.draft->prefills().end());
  }
  CHECK(target.size() > 12 && draft.size() >= 8, target.size(), " and ", draft.size(), " passes");
  CHECK(target[0] == 32 && draft[0] == 32, "before anything is known: ", target[0], " and ", draft[0]);
  for (size_t i = 10; i + 1 < target.size(); ++i) CHECK(target[i] == 32, "pass ", i, " of the target: ", target[i], " rows");
  for (size_t i = 3; i + 1 < draft.size(); ++i) CHECK(draft[i] == 128, "pass ", i, " of the draft: ", draft[i], " rows");
  engine.drain();
  now.reset();
}

// Pieces of prompts, and of what a draft has to catch up with, leave the target of 2.3 plain passes between two chunks alone.
TEST(a_latency_target_bounds_pieces_too) {
  constexpr double kPlain = 1e-3, kTarget = 2.3e-3;
  ScriptedOptions options = options_of(3, 0);
  options.engine.policy = Policy::latency;
  options.engine.latency_target = kTarget;
  options.engine.cycles_in_flight = 1;  // a step is one cycle
  ScriptedEngine engine(options, scripts());
  auto& now = scripted_backend()->now;
  now = 0;
  const auto work = [&](double seconds) { *now += int64_t(1e9 * seconds); };
  engine.target->before_rows = [&](int rows) { work(std::max(kPlain, rows * kPlain / 11.3)); };
  engine.draft->before_rows = [&](int rows) { work(std::max(kPlain / 10, rows * kPlain / 40)); };
  engine.add(job_of(0, 2, 900));
  for (int i = 0; i < 20; ++i) engine.step();
  const int64_t long_one = engine.add(job_of(1, 1000, 150));
  int most_draft_rows = 0;
  while (engine.text(long_one).finish == FinishReason::none) {
    const int64_t before = *now;
    forget(engine);
    engine.step();
    for (int rows : engine.draft->prefills()) most_draft_rows = std::max(most_draft_rows, rows);
    CHECK(double(*now - before) <= 1e9 * kTarget, "a step took ", *now - before, " ns");
  }
  CHECK(most_draft_rows > 40 && most_draft_rows < 60, "pieces of up to ", most_draft_rows, " rows of the draft");
  CHECK(engine.text(long_one).stats.num_draft_tokens > 50, engine.text(long_one).stats.num_draft_tokens, " drafts");
  engine.drain();
  now.reset();
}

// The same of what `verify` reads, together with a piece of a prompt beside it.
TEST(a_latency_target_bounds_verifications_too) {
  constexpr double kPlain = 1e-3, kTarget = 2.3e-3;
  ScriptedOptions options = options_of(3, 0);
  options.engine.policy = Policy::latency;
  options.engine.latency_target = kTarget;
  options.engine.cycles_in_flight = 1;
  ScriptedEngine engine(options, scripts());
  auto& now = scripted_backend()->now;
  now = 0;
  engine.target->before_rows = [&](int rows) { *now += int64_t(1e9 * std::max(kPlain, rows * kPlain / 7)); };  // of 8: with a plain pass within the target, with drafts not
  engine.draft->before_rows = [&](int rows) { *now += int64_t(1e9 * std::max(kPlain / 10, rows * kPlain / 300)); };
  engine.add(job_of(0, 2, 900));
  for (int i = 0; i < 20; ++i) engine.step();
  const auto verification = engine->begin_verification(engine.prompt(job_of(1, 600, 1)), {});
  int pieces = 0;
  for (bool done = false; !done; ++pieces) {
    const int64_t before = *now;
    done = engine->advance(*verification);
    engine->step();  // not engine.step(): what a verification holds, no sequence does
    CHECK(double(*now - before) <= 1e9 * kTarget, "piece ", pieces, " and a step took ", *now - before, " ns");
  }
  CHECK(pieces > 8, pieces, " pieces");
  while (!engine.idle()) engine->step();
  now.reset();
}

// Who decodes waits for one pass of either between two of its cycles, and both come to their end.
TEST(a_verification_and_a_prompt_take_turns) {
  for (const bool with_stream : {true, false}) {
    ScriptedEngine engine(options_of(3, 40), scripts());
    if (with_stream) engine.add(job_of(0, 2, 900));
    for (int i = 0; i < 5; ++i) engine.step();
    engine.add(job_of(2, 600, 40));
    auto verification = engine->begin_verification(engine.prompt(job_of(1, 600, 1)), {});
    int steps = 0;
    for (bool done = false; !done; ++steps) {
      CHECK(steps < 100, "it never ends");
      const int before = engine.target->passes();
      done = engine->advance(*verification);
      engine->step();
      if (with_stream) CHECK(engine.target->passes() - before <= 2, "step ", steps, ": ", engine.target->passes() - before, " passes");
    }
    const int pieces = (599 + 39) / 40;
    if (with_stream) CHECK(steps >= 2 * pieces - 1, steps, " steps for 2 times ", pieces, " pieces");
    verification.reset();
    while (!engine.idle()) engine->step();
  }
}

TEST(who_waits_for_a_slot_is_counted) {
  const auto texts = scripts();
  ScriptedEngine engine(options_of(2, 0), texts);
  CHECK(engine.waiting() == 0);
  for (int i = 0; i < 5; ++i) engine.add(job_of(i, 3, 4));
  CHECK(engine.waiting() == 5);
  engine.step();
  CHECK(engine.waiting() == 3);
  engine.drain();
  CHECK(engine.waiting() == 0);
}

TEST_MAIN()
