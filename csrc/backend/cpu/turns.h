// Turns at something that serves one thread at a time: first come, first served, so that two callers in a loop alternate. Who waits
// sleeps; who has the turn may take it again, and has it until it has given it back as often.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>

namespace paceline::cpu {

class Turns {
 public:
  void take();
  void give();
  // Threads that have asked and wait.
  int num_waiting() const;

 private:
  alignas(64) std::atomic<uint32_t> issued_{0};  // tickets
  // 4 bytes after a multiple of 64: the library counts sleepers in 16 places by bits 2 to 5 of an address, and with workers asleep on
  // atomics at multiples of 64 every notify would be a system call (0.2 microseconds).
  std::atomic<uint32_t> serving_{0};
  std::atomic<pthread_t> owner_{0};  // 0: nobody. A thread finds itself here only if it has put itself here
  int depth_ = 0;                    // the owner's: how often it has taken the turn again
};

}  // namespace paceline::cpu
