#include "async/bell.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace paceline {

Bell::Bell() : descriptor_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (descriptor_ < 0) throw CapacityError(message("[Request] no file descriptor to wake the event loop with: ", std::strerror(errno)));
}

Bell::~Bell() { close(descriptor_); }

// One write however many ring before the loop looks.
void Bell::ring(int64_t who) noexcept {
  const std::lock_guard lock(mutex_);
  const bool silent = who_.empty() && !anyone_;
  try {
    who_.push_back(who);
  } catch (const std::bad_alloc&) {
    anyone_ = true;
  }
  if (!silent) return;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(descriptor_, &one, sizeof one);  // fails only where it is readable already
}

std::vector<int64_t> Bell::rung() {
  const std::lock_guard lock(mutex_);
  uint64_t count;
  [[maybe_unused]] const ssize_t size = read(descriptor_, &count, sizeof count);
  if (std::exchange(anyone_, false)) who_.clear();
  return std::exchange(who_, {});
}

}  // namespace paceline
