// How a thread of Python waits for an engine: the lock let go, signals looked for, and the end of the interpreter in mind.
#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <optional>

#include "python/gil.h"

namespace paceline {

// The thread that ends the interpreter, whichever that is, while it does; 0 before. Others have nothing left to do then but to wait for it.
inline std::atomic<int> ending{0};

// What a call that waits for the engine may still throw.
template <class Body>
auto with_the_end_in_mind(Body&& body) {
  try {
    return body();
  } catch (const std::exception&) {
    const int by = ending;
    if (by == 0 || by == gettid()) throw;
    const Unlocked unlocked;
    for (;;) pause();
  }
}

inline constexpr std::chrono::nanoseconds kPoll = std::chrono::milliseconds(50);  // a signal is noticed that soon

// ready(at_most) waits with the GIL released, again and again until it gives something, `seconds` are over (false) or a signal's
// handler raises.
template <class Ready>
bool wait_for(Ready&& ready, std::optional<double> seconds) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  if (ready(std::chrono::nanoseconds(0))) return true;
  for (;;) {
    std::chrono::nanoseconds at_most = kPoll;
    if (seconds) {
      const double left = *seconds - std::chrono::duration<double>(Clock::now() - start).count();
      if (left <= 0) return false;
      if (left < 0.05) at_most = std::chrono::nanoseconds(int64_t(left * 1e9) + 1);
    }
    {
      const Unlocked unlocked;
      if (ready(at_most)) return true;
    }
    if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
  }
}

}  // namespace paceline
