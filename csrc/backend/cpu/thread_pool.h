// Fork and join for the operations of a pass: a few microseconds of work, hundreds of times per token.
//
// The caller is worker 0, whoever it is; the others spin for a bounded time after their last work and then sleep, so that an idle
// engine costs nothing and a busy one joins in well under a microsecond. Nothing is allocated per call. Several callers take turns.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

#include "backend/cpu/turns.h"

namespace paceline::cpu {

class ThreadPool {
 public:
  // 0 = as many as this process may use (affinity and cgroup quota).
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // body(thread, num_threads) on every thread, in the engine's floating-point mode; returns when all are done. body must not throw.
  template <class Body>
  void run(Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_all([](void* context, int thread, int num_threads) { (*static_cast<Plain*>(context))(thread, num_threads); }, &body);
  }

  // Inside a body: waits until every thread is here.
  void barrier();

  // The caller's alone, as long as it lives: for runs that belong together, so that engines alternate by passes and cycles and not by
  // operations of a few microseconds. A run outside of it is a turn of its own; they nest. A pool of one thread has nothing to share:
  // its callers compute side by side. Throws EngineDead in a forked child, where the workers are not.
  class Turn {
   public:
    explicit Turn(ThreadPool& pool) : pool_(pool) { pool.take_turn(); }
    ~Turn() { pool_.give_turn(); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    ThreadPool& pool_;
  };
  void take_turn();
  void give_turn();
  int num_waiting() const { return turns_.num_waiting(); }  // callers that wait for their turn

  static int usable_threads();

 private:
  using Call = void (*)(void* context, int thread, int num_threads);
  void run_all(Call call, void* context);
  void work(int thread);
  void stop();
  void pin();
  void make_way();
  bool is_forked() const;
  bool process_may_use(int cpu) const;

  int num_threads_ = 1;
  int process_;     // that made the threads
  uint32_t forks_;  // before that: a forked child has none of them to wait for
  Turns turns_;
  std::vector<std::thread> workers_;
  std::vector<int> cpus_;  // of the threads, the caller's where one was last seen; empty: nobody is pinned by us, or not any more
  Call call_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> started_{0};   // counts calls; workers wait for it to change
  alignas(64) std::atomic<uint32_t> finished_{0};  // workers done with the present call
  alignas(64) std::atomic<uint32_t> arrived_{0};   // at the barrier
  alignas(64) std::atomic<uint32_t> passed_{0};    // barriers passed
  std::atomic<bool> stopping_{false};
};

}  // namespace paceline::cpu
