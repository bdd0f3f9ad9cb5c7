// Memory runs out at any moment around an engine's thread, in it or in whoever submits, reads, calls, cancels or closes: an exception where
// it was asked for, or a request that ends and says why. Nobody waits for ever, nothing that was given is lost or torn, nothing leaks.
#include <poll.h>

#include "cpp/every_allocation.h"
#include "cpp/served_engine.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr auto kSoon = 20s;  // a watchdog: nothing here takes a second
constexpr int kPrompt = 5;
constexpr const char* kNotBegun = "memory ran out before it began";

RequestParams with_logprobs(int max_tokens) {
  RequestParams params = params_of(max_tokens);
  params.logprobs = 1;
  return params;
}

// A request and all that it gave.
struct Reader {
  explicit Reader(int script_, int length_) : script(script_), length(length_) { tokens.reserve(kMaxLen); }

  EngineThread::Wanted wanted(const Served& served) const { return {prompt_of(*served.all, script, kPrompt), with_logprobs(length)}; }
  void take(Submission::Until until) {
    const auto output = submission->take(until, kSoon);
    if (!output) {
      stuck = true;
      return;
    }
    tokens.insert(tokens.end(), output->tokens.begin(), output->tokens.end());
    logprobs += output->logprobs.size();
    top_logprobs += output->top_logprobs.size();
    finish = output->finish;
  }
  // All that is left, with memory to be had again. What it got is a beginning of its text, and its end is one that it may have.
  void read_to_the_end(const Served& served) {
    std::string cause;
    while (!stuck && finish == FinishReason::none && cause.empty()) {
      try {
        take(Submission::Until::something);
      } catch (const std::runtime_error& error) {
        cause = error.what();
      }
    }
    not_begun = cause.find(kNotBegun) != std::string::npos;
    CHECK(!stuck, "script ", script, ": neither an output nor an end");
    CHECK(submission->done(), "script ", script, ": ended, and not done");
    CHECK(tokens == text_of(*served.all, script, kPrompt, int(tokens.size())), "script ", script, ": another text");
    CHECK(logprobs == tokens.size() && top_logprobs == tokens.size(), logprobs, " logprobs of ", tokens.size(), " tokens");
    CHECK(finish != FinishReason::length || int(tokens.size()) == length, tokens.size(), " tokens and the end of ", length);
    CHECK(finish == FinishReason::length || finish == FinishReason::cancelled || cause.find("build a new one") != std::string::npos ||
          cause.find("the engine is closed") != std::string::npos || cause.find(kNotBegun) != std::string::npos, "script ", script, " ended with: ", name_of(finish), cause);
  }

  int script, length;
  std::shared_ptr<Submission> submission;
  std::vector<int> tokens;
  size_t logprobs = 0, top_logprobs = 0;
  FinishReason finish = FinishReason::none;
  bool stuck = false, not_begun = false;
};

// Whether it came through.
template <class Body>
bool attempt(Body body) {
  try {
    body();
    return true;
  } catch (const std::bad_alloc&) {
  } catch (const EngineDead&) {
  }
  return false;
}

struct Tally {
  int refused = 0, not_begun = 0, goes_on = 0, dead = 0, closed = 0;
};

// Everything that can be done with an engine's thread, while memory is short.
struct Use {
  explicit Use(Served& of) : served(of) { wanted.reserve(2); }

  void run(bool close) {
    attempt([&] { first.submission = served.thread->submit({first.wanted(served)}).front(); });
    attempt([&] {
      for (const Reader* each : {&second, &third}) wanted.push_back(each->wanted(served));
      const auto both = served.thread->submit(std::move(wanted));
      second.submission = both[0], third.submission = both[1];
    });
    attempt([&] {
      const auto call = served.thread->call([](Engine& engine) { engine.verify({1, 2, 3}, {4}); });
      stuck |= !call->wait(kSoon);
    });
    if (first.submission) attempt([&] { first.take(Submission::Until::something); });
    if (second.submission) second.submission->cancel();
    if (third.submission) third.submission->ring(bell, Submission::Until::end);
    attempt([&] { fourth.submission = served.thread->submit({fourth.wanted(served)}).front(); });
    if (first.submission) attempt([&] { first.take(Submission::Until::end); });
    attempt([&] { served.thread->stats(); });
    if (close) served.thread->close();
  }

  Served& served;
  Reader first{0, 390}, second{1, 390}, third{2, 60}, fourth{3, 120};
  const std::shared_ptr<Bell> bell = std::make_shared<Bell>();
  std::vector<EngineThread::Wanted> wanted;
  bool stuck = false;
};

// Nothing fails any more: everybody has ended, and the engine gives what it always gives or says that it cannot.
void check_afterwards(Use& use, bool closed, Tally& tally) {
  Served& served = use.served;
  CHECK(!use.stuck, "a call without an end");
  CHECK(!use.second.submission == !use.third.submission, "half a batch");
  int accepted = 0;
  for (Reader* each : {&use.first, &use.second, &use.third, &use.fourth}) {
    if (!each->submission) {
      ++tally.refused;
      continue;
    }
    each->read_to_the_end(served);
    if (each->not_begun) ++tally.not_begun;
    else ++accepted;
  }
  if (use.third.submission) {
    pollfd descriptor{use.bell->descriptor(), POLLIN, 0};
    CHECK(poll(&descriptor, 1, 0) == 1, "it ended and nobody rang");
    const std::vector<int64_t> rung = use.bell->rung();
    CHECK(rung.empty() || rung == std::vector<int64_t>{use.third.submission->serial}, "somebody else rang");
  }
  if (closed) {
    ++tally.closed;
    CHECK_THROWS(served.thread->stats(), std::runtime_error, "the engine is closed");
    return;
  }
  std::string said;
  try {
    CHECK(served.thread->stats().num_requests == accepted, served.thread->stats().num_requests, " requests counted of ", accepted);
    CHECK(read_all(*served.submit(4, 20, 30)) == text_of(*served.all, 4, 20, 30), "the next one");
    const auto call = served.thread->call([&](Engine&) {
      CHECK(served.target->cache().pages().num_free() == served.target->cache().pages().num_pages(), "pages are held");
    });
    CHECK(call->wait(kSoon), "no answer");
    ++tally.goes_on;
  } catch (const EngineDead& error) {
    ++tally.dead;
    said = error.what();
    CHECK(said.find("build a new one") != std::string::npos, said);
  }
}

}  // namespace

TEST(every_request_ends_whichever_allocation_fails) {
  Tally tally;
  const long runs = fail_every_allocation([&](const FailureRun& run) {
    Allocations::disarm();
    Served served;
    Use use(served);
    const bool close = run.n % 2 == 0;
    Allocations::arm(run.n, run.for_good);
    use.run(close);
    Allocations::disarm();
    check_afterwards(use, close, tally);
  }, [](const FailureRun&) {});
  std::printf("      %ld runs: %d requests refused, %d not begun, %d engines go on, %d dead, %d closed\n", runs, tally.refused, tally.not_begun, tally.goes_on, tally.dead, tally.closed);
  CHECK(runs > 100 && tally.refused > 10 && tally.not_begun > 0 && tally.goes_on > 0 && tally.dead > 20 && tally.closed > 20);
}

TEST(an_engine_without_memory_for_its_thread_is_not_built) {
  const long runs = fail_every_allocation([](const FailureRun&) { const Served served; }, [](const FailureRun&) {});
  CHECK(runs > 5, runs);
}

// Who cannot be listed wakes everybody: nobody knows any more who else it was.
TEST(a_bell_without_memory_rings_for_everybody) {
  Bell bell;
  for (int64_t who : {1, 2, 3}) {
    Allocations::arm(who == 2, false);
    bell.ring(who);
    CHECK(Allocations::disarm() == (who == 2), "the list of two was full");
  }
  CHECK(bell.rung().empty(), "it names some of those that rang");
  bell.ring(4);
  CHECK(bell.rung() == std::vector<int64_t>{4}, "the next one");
}

// What lies unread is joined where it lies: a reader without memory for that comes again.
TEST(nothing_is_lost_where_outputs_cannot_be_joined) {
  Served served;
  Reader reader(2, 390);
  reader.submission = served.thread->submit({reader.wanted(served)}).front();
  while (!reader.submission->done()) std::this_thread::yield();
  long failed = 0;
  for (long n = 1; reader.finish == FinishReason::none; ++n) {
    Allocations::arm(n, false);
    attempt([&] { reader.take(Submission::Until::end); });
    failed += Allocations::disarm();
  }
  CHECK(failed >= 3, failed, " allocations failed");
  reader.read_to_the_end(served);
  CHECK(reader.finish == FinishReason::length && reader.tokens.size() == 390, reader.tokens.size(), " tokens");
}

TEST_MAIN()
