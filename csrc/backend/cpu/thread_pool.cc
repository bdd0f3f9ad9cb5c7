#include "backend/cpu/thread_pool.h"

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "backend/cpu/float_mode.h"

namespace paceline::cpu {
namespace {

// About 20 microseconds of pauses: longer than the gaps between the operations of a pass, far shorter than a time slice.
constexpr int kSpins = 2000;

// Spin until `value` is no longer `old`, then sleep. Returns the new value.
uint32_t wait_while(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    const uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    _mm_pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

// Cores a cgroup grants, rounded up; 0 = no quota.
int cgroup_quota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 0;
  return int((std::stod(quota) + period - 1) / period);
}

}  // namespace

int ThreadPool::usable_threads() {
  cpu_set_t set;
  int count = 1;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
  const int quota = cgroup_quota();
  return std::max(1, quota ? std::min(count, quota) : count);
}

ThreadPool::ThreadPool(int num_threads) {
  const int count = num_threads > 0 ? num_threads : usable_threads();
  for (int thread = 1; thread < count; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  started_.fetch_add(1, std::memory_order_release);
  started_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_all(Call call, void* context) {
  const FloatMode mode;
  const uint32_t others = uint32_t(workers_.size());
  if (others) {
    call_ = call;
    context_ = context;
    finished_.store(0, std::memory_order_relaxed);
    started_.fetch_add(1, std::memory_order_release);
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
    if (finished_.fetch_add(1, std::memory_order_release) + 1 == uint32_t(workers_.size())) finished_.notify_one();
  }
}

void ThreadPool::barrier() {
  const uint32_t all = uint32_t(num_threads()), round = passed_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == all) {
    arrived_.store(0, std::memory_order_relaxed);
    passed_.store(round + 1, std::memory_order_release);
    passed_.notify_all();
    return;
  }
  wait_while(passed_, round);
}

}  // namespace paceline::cpu
