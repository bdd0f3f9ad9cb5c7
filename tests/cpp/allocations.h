// Every allocation of a test program, counted, and made to fail at will: operator new in all its forms, and the aligned_alloc and free of
// backend memory (by the linker's --wrap, see CMakeLists.txt). Included by one file of a program only: it defines those functions.
#pragma once

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>

extern "C" {
void* __real_aligned_alloc(size_t alignment, size_t bytes);
void __real_free(void* memory);
}

namespace paceline::test {

// Of the whole process, threads of an engine's own included.
class Allocations {
 public:
  enum Kind { kNew, kBuffer };  // of operator new; of backend memory
  static long calls(Kind kind) { return calls_[kind]; }
  static long live() { return live_[kNew] + live_[kBuffer]; }
  // Of backend memory that is there, as it was asked for.
  static long buffer_bytes() {
    const std::lock_guard lock(mutex_);
    long total = 0;
    for (const Block& each : blocks_) total += long(each.bytes);
    return total;
  }
  // Live bytes at their most since the last reset, as the system counts them: not less than asked for.
  static void reset_bytes() { bytes_ = most_ = 0; }
  static long most_bytes() { return most_; }

  // The n-th call from here on fails, alone or with all that follow.
  static void arm(long n, bool and_all_after) {
    failed_ = counted_ = 0, for_good_ = and_all_after;
    fail_at_ = n;
  }
  // How many have failed.
  static long disarm() {
    fail_at_ = 0;
    return failed_;
  }

  // Null where it fails.
  static void* take(Kind kind, size_t bytes, size_t alignment) noexcept {
    ++calls_[kind];
    if (fails()) return nullptr;
    void* memory = alignment ? __real_aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment) : std::malloc(bytes ? bytes : 1);
    if (memory) count(kind, memory, 1);
    if (memory && kind == kBuffer) replace(nullptr, {memory, bytes});
    return memory;
  }
  static void give(Kind kind, void* memory) noexcept {
    if (!memory) return;
    count(kind, memory, -1);
    if (kind == kBuffer) replace(memory, {nullptr, 0});
    __real_free(memory);
  }
  static void* or_throw(void* memory) {
    if (!memory) throw std::bad_alloc();
    return memory;
  }

 private:
  static bool fails() {
    const long at = fail_at_;
    if (!at) return false;
    const long n = ++counted_;
    const bool does = for_good_ ? n >= at : n == at;
    failed_ += does;
    return does;
  }
  static void count(Kind kind, void* memory, int sign) {
    live_[kind] += sign;
    const long now = bytes_ += sign * long(malloc_usable_size(memory));
    for (long before = most_; before < now && !most_.compare_exchange_weak(before, now);) {
    }
  }
  static inline std::atomic<long> calls_[2], live_[2], bytes_, most_, counted_, failed_, fail_at_;
  static inline std::atomic<bool> for_good_;

  struct Block {
    void* memory;
    size_t bytes;
  };
  static void replace(void* memory, Block block) {
    const std::lock_guard lock(mutex_);
    for (Block& each : blocks_)
      if (each.memory == memory) {
        each = block;
        return;
      }
    std::abort();  // more blocks than there is room for
  }
  static inline std::mutex mutex_;
  static inline Block blocks_[4096];
};

}  // namespace paceline::test

using PacelineAllocations = paceline::test::Allocations;
extern "C" void* __wrap_aligned_alloc(size_t alignment, size_t bytes) {
  return PacelineAllocations::take(PacelineAllocations::kBuffer, bytes, alignment);
}
extern "C" void __wrap_free(void* memory) { PacelineAllocations::give(PacelineAllocations::kBuffer, memory); }

void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return PacelineAllocations::take(PacelineAllocations::kNew, bytes, 0); }
void* operator new(size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return PacelineAllocations::take(PacelineAllocations::kNew, bytes, size_t(alignment));
}
void* operator new(size_t bytes) { return PacelineAllocations::or_throw(operator new(bytes, std::nothrow)); }
void* operator new(size_t bytes, std::align_val_t alignment) { return PacelineAllocations::or_throw(operator new(bytes, alignment, std::nothrow)); }
void* operator new[](size_t bytes) { return operator new(bytes); }
void* operator new[](size_t bytes, const std::nothrow_t& quiet) noexcept { return operator new(bytes, quiet); }
void* operator new[](size_t bytes, std::align_val_t alignment) { return operator new(bytes, alignment); }
void* operator new[](size_t bytes, std::align_val_t alignment, const std::nothrow_t& quiet) noexcept { return operator new(bytes, alignment, quiet); }

void operator delete(void* memory) noexcept { PacelineAllocations::give(PacelineAllocations::kNew, memory); }
void operator delete(void* memory, size_t) noexcept { operator delete(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { operator delete(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { operator delete(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { operator delete(memory); }
void operator delete(void* memory, std::align_val_t, const std::nothrow_t&) noexcept { operator delete(memory); }
void operator delete[](void* memory) noexcept { operator delete(memory); }
void operator delete[](void* memory, size_t) noexcept { operator delete(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { operator delete(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { operator delete(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { operator delete(memory); }
void operator delete[](void* memory, std::align_val_t, const std::nothrow_t&) noexcept { operator delete(memory); }
