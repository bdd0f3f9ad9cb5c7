// Whose threads these are. A forked child has a copy of every object but of no thread, and of locks as they stood: whatever could wait
// for one asks here first.
#pragma once

#include <unistd.h>

#include <condition_variable>
#include <memory>

#include "core/error.h"

namespace paceline {

class Process {
 public:
  bool is_child() const { return getpid() != made_in_; }
  void check() const {
    if (is_child()) throw EngineDead("[Engine] made before a fork, its threads live in the parent: build a new one in this process");
  }

 private:
  int made_in_ = getpid();
};

// A condition variable that a child may destroy while threads of the parent wait on it: the C library would wait for them to leave, and the
// child has none of them.
class Condition {
 public:
  ~Condition() {
    if (process_.is_child()) static_cast<void>(changed_.release());
  }
  std::condition_variable* operator->() { return changed_.get(); }

 private:
  const Process process_;
  std::unique_ptr<std::condition_variable> changed_ = std::make_unique<std::condition_variable>();
};

}  // namespace paceline
