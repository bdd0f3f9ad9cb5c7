// A block of threads, and who of them runs next: the inside of simt.cc.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>

#include "backend/cuda/launch.cuh"
#include "simt/fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

// What a launch asks for.
struct Grid {
  dim3 blocks;
  int threads;
  size_t shared_bytes;
  std::function<void()> body;
  std::weak_ptr<Grid> next;  // enqueued right behind it
};

class Block {
 public:
  Block()
      : stacks_(static_cast<char*>(mmap(nullptr, kStack * kMostThreads, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    if (stacks_ == MAP_FAILED) throw std::runtime_error("[simt] no memory for the stacks of a block");
  }
  ~Block() { munmap(stacks_, kStack * kMostThreads); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // The one whose thread runs.
  static Block*& current() {
    static Block* the = nullptr;
    return the;
  }

  // Its threads run as far as they get while the grids before are not done.
  void start_early(const Grid& grid, size_t number) {
    begin(grid, number);
    is_early_ = true;
    run_what_can();
  }
  // To the end: of a block that was started early, or of a new one.
  void run(const Grid& grid, size_t number) {
    begin(grid, number);
    finish();
  }
  void finish() {
    is_early_ = false;
    for (Fiber& each : fibers_)
      if (each.state == State::at_wait) each.state = State::runnable;
    run_what_can();
    if (!failure_.empty()) throw std::runtime_error(failure_);
    if (alive_) throw std::runtime_error("[simt] " + std::to_string(at_barrier_) + " of " + std::to_string(alive_) +
                                         " living threads wait at a block barrier, the others in a warp operation or nowhere");
  }

  void barrier() {
    if (alive_ != int(fibers_.size())) fail("a block barrier is reached after another thread has ended");
    if (++at_barrier_ == alive_) {
      at_barrier_ = 0;
      for (Fiber& each : fibers_)
        if (each.state == State::at_barrier) each.state = State::runnable;
      return;
    }
    fibers_[thread_].state = State::at_barrier;
    yield();
  }

  const unsigned long long* exchange(unsigned mask, unsigned long long value) {
    Fiber& me = fibers_[thread_];
    Warp& warp = warps_[thread_ / 32];
    const int lane = thread_ % 32, first = thread_ - lane;
    if (!(mask >> lane & 1)) fail("a lane calls a warp operation that its mask leaves out");
    warp.values[lane] = value;
    me.mask = mask;
    warp.arrived |= 1u << lane;
    unsigned living = 0;
    for (int i = 0; i < 32 && first + i < int(fibers_.size()); ++i) {
      const Fiber& other = fibers_[first + i];
      if (other.state != State::done) living |= 1u << i;
      if (warp.arrived >> i & 1 && other.mask != mask && mask >> i & 1) fail("lanes of a warp operation name different masks");
    }
    if ((mask & ~living) && mask != 0xffffffffu) fail("the mask of a warp operation names a lane that has ended");
    const unsigned wanted = mask & living;  // a warp that is not full, or partly ended, may say "all"
    if ((warp.arrived & wanted) == wanted) {
      warp.arrived &= ~wanted;
      for (int i = 0; i < 32; ++i) {
        if (!(wanted >> i & 1)) continue;
        Fiber& other = fibers_[first + i];
        std::memcpy(other.received, warp.values, sizeof warp.values);
        if (other.state == State::at_exchange) other.state = State::runnable;
      }
      return me.received;
    }
    me.state = State::at_exchange;
    yield();
    return me.received;
  }

  void wait_for_grids_before() {
    Fiber& me = fibers_[thread_];
    me.has_waited = true;
    if (!is_early_) return;
    me.state = State::at_wait;
    yield();
  }

  void send(void* to, const void* from, size_t bytes) {
    auto& groups = fibers_[thread_].copies;
    if (groups.empty()) groups.emplace_back();
    CopyOnItsWay copy{to, bytes, {}};
    std::memcpy(copy.bytes, from, bytes);
    groups.back().push_back(copy);
    std::memset(to, 0xCB, bytes);
  }
  void commit() {
    auto& groups = fibers_[thread_].copies;
    groups.resize(std::max<size_t>(groups.size(), 1) + 1);
  }
  void wait_for_copies(size_t newest) {
    auto& groups = fibers_[thread_].copies;
    const size_t arrived = groups.size() > newest + 1 ? groups.size() - newest - 1 : 0;
    for (size_t i = 0; i < arrived; ++i)
      for (const CopyOnItsWay& copy : groups[i]) std::memcpy(copy.to, copy.bytes, copy.count);
    groups.erase(groups.begin(), groups.begin() + long(arrived));
  }

  int lane() const { return thread_ % 32; }
  unsigned char* shared() { return shared_.data(); }

 private:
  char* stack_of(int i) { return stacks_ + size_t(i) * kStack; }

  void begin(const Grid& grid, size_t number) {
    body_ = &grid.body;
    size_ = grid.blocks;
    index_ = {unsigned(number % size_.x), unsigned(number / size_.x % size_.y), unsigned(number / size_.x / size_.y)};
    const unsigned char garbage = schedule().order == Order::reverse ? 0xFF : 0xCB;  // NaN, or a number that shows
    shared_ = std::vector<unsigned char>(grid.shared_bytes, garbage);               // exactly as long as asked for
    fibers_.assign(grid.threads, {});
    warps_.assign((grid.threads + 31) / 32, {});
    at_barrier_ = 0, alive_ = grid.threads, is_early_ = false, failure_.clear();
    for (int i = 0; i < grid.threads; ++i) prepare(i);
  }

  // Until nobody can go on.
  void run_what_can() {
    current() = this;
    gridDim = size_, blockIdx = index_, blockDim = dim3(unsigned(fibers_.size()));
    std::vector<int> order(fibers_.size());
    std::iota(order.begin(), order.end(), 0);
    if (schedule().order == Order::reverse) std::reverse(order.begin(), order.end());
    for (bool ran = true; ran && failure_.empty();) {
      ran = false;
      if (schedule().order == Order::shuffled) std::shuffle(order.begin(), order.end(), random_);
      for (int i : order) {
        if (fibers_[i].state != State::runnable) continue;
        ran = true;
        resume(i);
        if (!failure_.empty()) return;
      }
    }
  }

  void prepare(int i) {
    fibers_[i].index = {unsigned(i), 0, 0};
    void** top = reinterpret_cast<void**>(stack_of(i) + kStack - 64);
    *--top = nullptr;                                  // nobody to return to; also keeps the stack aligned as at a call
    *--top = reinterpret_cast<void*>(&Block::enter);
    for (int registers = 0; registers < 6; ++registers) *--top = nullptr;
    fibers_[i].stack_pointer = top;
  }

  void resume(int i) {
    thread_ = i;
    threadIdx = fibers_[i].index;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack_, stack_of(i), kStack);
#endif
    simt_switch(&stack_pointer_, fibers_[i].stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
  }

  void yield(bool for_good = false) {
    Fiber& me = fibers_[thread_];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &me.fake_stack, callers_bottom_, callers_size_);
#else
    (void)for_good;
#endif
    simt_switch(&me.stack_pointer, stack_pointer_);
    entered(me.fake_stack);
  }

  void entered([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &callers_bottom_, &callers_size_);
#endif
  }

  void note(const std::string& why) {
    failure_ = "[simt] thread " + std::to_string(thread_) + " of block (" + std::to_string(index_.x) + ", " + std::to_string(index_.y) +
               ", " + std::to_string(index_.z) + "): " + why;
  }
  void fail(const std::string& why) {
    note(why);
    yield();
  }

  static void enter() {
    Block& self = *current();
    self.entered(nullptr);
    try {
      (*self.body_)();
    } catch (const std::exception& error) {
      self.failure_ = error.what();
    }
    self.end();
    self.yield(true);
    std::abort();
  }

  void end() {
    Fiber& me = fibers_[thread_];
    me.state = State::done;
    --alive_;
    if (!failure_.empty()) return;
    if (at_barrier_) note("it ends while others wait at a block barrier");
    else if (!me.has_waited) note("it ends without having waited for the kernels before");
    else if (std::any_of(me.copies.begin(), me.copies.end(), [](const auto& group) { return !group.empty(); }))
      note("it ends while copies are on their way");
  }

  char* stacks_;
  const std::function<void()>* body_ = nullptr;
  dim3 size_;
  uint3 index_{};
  std::vector<unsigned char> shared_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::mt19937 random_{1};
  std::string failure_;
  bool is_early_ = false;
  void* stack_pointer_ = nullptr;  // of the scheduler
  void* fake_stack_ = nullptr;
  const void* callers_bottom_ = nullptr;
  size_t callers_size_ = 0;
  int thread_ = -1, at_barrier_ = 0, alive_ = 0;
};

}  // namespace simt
