#include "async/submission.h"

#include <utility>

namespace paceline {
namespace {

std::atomic<int64_t> next_serial{1};

}  // namespace

Submission::Submission(std::vector<int32_t> prompt_, RequestParams params_, const Demand& demand_, std::shared_ptr<std::atomic<int>> cancels)
    : serial(next_serial++), prompt(std::move(prompt_)), params(std::move(params_)), demand(demand_), cancels_(std::move(cancels)) {}

std::optional<Output> Submission::take(Until until, std::chrono::nanoseconds at_most) {
  process_.check();
  std::unique_lock lock(mutex_);
  if (!may_take(until) && at_most.count() > 0) {
    takers_ += until == Until::something;
    changed_->wait_for(lock, at_most, [&] { return may_take(until); });
    takers_ -= until == Until::something;
  }
  if (!may_take(until)) return std::nullopt;
  if (unread_.empty()) {
    if (cause_) std::rethrow_exception(cause_);
    return std::nullopt;  // somebody else took the last one
  }
  if (until == Until::end)  // joined where they lie: without memory for it they lie there still
    for (; unread_.size() > 1; unread_.erase(unread_.begin() + 1)) append(unread_.front(), std::move(unread_[1]));
  Output output = std::move(unread_.front());
  unread_.pop_front();
  return output;
}

bool Submission::ready() const {
  process_.check();
  const std::lock_guard lock(mutex_);
  return !unread_.empty() || cause_;
}

bool Submission::done() const {
  process_.check();
  const std::lock_guard lock(mutex_);
  return last_ || cause_;
}

bool Submission::drained() const {
  process_.check();
  const std::lock_guard lock(mutex_);
  return last_ && unread_.empty();
}

void Submission::ring(std::shared_ptr<Bell> bell, Until until) {
  process_.check();
  const std::lock_guard lock(mutex_);
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
