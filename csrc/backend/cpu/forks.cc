#include "backend/cpu/forks.h"

#include <pthread.h>

#include <atomic>
#include <new>

namespace paceline::cpu {
namespace {

std::atomic<uint32_t> forks{0};

}  // namespace

uint32_t num_forks() { return forks.load(std::memory_order_relaxed); }

void watch_forks() {
  [[maybe_unused]] static const bool watching = [] {
    if (pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); }) != 0) throw std::bad_alloc();
    return true;
  }();
}

}  // namespace paceline::cpu
