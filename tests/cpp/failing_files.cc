// A layer over read and write that fails where a test says: preloaded into a Python (tests/python/test_resources.py), which arms it through
// ctypes. Calls are counted on files below one directory alone, so that the interpreter's own go through.
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

namespace {

enum Mode { kOnce, kEver, kShort, kFull };  // EIO at the n-th read, or from there on; reads of a few bytes; ENOSPC at the n-th write

char directory[4096] = "";
std::atomic<long> countdown{0}, seen{0};
std::atomic<int> mode{kOnce};

bool is_ours(int descriptor) {
  if (!directory[0]) return false;
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  return length > 0 && strncmp(path, directory, strlen(directory)) == 0;
}

// True where this call has to fail.
bool is_due(int descriptor, bool writes) {
  if (!is_ours(descriptor) || writes != (mode == kFull)) return false;
  ++seen;
  const long left = --countdown;
  if (left == 0 || (left < 0 && (mode == kEver || mode == kFull))) {
    errno = mode == kFull ? ENOSPC : EIO;
    return mode != kShort;
  }
  return false;
}

size_t allowed(int descriptor, size_t count) { return mode == kShort && is_ours(descriptor) ? std::min<size_t>(count, 1 + count / 3) : count; }

template <class Function>
Function next(Function, const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void failing_files_arm(const char* where, long n, int how) {
  snprintf(directory, sizeof directory, "%s", where);
  countdown = n, mode = how, seen = 0;
}
EXPORTED long failing_files_seen() { return seen; }

EXPORTED ssize_t read(int descriptor, void* to, size_t count) {
  static const auto real = next(&read, "read");
  return is_due(descriptor, false) ? -1 : real(descriptor, to, allowed(descriptor, count));
}
EXPORTED ssize_t pread64(int descriptor, void* to, size_t count, off64_t at) {
  static const auto real = next(&pread64, "pread64");
  return is_due(descriptor, false) ? -1 : real(descriptor, to, allowed(descriptor, count), at);
}
EXPORTED ssize_t preadv64v2(int descriptor, const iovec* parts, int count, off64_t at, int flags) {
  static const auto real = next(&preadv64v2, "preadv64v2");
  if (is_due(descriptor, false)) return -1;
  iovec first = parts[0];
  first.iov_len = allowed(descriptor, first.iov_len);
  return mode == kShort && is_ours(descriptor) ? real(descriptor, &first, 1, at, flags) : real(descriptor, parts, count, at, flags);
}
EXPORTED ssize_t write(int descriptor, const void* from, size_t count) {
  static const auto real = next(&write, "write");
  return is_due(descriptor, true) ? -1 : real(descriptor, from, count);
}
