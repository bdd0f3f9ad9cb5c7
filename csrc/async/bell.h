// How an event loop learns that requests have something new: a descriptor that becomes readable, and a list of who rang.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

namespace paceline {

class Bell {
 public:
  Bell();  // throws CapacityError where the process may open no more descriptors
  ~Bell();
  Bell(const Bell&) = delete;
  Bell& operator=(const Bell&) = delete;

  int descriptor() const { return descriptor_; }
  // Any thread. Without memory for the list it rings all the same.
  void ring(int64_t who) noexcept;
  // The loop's thread: who has rung since the last call. Empty although the descriptor was readable: could be anyone.
  std::vector<int64_t> rung();

 private:
  int descriptor_;
  std::mutex mutex_;
  std::vector<int64_t> who_;
  bool anyone_ = false;  // somebody rang who is not in the list
};

}  // namespace paceline
