// Cancelling at every phase of a request's life: it ends within one step, what it got stays a prefix of what it would have
// got, nobody else notices, and nothing stays held.
#include <algorithm>

#include "cpp/scripted_engine.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr int kVocab = 16, kTau = 3, kPrompt = 130, kChunk = 20, kTokens = 12;

// A long prompt, so that prefill takes seven chunks and the pages of a cancelled prompt are many; every third draft is wrong.
std::shared_ptr<Scripts> scripts() {
  auto all = std::make_shared<Scripts>();
  for (int number = 0; number < 5; ++number) {
    Script& script = all->emplace_back();
    for (int i = 0; i < 200; ++i) script.tokens.push_back(i ? (i * i + 3 * number) % kVocab : number);
    for (int i = 0; i < 200; ++i) script.drafts.push_back((script.tokens[i] + (i % 3 == 0)) % kVocab);
  }
  return all;
}

ScriptedOptions options_of(int slots) {
  ScriptedOptions options = test::options_of(kVocab, kTau, slots, 190);
  options.engine.prefill_chunk = kChunk;
  return options;
}

Job job_of(int script) {
  Job job{script, script == 4 ? 1 : kPrompt - script, {}};
  job.params.max_tokens = kTokens + script;
  job.params.logprobs = 0;
  return job;
}

bool is_prefix(const Text& part, const Text& whole) {
  return part.tokens.size() <= whole.tokens.size() && std::equal(part.tokens.begin(), part.tokens.end(), whole.tokens.begin()) &&
         part.logprobs.size() == part.tokens.size() &&
         std::equal(part.logprobs.begin(), part.logprobs.end(), whole.logprobs.begin());
}

// Five requests for `slots` slots; number `victim` is cancelled by `cancel_now`, called before every step and before every pass
// of either model with the count of such moments so far.
enum class Moment { between_steps, target_pass, draft_pass };

struct Outcome {
  bool cancelled_in_time;
  size_t tokens_of_victim;
};

Outcome cancel_at(int slots, int victim, Moment moment, int count) {
  static const auto texts = scripts();
  static const std::vector<Text> reference = plain(options_of(1), texts, {job_of(0), job_of(1), job_of(2), job_of(3), job_of(4)});
  const std::string where = message("slots ", slots, ", victim ", victim, ", moment ", int(moment), ", count ", count);
  ScriptedEngine engine(options_of(slots), texts);
  std::vector<int64_t> ids;
  for (int script = 0; script < 5; ++script) ids.push_back(engine.add(job_of(script)));

  int seen = 0, steps_after = 0;
  bool asked = false, was_over = false;
  const auto at = [&](Moment here) {
    if (here != moment || seen++ != count) return;
    was_over = engine.text(ids[victim]).finish != FinishReason::none;
    engine.cancel(ids[victim]);
    engine.cancel(ids[victim]);  // twice
    engine.cancel(12345);        // nobody
    asked = true;
  };
  engine.target->before_forward = [&] { at(Moment::target_pass); };
  engine.draft->before_forward = [&] { at(Moment::draft_pass); };
  for (int steps = 0; !engine.idle(); ++steps) {
    CHECK(steps < 400, where, ": no end");
    at(Moment::between_steps);
    const bool asked_before = asked;
    engine.step();
    if (asked_before) ++steps_after;
    const bool alive = engine.text(ids[victim]).finish == FinishReason::none;
    CHECK(!alive || steps_after == 0, where, ": still alive a step later");
  }
  engine.check_settled();

  const Text& cut = engine.text(ids[victim]);
  CHECK(is_prefix(cut, reference[victim]), where, ": not a prefix of the whole text");
  const bool cancelled = cut.finish == FinishReason::cancelled;
  if (cancelled) {
    CHECK(!was_over && cut.tokens.size() < reference[victim].tokens.size(), where, ": cancelled after its end");
    check_stats(cut, where);
    const std::vector<uint64_t>& rows = reference[victim].target_kv;
    for (size_t i = 0; i < cut.target_kv.size(); ++i) CHECK(cut.target_kv[i] == rows[i], where, ": KV row ", i);
    for (size_t i = 0; i < cut.draft_kv.size(); ++i) CHECK(cut.draft_kv[i] == rows[i], where, ": the draft's KV row ", i);
  } else {
    check_same(cut, reference[victim], where);
  }
  for (int script = 0; script < 5; ++script)
    if (script != victim) check_same(engine.text(ids[script]), reference[script], where + message(", bystander ", script));
  return {cancelled, cut.tokens.size()};
}

}  // namespace

// Queued, in every chunk of the prompt, before and after the first token, in every cycle, at its end and after it.
TEST(between_any_two_steps) {
  int cancelled = 0, before_first = 0, after = 0;
  for (int slots : {1, 2, 3})
    for (int victim = 0; victim < 5; ++victim)
      for (int count = 0; count < 60; ++count) {
        const Outcome outcome = cancel_at(slots, victim, Moment::between_steps, count);
        cancelled += outcome.cancelled_in_time;
        before_first += outcome.cancelled_in_time && outcome.tokens_of_victim == 0;
        after += !outcome.cancelled_in_time;
      }
  CHECK(before_first > 50 && cancelled - before_first > 50 && after > 50, before_first, " before the first token, ", cancelled,
        " in all, ", after, " after the end");
}

// In the middle of a step: while the target reads a prompt or verifies, while the draft reads or drafts. The step commits as a
// whole; the request ends with the next one.
TEST(in_the_middle_of_a_step) {
  int cancelled = 0;
  for (int slots : {1, 3})
    for (int victim = 0; victim < 5; ++victim)
      for (Moment moment : {Moment::target_pass, Moment::draft_pass})
        for (int count = 0; count < 75; ++count) cancelled += cancel_at(slots, victim, moment, count).cancelled_in_time;
  CHECK(cancelled > 200, cancelled);
}

// A slot whose request was cancelled serves the next one as if nothing had been.
TEST(a_cancelled_slot_is_clean) {
  const auto texts = scripts();
  const Text reference = plain(options_of(1), texts, {job_of(1)})[0];
  ScriptedEngine engine(options_of(1), texts);
  for (int steps = 0; steps < 16; ++steps) {
    const int64_t gone = engine.add(job_of(0)), next = engine.add(job_of(1));
    for (int i = 0; i < steps; ++i) engine.step();
    const bool was_over = engine.text(gone).finish != FinishReason::none;
    engine.cancel(gone);
    engine.drain();
    CHECK(was_over || engine.text(gone).finish == FinishReason::cancelled);
    check_same(engine.text(next), reference, message("after ", steps, " steps"));
  }
}

TEST(cancelling_everything_leaves_an_idle_engine) {
  ScriptedEngine engine(options_of(2), scripts());
  std::vector<int64_t> ids;
  for (int script = 0; script < 5; ++script) ids.push_back(engine.add(job_of(script)));
  for (int i = 0; i < 10; ++i) engine.step();
  for (int64_t id : ids) engine.cancel(id);
  engine.step();
  CHECK(engine.idle());
  engine.check_settled();
  engine.cancel(ids[0]);
  engine.step();
  CHECK(engine.idle());
}

// An unknown id is ignored for good: it does not lie in wait for the request that will have it.
TEST(cancelling_an_id_nobody_has_yet) {
  ScriptedEngine engine(options_of(1), scripts());
  for (int64_t id = -1; id < 4; ++id) engine.cancel(id);
  for (int script : {4, 3}) {
    const int64_t id = engine.add(job_of(script));
    engine.cancel(id + 1);
    engine.drain();
    CHECK(engine.text(id).finish == FinishReason::length, "request ", id, ": ", name_of(engine.text(id).finish));
  }
}

TEST_MAIN()
