// Threads made in this scope take no signals: those belong to the program we live in.
#pragma once

#include <signal.h>

namespace paceline {

class NoSignals {
 public:
  NoSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &callers_);
  }
  ~NoSignals() { pthread_sigmask(SIG_SETMASK, &callers_, nullptr); }
  NoSignals(const NoSignals&) = delete;
  NoSignals& operator=(const NoSignals&) = delete;

 private:
  sigset_t callers_;
};

}  // namespace paceline
