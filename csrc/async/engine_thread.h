// An engine with a thread of its own, that runs cycles as long as anybody waits for tokens. Any thread may submit, cancel and take.
//
// The thread is worker 0 of the backend's pool and knows nothing of Python. What others want done goes into an inbox and is done between
// two steps; what requests were given lies in their submissions. Nobody holds a lock while the engine computes.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <thread>
#include <unordered_set>

#include "async/submission.h"

namespace paceline {

// Something done between two steps, or piece by piece between several, and its end awaited.
class Call {
 public:
  // body: whether it is done now; else it is asked again after the next step.
  explicit Call(std::function<bool(Engine&)> body) : body_(std::move(body)) {}
  // Whether it is done; throws what it threw, or what kept it from being done.
  bool wait(std::chrono::nanoseconds at_most);

  bool run(Engine& engine) noexcept;  // whether it is done
  void fail(std::exception_ptr cause) noexcept;

 private:
  void finish(std::exception_ptr cause) noexcept;

  const Process process_;
  std::function<bool(Engine&)> body_;  // the engine's thread's; it goes when the call is done, since what it holds may be of the engine
  std::mutex mutex_;
  Condition changed_;
  bool done_ = false;
  std::exception_ptr cause_;
};

class EngineThread {
 public:
  // max_queue: how many requests may wait for a place, beside those that run.
  EngineThread(std::shared_ptr<Engine> engine, int max_queue);
  ~EngineThread();  // as close(); in a forked child nothing is touched

  // Throws what submit would, without the queue's answer.
  void check(const std::vector<int32_t>& prompt, const RequestParams& params) const;
  struct Wanted {
    std::vector<int32_t> prompt;
    RequestParams params;
  };
  // All or none of them. They start in this order, after everyone who came before. CapacityError: they would have to wait, and max_queue
  // others do already.
  std::vector<std::shared_ptr<Submission>> submit(std::vector<Wanted> wanted);
  // Calls are made in their order, and one piece of one between two steps. Whose waiter has let go of it is dropped.
  std::shared_ptr<Call> call(std::function<void(Engine&)> body);
  std::shared_ptr<Call> verify(std::vector<int32_t> prefix, std::vector<int32_t> drafts, std::shared_ptr<std::vector<float>> logprobs);
  RequestStats stats() const;
  // The thread ends after the step it is in, the memory is given back, and whoever still waits gets "the engine is closed".
  void close();

  // Whether this is a forked child's copy: it must not even be destroyed, since its thread may have been in the middle of a change.
  bool is_left_behind() const { return process_.is_child(); }
  // What never changes of it may be asked on any thread.
  std::shared_ptr<const Engine> engine() const { return alive(); }

 private:
  struct Job {
    std::shared_ptr<Submission> submission;  // or
    std::shared_ptr<Call> call;
  };
  void work() noexcept;
  bool wait_for_work();
  std::shared_ptr<Call> enqueue(std::function<bool(Engine&)> body);
  bool take_in(Job& job);
  void run_a_call();
  void pass_on_cancels();
  void deliver(std::vector<Output> outputs);
  void forget(const std::shared_ptr<Submission>& submission);
  void end_all(const std::exception_ptr& cause) noexcept;
  int queued_now(const Demand& capacity) const;
  void check_alive() const;
  std::shared_ptr<Engine> alive() const;

  const Process process_;
  // Made while there is memory: what they tell of may be that there is none.
  const std::exception_ptr closed_ = std::make_exception_ptr(std::runtime_error("[Engine] the engine is closed"));
  const std::exception_ptr no_memory_ =
      std::make_exception_ptr(EngineDead("[Engine] the engine cannot go on, build a new one: memory ran out (std::bad_alloc)"));
  const std::exception_ptr no_room_ =
      std::make_exception_ptr(CapacityError("[generate] memory ran out before it began (std::bad_alloc): come back later"));
  std::shared_ptr<Engine> engine_;
  const int max_queue_;
  const std::shared_ptr<std::atomic<int>> cancels_ = std::make_shared<std::atomic<int>>(0);
  std::deque<Job> jobs_;                                       // the thread's own: out of the inbox, not done yet
  std::deque<std::shared_ptr<Call>> calls_;                    // and this: not done yet
  std::map<int64_t, std::shared_ptr<Submission>> by_request_;  // and this: what the engine works on
  std::shared_ptr<Submission> receiver_;                       // and this: of an output that is being put, where nobody else may know it any more

  mutable std::mutex mutex_;  // of what follows
  Condition changed_;
  std::deque<Job> inbox_;
  std::unordered_set<std::shared_ptr<Submission>> unfinished_;
  Demand taken_;         // by all unfinished
  int waiting_ = 0;      // in the scheduler, after its last step
  std::deque<Demand> coming_;  // of those not in the scheduler yet, or only since that step
  RequestStats stats_;
  bool stopping_ = false;
  std::exception_ptr ended_;  // the thread takes no more jobs because of it

  std::mutex closing_;
  std::thread thread_;
};

}  // namespace paceline
