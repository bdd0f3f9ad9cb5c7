#include "backend/cpu/thread_pool.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "backend/cpu/cpu_quota.h"
#include "backend/cpu/float_mode.h"
#include "backend/cpu/forks.h"
#include "core/error.h"
#include "core/no_signals.h"

namespace paceline::cpu {
namespace {

// 20 to 100 microseconds of pauses: longer than the gaps between the operations of a pass, far shorter than a time slice.
constexpr int kSpins = 2000;

// Spin until `value` is no longer `old`, then sleep. Returns the new value.
// Whoever changes a value that is slept on does so by a read-modify-write: notify looks for sleepers right afterwards, and a plain
// store could still wait in its store buffer then, so that a thread would fall asleep on the old value for good.
uint32_t wait_while(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    const uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    _mm_pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

cpu_set_t only(int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  return one;
}

void pin_to(std::thread& thread, int cpu) {
  const cpu_set_t one = only(cpu);
  pthread_setaffinity_np(thread.native_handle(), sizeof one, &one);  // a wish: where it is refused the thread stays where it may be
}

bool is_pinned_to(std::thread& thread, int cpu) {
  cpu_set_t set;
  const cpu_set_t one = only(cpu);
  return pthread_getaffinity_np(thread.native_handle(), sizeof set, &set) == 0 && CPU_EQUAL(&set, &one);
}

}  // namespace

int ThreadPool::usable_threads() {
  cpu_set_t set;
  int count = int(std::thread::hardware_concurrency());  // a machine of more than 1024 cores does not fit the set
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
  const int quota = cpu_quota();
  return std::max(1, quota ? std::min(count, quota) : count);
}

ThreadPool::ThreadPool(int num_threads) : process_(getpid()), forks_(num_forks()) {
  watch_forks();
  const int count = num_threads > 0 ? num_threads : usable_threads();
  const NoSignals quiet;
  num_threads_ = count;
  try {
    for (int thread = 1; thread < count; ++thread) workers_.emplace_back([this, thread] { work(thread); });
    pin();
  } catch (const std::system_error& error) {
    const size_t made = workers_.size();
    stop();
    throw CapacityError(message("[Engine] num_threads: the system gave ", made + 1, " of ", count, " threads: ", error.what()));
  } catch (...) {  // no memory: threads that run must not be dropped
    stop();
    throw;
  }
}

// Where the threads are as many as the cores this process may use, each worker gets one of its own. With fewer threads the system finds
// better places than we could: other processes would pin theirs to the same cores.
void ThreadPool::pin() {
  cpu_set_t set;
  if (workers_.empty() || sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) != num_threads_) return;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set)) cpus_.push_back(cpu);
  for (int thread = 1; thread < num_threads_; ++thread) pin_to(workers_[thread - 1], cpus_[thread]);
}

// The caller is not ours to pin, and wherever it turns up it is needed there: the worker of that core takes the one it left, or the one
// where the caller before it was, which sleeps now or has the host's part to do. Unless
// somebody else has begun to place this process's threads (taskset -ap, a cpuset): then cpus_ is a memory of what was allowed, and
// pinning is over. The worker's own set tells, except where everybody was confined to the very core it had; then the main thread's does.
void ThreadPool::make_way() {
  const auto here = std::find(cpus_.begin(), cpus_.end(), sched_getcpu());
  if (here == cpus_.begin() || here == cpus_.end()) return;
  std::thread& worker = workers_[here - cpus_.begin() - 1];
  if (!is_pinned_to(worker, *here) || !process_may_use(cpus_[0])) return cpus_.clear();
  std::swap(*here, cpus_[0]);
  pin_to(worker, *here);
}

bool ThreadPool::process_may_use(int cpu) const {
  cpu_set_t set;
  return sched_getaffinity(process_, sizeof set, &set) == 0 && CPU_ISSET(cpu, &set);
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  if (is_forked()) {
    for (std::thread& worker : workers_) worker.detach();
    return workers_.clear();
  }
  stopping_.store(true);
  started_.fetch_add(1);
  started_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

bool ThreadPool::is_forked() const { return num_forks() != forks_; }

// The check comes first: in a child a turn may be held by a thread that is not there.
void ThreadPool::take_turn() {
  if (workers_.empty()) return;
  if (is_forked()) throw EngineDead("[Engine] made before a fork, its threads live in the parent: build a new one in this process");
  turns_.take();
}

void ThreadPool::give_turn() {
  if (!workers_.empty()) turns_.give();
}

void ThreadPool::run_all(Call call, void* context) {
  const Turn turn(*this);
  const FloatMode mode;
  const uint32_t others = uint32_t(workers_.size());
  if (others) {
    make_way();
    call_ = call;
    context_ = context;
    finished_.store(0, std::memory_order_relaxed);
    started_.fetch_add(1);
    started_.notify_all();
  }
  call(context, 0, int(others) + 1);
  for (uint32_t done = finished_.load(std::memory_order_acquire); done != others;) done = wait_while(finished_, done);
}

void ThreadPool::work(int thread) {
  const FloatMode mode;
  for (uint32_t seen = 0;;) {
    seen = wait_while(started_, seen);
    if (stopping_.load()) return;
    call_(context_, thread, num_threads());
    if (int(finished_.fetch_add(1)) + 2 == num_threads_) finished_.notify_one();
  }
}

void ThreadPool::barrier() {
  const uint32_t all = uint32_t(num_threads()), round = passed_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == all) {
    arrived_.store(0, std::memory_order_relaxed);
    passed_.fetch_add(1);
    passed_.notify_all();
    return;
  }
  wait_while(passed_, round);
}

}  // namespace paceline::cpu
