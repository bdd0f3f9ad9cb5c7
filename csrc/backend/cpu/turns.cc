#include "backend/cpu/turns.h"

#include <algorithm>

namespace paceline::cpu {

void Turns::take() {
  const pthread_t self = pthread_self();
  if (owner_.load(std::memory_order_relaxed) == self) {
    ++depth_;
    return;
  }
  const uint32_t ticket = issued_.fetch_add(1, std::memory_order_relaxed);
  for (uint32_t now; (now = serving_.load(std::memory_order_acquire)) != ticket;) serving_.wait(now, std::memory_order_acquire);
  owner_.store(self, std::memory_order_relaxed);
}

// All who sleep are woken and all but one go back to sleep: there are as many as engines, and a turn is long.
void Turns::give() {
  if (depth_ > 0) {
    --depth_;
    return;
  }
  owner_.store(0, std::memory_order_relaxed);
  serving_.fetch_add(1);  // not a store: see wait_while in thread_pool.cc
  serving_.notify_all();
}

int Turns::num_waiting() const {
  const uint32_t served = serving_.load();
  return std::max(0, int(issued_.load() - served) - 1);
}

}  // namespace paceline::cpu
