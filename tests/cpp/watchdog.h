// A test that may hang is a test that fails: its body runs in a thread of its own, and if that does not end the program does, with status 1.
#pragma once

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <future>
#include <thread>

namespace paceline::test {

// What the body throws is thrown here.
template <class Body>
void within(int seconds, const char* what, Body body) {
  std::packaged_task<void()> task(body);
  std::future<void> done = task.get_future();
  std::thread thread(std::move(task));
  if (done.wait_for(std::chrono::seconds(seconds)) != std::future_status::ready) {
    std::printf("FAIL  %s: no end after %d seconds\n", what, seconds);
    std::fflush(stdout);
    std::_Exit(1);
  }
  thread.join();
  done.get();
}

}  // namespace paceline::test
