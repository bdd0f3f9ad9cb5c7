// An engine on its own thread: whoever submits, waits, cancels, reads late or leaves, from any thread, gets what a serial run gives.
#include <unistd.h>

#include <algorithm>
#include <random>

#include "cpp/served_engine.h"

using namespace paceline;
using namespace paceline::test;

TEST(one_request_gives_its_text_and_then_nothing) {
  Served served;
  const auto submission = served.submit(1, 70, 100);
  CHECK(read_all(*submission) == text_of(*served.all, 1, 70, 100), "another text");
  CHECK(served.thread->stats().num_requests == 1 && served.thread->stats().num_emitted_tokens == 100, "counts at the end");
}

TEST(many_threads_get_what_a_serial_run_gives) {
  Served served;
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0}, done{0};
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 40; ++i) {
        const int script = int(random() % 8), prompt = 1 + int(random() % 150), length = 1 + int(random() % 60);
        const auto submission = served.submit(script, prompt, length);
        const std::vector<int> want = text_of(*served.all, script, prompt, length);
        const int kind = int(random() % 4);
        if (kind == 0) {  // leaves, having read something or nothing
          bool ended = false;
          if (random() % 2) ended = submission->take(Submission::Until::something, kLong)->finish != FinishReason::none;
          submission->cancel();
          if (random() % 2 && !ended) {
            const Output rest = the_end(*submission);
            wrong += rest.finish != FinishReason::cancelled && rest.finish != FinishReason::length;
          }
        } else {
          const std::vector<int> got = kind == 1 ? the_end(*submission).tokens : read_all(*submission);
          wrong += got != want;
        }
        ++done;
      }
    });
  for (std::thread& each : threads) each.join();
  CHECK(wrong == 0 && done == 320, wrong.load(), " wrong of ", done.load());
  served.thread->close();
}

TEST(a_consumer_far_behind_gets_larger_pieces_and_loses_nothing) {
  Served served;
  const auto slow = served.submit(2, 5, 390), other = served.submit(3, 5, 390);
  read_all(*other);
  std::this_thread::sleep_for(20ms);
  std::vector<int> tokens;
  int pieces = 0, cycles = 0, tau = 0, accepted = 0;
  RequestStats stats;
  for (bool last = false; !last; ++pieces) {
    const auto output = slow->take(Submission::Until::something, kLong);
    CHECK(output, "nothing within a minute");
    tokens.insert(tokens.end(), output->tokens.begin(), output->tokens.end());
    cycles += output->cycles, tau += output->tau, accepted += output->accepted;
    last = output->finish != FinishReason::none;
    stats = output->stats;
  }
  CHECK(tokens == text_of(*served.all, 2, 5, 390), "another text");
  CHECK(pieces == int(Submission::kMostUnread), pieces, " pieces");
  CHECK(cycles == stats.num_cycles && tau == stats.num_draft_tokens && accepted == stats.num_accepted_draft_tokens, "counts of joined outputs");
}

TEST(waiting_for_the_end_gives_everything_at_once) {
  Served served;
  const auto submission = served.submit(0, 9, 300);
  CHECK(!submission->take(Submission::Until::end, 0s) || submission->done(), "an end before the end");
  const Output all = the_end(*submission);
  CHECK(all.tokens == text_of(*served.all, 0, 9, 300) && all.cycles == all.stats.num_cycles, "another text");
}

// Whoever took nothing just before the end came has not missed it.
TEST(an_end_between_two_looks_is_there_to_take) {
  const auto cancels = std::make_shared<std::atomic<int>>(0);
  Submission submission({1}, {}, {}, cancels), failing({1}, {}, {}, cancels);
  CHECK(!submission.take(Submission::Until::something, 0s) && !submission.drained(), "an end before the end");
  Output last;
  last.finish = FinishReason::length;
  submission.put(std::move(last));
  CHECK(submission.done() && !submission.drained(), "it lies there");
  CHECK(submission.take(Submission::Until::something, 0s)->finish == FinishReason::length && submission.drained(), "taken");
  CHECK(!failing.take(Submission::Until::something, 0s), "an end before the end");
  failing.fail(std::make_exception_ptr(EngineDead("why")));
  CHECK(failing.done() && !failing.drained(), "what ended it is there to be thrown");
  CHECK_THROWS(failing.take(Submission::Until::something, 0s), EngineDead, "why");
}

// Who says what it has kept is given again what it has not, until it says so; nothing that came meanwhile is lost or out of order.
TEST(an_output_that_was_not_kept_is_given_again) {
  Submission submission({1}, {}, {}, std::make_shared<std::atomic<int>>(0));
  const auto put = [&](int token, FinishReason finish) {
    Output output;
    output.tokens = {token};
    output.cycles = 1;
    output.finish = finish;
    submission.put(std::move(output));
  };
  const auto take = [&](Submission::Until until, int64_t kept) { return submission.take(until, 0s, kept)->tokens; };
  put(1, FinishReason::none), put(2, FinishReason::none);
  for (int i = 0; i < 3; ++i) CHECK(take(Submission::Until::something, 0) == std::vector<int>{1}, "the first, not kept yet");
  CHECK(take(Submission::Until::something, 1) == std::vector<int>{2} && submission.ready(1), "the second");
  CHECK(!submission.take(Submission::Until::something, 0s, 2) && !submission.ready(2), "both were kept");
  put(3, FinishReason::none);
  CHECK(take(Submission::Until::something, 2) == std::vector<int>{3}, "the third, which is not kept");
  put(4, FinishReason::none), put(5, FinishReason::length);
  CHECK(!submission.drained(2) && submission.done(), "nobody was handed the last");
  for (int i = 0; i < 2; ++i) CHECK((take(Submission::Until::end, 2) == std::vector<int>{3, 4, 5}), "all that is left in one");
  CHECK(!submission.drained(2) && !submission.drained(4) && submission.drained(5), "kept to the end");
  Submission slow({1}, {}, {}, std::make_shared<std::atomic<int>>(0));
  std::vector<int> tokens;
  for (int i = 0; i < 300; ++i) {
    Output output;
    output.tokens = {i};
    slow.put(std::move(output));
    if (i == 0) CHECK(slow.take(Submission::Until::something, 0s, 0)->number == 1, "the first");
  }
  for (int64_t kept = 0; slow.ready(kept);) {
    const Output output = *slow.take(Submission::Until::something, 0s, kept);
    tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
    kept = output.number;
  }
  CHECK(tokens.size() == 300 && std::is_sorted(tokens.begin(), tokens.end()), tokens.size(), " tokens");
}

TEST(cancelling_ends_it_with_what_it_has) {
  Served served;
  const auto submission = served.submit(1, 3, 390);
  std::vector<int> tokens = submission->take(Submission::Until::something, kLong)->tokens;
  submission->cancel();
  submission->cancel();
  const Output rest = the_end(*submission);
  tokens.insert(tokens.end(), rest.tokens.begin(), rest.tokens.end());
  CHECK(tokens == text_of(*served.all, 1, 3, int(tokens.size())), "not a prefix");
  CHECK(rest.finish == FinishReason::cancelled || tokens.size() == 390, name_of(rest.finish));
  submission->cancel();  // long over
  CHECK(read_all(*served.submit(4, 20, 30)) == text_of(*served.all, 4, 20, 30), "the next one");
}

TEST(cancelled_in_the_middle_of_a_step) {
  Served served;
  auto held = served.hold();
  const auto submission = served.submit(1, 3, 390);
  while (!served.entered) std::this_thread::yield();
  submission->cancel();
  held.unlock();
  const Output end = the_end(*submission);
  CHECK(end.finish == FinishReason::cancelled && end.tokens.size() <= 2 * (kTau + 1), name_of(end.finish), " after ", end.tokens.size(), " tokens");
}

TEST(cancelled_while_it_waits) {
  Served served(1000, 8, 1);
  auto held = served.hold();
  const auto first = served.submit(0, 4, 50), second = served.submit(1, 4, 50), third = served.submit(2, 4, 50);
  second->cancel();
  held.unlock();
  CHECK(the_end(*second).finish == FinishReason::cancelled && the_end(*first).finish == FinishReason::length, "who was cancelled");
  CHECK(read_all(*third) == text_of(*served.all, 2, 4, 50), "behind it");
}

// Submitted and cancelled while the thread takes in what came before: it has looked for cancelled requests when it sees this one.
TEST(cancelled_before_it_is_taken_in) {
  Served served;
  std::shared_ptr<Submission> late;
  const auto call = served.thread->call([&](Engine&) {
    late = served.submit(0, 4, 390);
    late->cancel();
  });
  CHECK(call->wait(kLong), "no answer");
  const Output end = the_end(*late);
  CHECK(end.finish == FinishReason::cancelled && end.tokens.size() <= kTau + 1, name_of(end.finish), " after ", end.tokens.size(), " tokens");
}

TEST(the_queue_is_bounded_and_a_batch_enters_whole) {
  Served served(2, 8, 1);
  auto held = served.hold();
  const auto running = served.submit(0, 4, 8);
  std::vector<std::shared_ptr<Submission>> queued;
  for (int i = 0; i < 2; ++i) queued.push_back(served.submit(1 + i, 4, 8));
  CHECK_THROWS(served.submit(3, 4, 8), CapacityError, "max_queue = 2");
  const EngineThread::Wanted one{prompt_of(*served.all, 4, 4), params_of(8)};
  CHECK_THROWS(served.thread->submit({one, one}), CapacityError, "wait already");
  held.unlock();
  CHECK(the_end(*running).finish == FinishReason::length, "the running one");
  for (const auto& each : queued) CHECK(the_end(*each).finish == FinishReason::length, "a queued one");
  // Nobody is there any more: a batch of any size is taken, and a bad one not at all.
  CHECK_THROWS(served.thread->submit({one, {{}, params_of(8)}}), std::invalid_argument, "at least 1 token");
  for (const auto& each : served.thread->submit(std::vector<EngineThread::Wanted>(9, one)))
    CHECK(the_end(*each).tokens == text_of(*served.all, 4, 4, 8), "of the batch");
  CHECK(served.thread->stats().num_requests == int64_t(1 + queued.size() + 9), "a refused request was counted");
}

// Slots are free, pages are not: what does not fit beside those that run waits, and counts.
TEST(pages_bound_the_queue_as_well) {
  Served served(1, 8, 6, 400);
  auto held = served.hold();
  std::vector<std::shared_ptr<Submission>> all{served.submit(0, 4, 390)};  // nearly all pages
  while (!served.entered) std::this_thread::yield();
  all.push_back(served.submit(1, 4, 390));
  CHECK_THROWS(served.submit(2, 4, 390), CapacityError, "max_queue = 1");
  held.unlock();
  for (const auto& each : all) CHECK(the_end(*each).finish == FinishReason::length, "who was taken");
}

TEST(any_number_of_long_requests_is_too_much_and_never_nothing) {
  volatile int many = 1 << 14;  // the compiler shall not do the sum
  Demand all;
  for (int i = 0; i < many; ++i) all += {1, 1 << 18, 1 << 18};  // 2^32 pages
  CHECK(all.target_pages == int64_t(1) << 32 && !all.fits({1 << 20, 1 << 20, 1 << 20}), all.target_pages, " pages");
}

TEST(without_a_queue_only_what_can_start_is_taken) {
  Served served(0, 8, 2);
  auto held = served.hold();
  const auto a = served.submit(0, 4, 8), b = served.submit(1, 4, 8);
  CHECK_THROWS(served.submit(2, 4, 8), CapacityError, "max_queue = 0");
  held.unlock();
  the_end(*a), the_end(*b);
  CHECK(read_all(*served.submit(2, 4, 8)) == text_of(*served.all, 2, 4, 8), "after the others");
}

TEST(a_bell_rings_for_whoever_has_something) {
  Served served;
  const auto bell = std::make_shared<Bell>();
  const auto pieces = served.submit(0, 4, 30), whole = served.submit(1, 4, 30);
  std::map<int64_t, int> rings;
  pieces->ring(bell, Submission::Until::something), whole->ring(bell, Submission::Until::end);
  const auto start = std::chrono::steady_clock::now();
  while (!(pieces->done() && whole->done()) || rings[whole->serial] == 0) {
    for (const int64_t who : bell->rung()) ++rings[who];
    CHECK(std::chrono::steady_clock::now() - start < kLong, "no ring within a minute");
  }
  CHECK(rings.size() == 2 && rings[whole->serial] == 1 && rings[pieces->serial] >= 1, rings[whole->serial], " rings for the end");
  bell->rung();
  whole->ring(bell, Submission::Until::something);  // it lies there
  CHECK(bell->rung() == std::vector<int64_t>{whole->serial}, "at once");
}

TEST(calls_run_between_steps_and_bring_their_errors) {
  Served served;
  const auto stream = served.submit(0, 4, 390);
  const auto tokens = prompt_of(*served.all, 3, 9);
  std::vector<float> logprobs;
  const auto call = served.thread->call([&](Engine& engine) { logprobs = engine.verify(tokens, {}); });
  CHECK(call->wait(kLong) && logprobs.size() == kVocab, logprobs.size(), " logprobs");
  const auto bad = served.thread->call([&](Engine& engine) { engine.verify({}, {}); });
  CHECK_THROWS(bad->wait(kLong), std::invalid_argument, "prefix_ids must have at least 1 token");
  CHECK(read_all(*stream) == text_of(*served.all, 0, 4, 390), "beside them");
}

// Two texts of 390 tokens read for their logprobs beside a stream: between any two of its cycles stands one pass of one of them at most.
TEST(a_verification_takes_turns_with_the_steps) {
  Served served(1000, 8, kSlots, 1600, 8);
  auto held = served.hold();
  const auto stream = served.submit(0, 4, 390);
  while (!served.entered) std::this_thread::yield();
  const auto logprobs = std::make_shared<std::vector<float>>(), dropped = std::make_shared<std::vector<float>>();
  const auto prefix = prompt_of(*served.all, 1, 380);
  auto first = served.thread->verify(prefix, {}, dropped);
  const auto second = served.thread->verify(prefix, {served.all->at(1).tokens[380]}, logprobs);
  held.unlock();
  CHECK(second->wait(kLong) && logprobs->size() == 2 * kVocab, logprobs->size(), " logprobs");
  CHECK(first->wait(0s) && dropped->size() == kVocab, "they are made in their order");
  CHECK(read_all(*stream) == text_of(*served.all, 0, 4, 390), "beside them");
  int last = -1, together = 0, most = 0;
  for (const auto& row : served.target->trace()) {
    if (row.pass == last) continue;
    last = row.pass;
    together = row.slot == kSlots ? together + 1 : 0;
    most = std::max(most, together);
    if (row.slot == 0 && row.position >= 300) break;  // the stream may end before they do
  }
  CHECK(most == 1, most, " passes of verifications between two of the stream");
}

TEST(a_verification_that_nobody_waits_for_is_dropped) {
  Served served(1000, 8, kSlots, 1600, 8);
  auto held = served.hold();
  const auto logprobs = std::make_shared<std::vector<float>>();
  auto call = served.thread->verify(prompt_of(*served.all, 1, 380), {}, logprobs);
  while (!served.entered) std::this_thread::yield();  // in its first pass of 48
  call.reset();
  held.unlock();
  CHECK(read_all(*served.submit(0, 100, 290)) == text_of(*served.all, 0, 100, 290), "after it");
  int rows = 0;
  const auto asked = served.thread->call([&](Engine&) {
    for (const auto& row : served.target->trace()) rows += row.slot == kSlots;
    CHECK(served.target->cache().pages().num_free() == served.target->cache().pages().num_pages(), "pages are held");
  });
  CHECK(asked->wait(kLong), "no answer");
  CHECK(rows == 8 && logprobs->empty(), rows, " rows were fed for nobody");
}

TEST(an_engine_closes_in_the_middle_of_a_verification) {
  Served served(1000, 8, kSlots, 1600, 8);
  auto held = served.hold();
  const auto call = served.thread->verify(prompt_of(*served.all, 1, 380), {}, std::make_shared<std::vector<float>>());
  while (!served.entered) std::this_thread::yield();
  std::thread closer([&] { served.thread->close(); });
  std::this_thread::sleep_for(50ms);  // closing begins
  held.unlock();
  closer.join();
  CHECK_THROWS(CHECK(call->wait(0s), "no end"), std::runtime_error, "the engine is closed");
  CHECK(served.entered < 10, served.entered.load(), " passes for a closed engine");
}

TEST(closing_keeps_what_was_given) {
  Served served;
  std::vector<std::shared_ptr<Submission>> all;
  for (int i = 0; i < 6; ++i) all.push_back(served.submit(i, 4, 390));
  const auto first = all[0]->take(Submission::Until::something, kLong);
  while (!all[1]->ready()) std::this_thread::yield();
  std::thread waiter([&] { CHECK_THROWS(the_end(*all[5]), std::runtime_error, "the engine is closed"); });
  served.thread->close();
  served.thread->close();
  waiter.join();
  const auto given = all[1]->take(Submission::Until::something, 0s);
  CHECK(given && given->tokens == text_of(*served.all, 1, 4, int(given->tokens.size())), "what was given before");
  std::vector<int> tokens = first->tokens;
  CHECK_THROWS({
    for (;;) {
      const auto output = all[0]->take(Submission::Until::something, kLong);
      CHECK(output, "neither an output nor the end");
      tokens.insert(tokens.end(), output->tokens.begin(), output->tokens.end());
      if (output->finish != FinishReason::none) throw std::runtime_error("the engine is closed: it was done before");
    }
  }, std::runtime_error, "the engine is closed");
  CHECK(tokens == text_of(*served.all, 0, 4, int(tokens.size())), "not a prefix");
  CHECK_THROWS(served.submit(0, 4, 8), std::runtime_error, "the engine is closed");
  CHECK_THROWS(served.thread->call([](Engine&) {}), std::runtime_error, "the engine is closed");
  CHECK_THROWS(served.thread->stats(), std::runtime_error, "the engine is closed");
}

TEST(a_call_that_cannot_be_made_says_why) {
  Served served;
  auto held = served.hold();
  const auto stream = served.submit(0, 4, 390);
  while (!served.entered) std::this_thread::yield();  // in the middle of a step
  const auto call = served.thread->call([](Engine&) {});
  std::thread closer([&] { served.thread->close(); });
  std::this_thread::sleep_for(50ms);  // closing begins
  held.unlock();
  closer.join();
  CHECK_THROWS(CHECK(call->wait(0s), "no end"), std::runtime_error, "the engine is closed");
}

TEST(a_step_that_fails_ends_everybody_with_the_first_cause) {
  Served served;
  served.fail_at = 9;
  auto held = served.hold();
  std::vector<std::shared_ptr<Submission>> all;
  for (int i = 0; i < 6; ++i) all.push_back(served.submit(i, 4, 390));
  const auto call = served.thread->call([](Engine&) {});
  held.unlock();
  for (const auto& each : all) CHECK_THROWS(read_all(*each), EngineDead, "the ninth pass");
  CHECK(all[0]->done() && all[5]->done(), "done");
  CHECK_THROWS(served.submit(0, 4, 8), EngineDead, "the ninth pass");
  CHECK_THROWS(served.thread->stats(), EngineDead, "the ninth pass");
  CHECK(call->wait(kLong), "a call that was done before");
  served.thread->close();
  CHECK_THROWS(served.submit(0, 4, 8), std::runtime_error, "the engine is closed");
}

TEST(a_submission_outlives_its_engine) {
  std::shared_ptr<Submission> submission;
  {
    Served served;
    submission = served.submit(0, 4, 390);
  }
  submission->cancel();
  CHECK_THROWS(the_end(*submission), std::runtime_error, "the engine is closed");
}

TEST(who_leaves_frees_everything) {
  Served served;
  for (int round = 0; round < 200; ++round) {
    const auto submission = served.submit(round % 8, 1 + round, 150);
    if (round % 3) submission->take(Submission::Until::something, kLong);
    submission->cancel();
  }
  CHECK(read_all(*served.submit(0, 100, 290)) == text_of(*served.all, 0, 100, 290), "after them");
  const auto pages = served.thread->call([&](Engine&) {
    CHECK(served.target->cache().pages().num_free() == served.target->cache().pages().num_pages(), "pages are held");
  });
  CHECK(pages->wait(kLong), "no answer");
  CHECK(served.thread->stats().num_requests == 201, served.thread->stats().num_requests, " requests ended");
}

TEST_MAIN()
