#include "async/engine_thread.h"

#include <pthread.h>

#include <system_error>

#include "core/no_signals.h"

namespace paceline {

bool Call::wait(std::chrono::nanoseconds at_most) {
  process_.check();
  std::unique_lock lock(mutex_);
  changed_->wait_for(lock, at_most, [&] { return done_; });
  if (done_ && cause_) std::rethrow_exception(cause_);
  return done_;
}

bool Call::run(Engine& engine) noexcept {
  try {
    if (!body_(engine)) return false;
    finish(nullptr);
  } catch (...) {
    finish(std::current_exception());
  }
  return true;
}

void Call::fail(std::exception_ptr cause) noexcept { finish(std::move(cause)); }

void Call::finish(std::exception_ptr cause) noexcept {
  body_ = nullptr;
  const std::lock_guard lock(mutex_);
  if (done_) return;
  done_ = true;
  cause_ = std::move(cause);
  changed_->notify_all();
}

EngineThread::EngineThread(std::shared_ptr<Engine> engine, int max_queue) : engine_(std::move(engine)), max_queue_(max_queue) {
  require(max_queue >= 0, "[Engine] max_queue must be at least 0, got ", max_queue);
  const NoSignals quiet;
  try {
    thread_ = std::thread([this] { work(); });
  } catch (const std::system_error& error) {
    throw CapacityError(message("[Engine] the system gave no thread to run on: ", error.what()));
  }
}

// A child's copy of the engine is left where it is: its thread and whatever locks it held exist in the parent only.
EngineThread::~EngineThread() {
  close();
  if (!process_.is_child()) return;
  thread_.detach();
  new std::shared_ptr<Engine>(std::move(engine_));
}

void EngineThread::check_alive() const {
  if (ended_) std::rethrow_exception(ended_);
}

std::shared_ptr<Engine> EngineThread::alive() const {
  process_.check();
  const std::lock_guard lock(mutex_);
  check_alive();
  return engine_;
}

void EngineThread::check(const std::vector<int32_t>& prompt, const RequestParams& params) const { alive()->check(prompt, params); }

std::vector<std::shared_ptr<Submission>> EngineThread::submit(std::vector<Wanted> wanted) {
  std::vector<std::shared_ptr<Submission>> submissions;
  const std::shared_ptr<const Engine> engine = alive();
  for (Wanted& each : wanted) {
    engine->check(each.prompt, each.params);
    const Demand demand = engine->demand(int(each.prompt.size()), each.params);
    submissions.push_back(std::make_shared<Submission>(std::move(each.prompt), std::move(each.params), demand, cancels_));
  }
  if (submissions.empty()) return submissions;
  const std::lock_guard lock(mutex_);
  check_alive();
  const int queued = queued_now(engine->capacity());
  if (!(taken_ + submissions.front()->demand).fits(engine->capacity()) && queued >= max_queue_)
    throw CapacityError(message("[generate] ", queued, " requests wait already and max_queue = ", max_queue_,
                                ": come back later, or raise max_queue in Engine(...)"));
  const size_t jobs = inbox_.size(), coming = coming_.size();
  try {
    for (const auto& each : submissions) {
      unfinished_.insert(each);
      coming_.push_back(each->demand);
      inbox_.push_back({each, nullptr});
    }
  } catch (...) {  // no memory: none of them has come
    for (const auto& each : submissions) unfinished_.erase(each);
    coming_.erase(coming_.begin() + coming, coming_.end());
    inbox_.erase(inbox_.begin() + jobs, inbox_.end());
    throw;
  }
  for (const auto& each : submissions) taken_ += each->demand;
  changed_->notify_one();
  return submissions;
}

// Requests that wait: those of the scheduler, and what came since from the first on that does not fit beside all that run.
int EngineThread::queued_now(const Demand& capacity) const {
  Demand used = taken_;
  for (const Demand& each : coming_) used -= each;
  size_t start = 0;
  if (waiting_ == 0)
    for (; start < coming_.size() && (used + coming_[start]).fits(capacity); ++start) used += coming_[start];
  return waiting_ + int(coming_.size() - start);
}

std::shared_ptr<Call> EngineThread::call(std::function<void(Engine&)> body) {
  return enqueue([body = std::move(body)](Engine& engine) {
    body(engine);
    return true;
  });
}

std::shared_ptr<Call> EngineThread::verify(std::vector<int32_t> prefix, std::vector<int32_t> drafts, std::shared_ptr<std::vector<float>> logprobs) {
  return enqueue([=, under_way = std::shared_ptr<Verification>()](Engine& engine) mutable {
    if (!under_way) under_way = engine.begin_verification(prefix, drafts);
    if (!engine.advance(*under_way)) return false;
    *logprobs = std::move(under_way->logprobs());
    return true;
  });
}

std::shared_ptr<Call> EngineThread::enqueue(std::function<bool(Engine&)> body) {
  process_.check();
  const auto call = std::make_shared<Call>(std::move(body));
  const std::lock_guard lock(mutex_);
  check_alive();
  inbox_.push_back({nullptr, call});
  changed_->notify_one();
  return call;
}

RequestStats EngineThread::stats() const {
  process_.check();
  const std::lock_guard lock(mutex_);
  check_alive();
  return stats_;
}

void EngineThread::close() {
  if (process_.is_child()) return;
  const std::lock_guard one_at_a_time(closing_);
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_->notify_one();
  }
  thread_.join();
  end_all(closed_);
  by_request_.clear();
  std::shared_ptr<Engine> last;  // goes after the lock: what it frees may want locks of others
  const std::lock_guard lock(mutex_);
  last.swap(engine_);
}

// ---------------------------------------------------------------------------------------------------- the thread
void EngineThread::work() noexcept {
  pthread_setname_np(pthread_self(), "paceline");
  try {
    while (wait_for_work()) {
      size_t taken_in = 0;
      for (; !jobs_.empty(); jobs_.pop_front()) taken_in += take_in(jobs_.front());
      run_a_call();
      pass_on_cancels();
      if (!engine_->idle()) deliver(engine_->step());
      const std::lock_guard lock(mutex_);
      waiting_ = engine_->waiting();
      coming_.erase(coming_.begin(), coming_.begin() + taken_in);
    }
  } catch (const EngineDead&) {
    end_all(std::current_exception());
  } catch (...) {  // no memory for what a step gave: the core throws nothing else here
    end_all(no_memory_);
  }
}

// False: the thread shall end.
bool EngineThread::wait_for_work() {
  const bool idle = engine_->idle() && calls_.empty();
  std::unique_lock lock(mutex_);
  changed_->wait(lock, [&] { return stopping_ || !idle || !inbox_.empty(); });
  std::swap(jobs_, inbox_);
  return !stopping_;
}

// Whether it was a request.
bool EngineThread::take_in(Job& job) {
  if (job.call) {
    calls_.push_back(std::move(job.call));
    return false;
  }
  Submission& submission = *job.submission;
  int64_t id;
  try {
    auto place = by_request_.extract(by_request_.emplace(-submission.serial, job.submission).first);  // nothing is asked for behind `add`
    id = place.key() = engine_->add(std::move(submission.prompt), std::move(submission.params));
    by_request_.insert(std::move(place));
  } catch (const std::bad_alloc&) {  // this one ends, the others go on
    const std::lock_guard lock(mutex_);
    unfinished_.erase(job.submission);
    taken_ -= submission.demand;
    submission.fail(no_room_);
    return true;
  }
  if (submission.is_cancelled()) engine_->cancel(id);
  return true;
}

// Who decodes waits for a piece of one call at most. Nobody else can get hold of one whose only holder this is.
void EngineThread::run_a_call() {
  while (!calls_.empty() && calls_.front().use_count() == 1) calls_.pop_front();
  if (!calls_.empty() && calls_.front()->run(*engine_)) calls_.pop_front();
}

void EngineThread::pass_on_cancels() {
  if (cancels_->exchange(0, std::memory_order_acquire) == 0) return;
  for (const auto& [id, submission] : by_request_)
    if (submission->is_cancelled()) engine_->cancel(id);
}

void EngineThread::deliver(std::vector<Output> outputs) {
  for (Output& output : outputs) {
    const auto found = by_request_.find(output.request);
    receiver_ = found->second;
    if (output.finish != FinishReason::none) {
      by_request_.erase(found);
      forget(receiver_);
    }
    receiver_->put(std::move(output));
  }
  receiver_ = nullptr;
}

// It has ended: its place is free and its counts are in, before anybody can know.
void EngineThread::forget(const std::shared_ptr<Submission>& submission) {
  const std::lock_guard lock(mutex_);
  unfinished_.erase(submission);
  taken_ -= submission->demand;
  stats_ = engine_->stats();
}

void EngineThread::end_all(const std::exception_ptr& cause) noexcept {
  const std::lock_guard lock(mutex_);
  ended_ = cause;
  for (const auto& each : calls_) each->fail(cause);
  calls_.clear();
  for (std::deque<Job>* jobs : {&jobs_, &inbox_}) {
    for (const Job& job : *jobs)
      if (job.call) job.call->fail(cause);
    jobs->clear();
  }
  for (const auto& each : unfinished_) each->fail(cause);
  if (receiver_) receiver_->fail(cause);
  unfinished_.clear();
  coming_.clear();
  taken_ = {};
}

}  // namespace paceline
