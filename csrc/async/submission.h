// A request between the thread that runs it and whoever waits for it: a bounded queue of what it was given.
//
// The queue never makes the engine wait. Beyond kMostUnread outputs the newest ones are merged into one: a slow consumer gets larger
// pieces, an absent one holds a few kilobytes and the tokens, and nobody else notices either.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>

#include "async/bell.h"
#include "async/process.h"
#include "engine.h"

namespace paceline {

class Submission {
 public:
  static constexpr size_t kMostUnread = 64;
  enum class Until { something, end };

  // cancels: raised by the first cancel.
  Submission(std::vector<int32_t> prompt_, RequestParams params_, const Demand& demand_, std::shared_ptr<std::atomic<int>> cancels);

  // The consumer: several threads may, one output goes to one of them.
  // kept: the number of the newest output that the consumer has. Whoever may be interrupted between being handed an output and keeping it
  // says so; what it has not kept lies there still, and is handed out again. For others all that was handed out is kept.
  static constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  // The oldest output, or with Until::end all that are left in one, once the last is there. Nothing within `at_most`: none. What ended
  // the request without an output (the engine died, or was closed) is thrown after everything that was given before.
  std::optional<Output> take(Until until, std::chrono::nanoseconds at_most, int64_t kept = kAll);
  // There is something to take, were it only what ended it.
  bool ready(int64_t kept = kAll);
  // Nothing more will be given; what was may still be there to take.
  bool done() const;
  // Nothing is there to take, and nothing will be. Whoever took nothing asks this, not done(): its end may have come in between.
  bool drained(int64_t kept = kAll);
  // `bell` rings once, when there may be something to take, or only at the end; at once if it is so already.
  void ring(std::shared_ptr<Bell> bell, Until until, int64_t kept = kAll);
  // The engine ends it at its next step, with what it has. Safe anywhere, destructors included.
  void cancel() noexcept;

  // The engine thread.
  void put(Output&& output);
  void fail(std::exception_ptr cause) noexcept;
  bool is_left_behind() const { return process_.is_child(); }
  bool is_cancelled() const noexcept { return cancelled_.load(std::memory_order_acquire); }

  const int64_t serial;  // its own in this process
  std::vector<int32_t> prompt;
  RequestParams params;
  const Demand demand;

 private:
  bool may_take(Until until) const { return cause_ || last_ || (until == Until::something && !unread_.empty()); }
  void forget(int64_t kept);
  void announce(bool end);

  const Process process_;
  mutable std::mutex mutex_;
  Condition changed_;
  std::deque<Output> unread_;   // the first of them may have been handed out: its reader has not said yet that it was kept
  int64_t given_ = 0, handed_ = 0;  // numbers of the newest that was put, and was handed out
  bool last_ = false;           // the last output has been put
  std::exception_ptr cause_;    // or this ended it
  int takers_ = 0;              // waiting for something: whoever waits for the end sleeps on
  std::shared_ptr<Bell> bell_;  // nobody's once it has rung
  Until bell_for_ = Until::something;
  std::atomic<bool> cancelled_{false};
  const std::shared_ptr<std::atomic<int>> cancels_;  // the engine thread looks for cancelled requests when this is not 0
};

}  // namespace paceline
