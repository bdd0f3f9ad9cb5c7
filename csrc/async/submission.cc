#include "async/submission.h"

#include <algorithm>
#include <utility>

namespace paceline {
namespace {

std::atomic<int64_t> next_serial{1};

}  // namespace

Submission::Submission(std::vector<int32_t> prompt_, RequestParams params_, const Demand& demand_, std::shared_ptr<std::atomic<int>> cancels)
    : serial(next_serial++), prompt(std::move(prompt_)), params(std::move(params_)), demand(demand_), cancels_(std::move(cancels)) {}

std::optional<Output> Submission::take(Until until, std::chrono::nanoseconds at_most, int64_t kept) {
  process_.check();
  std::unique_lock lock(mutex_);
  const auto may_take_now = [&] {
    forget(kept);  // again after every wait: another thread may have been handed what woke this one
    return may_take(until);
  };
  if (!may_take_now() && at_most.count() > 0) {
    takers_ += until == Until::something;
    changed_->wait_for(lock, at_most, may_take_now);
    takers_ -= until == Until::something;
  }
  if (!may_take_now()) return std::nullopt;
  if (unread_.empty()) {
    if (cause_) std::rethrow_exception(cause_);
    return std::nullopt;  // somebody else took the last one
  }
  if (until == Until::end)  // joined where they lie: without memory for it they lie there still
    for (; unread_.size() > 1; unread_.erase(unread_.begin() + 1)) append(unread_.front(), std::move(unread_[1]));
  Output output = unread_.front();
  handed_ = output.number;
  return output;
}

// What was handed out and kept goes.
void Submission::forget(int64_t kept) {
  while (!unread_.empty() && unread_.front().number <= std::min(kept, handed_)) unread_.pop_front();
}

bool Submission::ready(int64_t kept) {
  process_.check();
  const std::lock_guard lock(mutex_);
  forget(kept);
  return !unread_.empty() || cause_;
}

bool Submission::done() const {
  process_.check();
  const std::lock_guard lock(mutex_);
  return last_ || cause_;
}

bool Submission::drained(int64_t kept) {
  process_.check();
  const std::lock_guard lock(mutex_);
  forget(kept);
  return last_ && unread_.empty();
}

void Submission::ring(std::shared_ptr<Bell> bell, Until until, int64_t kept) {
  process_.check();
  const std::lock_guard lock(mutex_);
  forget(kept);
  if (may_take(until)) return bell->ring(serial);
  bell_ = std::move(bell);
  bell_for_ = until;
}

void Submission::cancel() noexcept {
  if (!cancelled_.exchange(true, std::memory_order_acq_rel)) cancels_->fetch_add(1, std::memory_order_release);
}

void Submission::put(Output&& output) {
  const std::lock_guard lock(mutex_);
  const bool end = output.finish != FinishReason::none;
  static_assert(kMostUnread > 1);  // what was handed out stands first, and is not joined with what comes
  output.number = ++given_;
  if (unread_.size() < kMostUnread) unread_.push_back(std::move(output));
  else append(unread_.back(), std::move(output));
  last_ = end;
  announce(end);
}

void Submission::fail(std::exception_ptr cause) noexcept {
  const std::lock_guard lock(mutex_);
  if (last_) return;
  cause_ = std::move(cause);
  announce(true);
}

void Submission::announce(bool end) {
  if (end || takers_) changed_->notify_all();
  if (bell_ && (end || bell_for_ == Until::something)) std::exchange(bell_, nullptr)->ring(serial);
}

}  // namespace paceline
