// Whose threads these are. A forked child has a copy of every object but of no thread, and of locks as they stood: whatever could wait
// for one asks here first.
#pragma once

#include <unistd.h>

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

}  // namespace paceline
