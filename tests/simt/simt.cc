// Fibers for the threads of a block, and who runs next: simt.h.
#include "backend/cuda/launch.cuh"

#include <sys/mman.h>
#include <xmmintrin.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

// Saves what a function call must preserve on this stack and goes on with another one.
extern "C" void simt_switch(void** save, void* to);
asm(R"(
.text
.globl simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");

namespace simt {
namespace {

constexpr size_t kStack = 256 << 10;
constexpr int kMostThreads = 1024;

enum class State { runnable, at_barrier, at_exchange, done };

struct Fiber {
  void* stack_pointer;
  void* fake_stack;  // AddressSanitizer's
  uint3 index;
  State state;
  unsigned mask;  // of the exchange it waits in
  unsigned long long received[32];
};

struct Warp {
  unsigned arrived;
  unsigned long long values[32];
};

class Block {
 public:
  Block() : stacks_(static_cast<char*>(mmap(nullptr, kStack * kMostThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    if (stacks_ == MAP_FAILED) throw std::runtime_error("[simt] no memory for the stacks of a block");
  }
  ~Block() { munmap(stacks_, kStack * kMostThreads); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void run(int threads, const std::function<void()>& body) {
    body_ = &body;
    fibers_.assign(threads, {});
    warps_.assign((threads + 31) / 32, {});
    at_barrier_ = 0, alive_ = threads, failure_.clear();
    for (int i = 0; i < threads; ++i) prepare(i);
    std::vector<int> order(threads);
    std::iota(order.begin(), order.end(), 0);
    if (schedule().order == Order::reverse) std::reverse(order.begin(), order.end());
    while (alive_) {
      if (schedule().order == Order::shuffled) std::shuffle(order.begin(), order.end(), random_);
      bool ran = false;
      for (int i : order) {
        if (fibers_[i].state != State::runnable) continue;
        ran = true;
        resume(i);
        if (!failure_.empty()) throw std::runtime_error(failure_);
      }
      if (!ran) throw std::runtime_error("[simt] " + std::to_string(at_barrier_) + " of " + std::to_string(alive_) +
                                         " living threads wait at a block barrier, the others in a warp operation or nowhere");
    }
  }

  void barrier() {
    if (alive_ != int(fibers_.size())) fail("a block barrier is reached after another thread has ended");
    if (++at_barrier_ == alive_) {
      at_barrier_ = 0;
      for (Fiber& each : fibers_)
        if (each.state == State::at_barrier) each.state = State::runnable;
      return;
    }
    fibers_[current_].state = State::at_barrier;
    yield();
  }

  const unsigned long long* exchange(unsigned mask, unsigned long long value) {
    Fiber& me = fibers_[current_];
    Warp& warp = warps_[current_ / 32];
    const int lane = current_ % 32, first = current_ - lane;
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

  int lane() const { return current_ % 32; }
  std::vector<unsigned char> shared;

 private:
  char* stack_of(int i) { return stacks_ + size_t(i) * kStack; }

  void prepare(int i) {
    fibers_[i] = {nullptr, nullptr, {unsigned(i), 0, 0}, State::runnable, 0, {}};
    void** top = reinterpret_cast<void**>(stack_of(i) + kStack - 64);
    *--top = nullptr;                                  // nobody to return to; also keeps the stack aligned as at a call
    *--top = reinterpret_cast<void*>(&Block::enter);
    for (int registers = 0; registers < 6; ++registers) *--top = nullptr;
    fibers_[i].stack_pointer = top;
  }

  void resume(int i) {
    current_ = i;
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
    Fiber& me = fibers_[current_];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &me.fake_stack, bottom_, size_);
#else
    (void)for_good;
#endif
    simt_switch(&me.stack_pointer, stack_pointer_);
    entered(me.fake_stack);
  }

  void entered([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &bottom_, &size_);
#endif
  }

  void fail(const std::string& why) {
    failure_ = "[simt] thread " + std::to_string(current_) + " of block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) +
               ", " + std::to_string(blockIdx.z) + "): " + why;
    yield();
  }

  static void enter();

  char* stacks_;
  const std::function<void()>* body_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::mt19937 random_{1};
  std::string failure_;
  void* stack_pointer_ = nullptr;  // of the scheduler
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  int current_ = -1, at_barrier_ = 0, alive_ = 0;
};

Block& block() {
  static auto* the = new Block;  // stacks outlive every test
  return *the;
}

void Block::enter() {
  Block& self = block();
  self.entered(nullptr);
  try {
    (*self.body_)();
  } catch (const std::exception& error) {
    self.failure_ = error.what();
  }
  self.fibers_[self.current_].state = State::done;
  --self.alive_;
  if (self.at_barrier_) self.failure_ = "[simt] a thread ended while others wait at a block barrier";
  self.yield(true);
  std::abort();
}

// The build gives kernels the CPU engine's floating-point mode (nvcc -ftz=true); here it is the thread's, for as long as they run.
class FlushMode {
 public:
  FlushMode() : callers_(_mm_getcsr()) { _mm_setcsr(0x9fc0); }  // FTZ, DAZ, nearest, all exceptions masked
  ~FlushMode() { _mm_setcsr(callers_); }

 private:
  unsigned callers_;
};

}  // namespace

Schedule& schedule() {
  static Schedule the;
  return the;
}

void run_grid(dim3 blocks, int threads, size_t shared_bytes, const std::function<void()>& body) {
  if (threads < 1 || threads > kMostThreads) throw std::runtime_error("[simt] a block of " + std::to_string(threads) + " threads");
  if (shared_bytes > paceline::cuda::kMostSharedBytes)
    throw std::runtime_error("[simt] a block may have 99 KiB of shared memory, asked for " + std::to_string(shared_bytes) + " bytes");
  const FlushMode mode;
  gridDim = blocks;
  blockDim = dim3(threads);
  std::vector<size_t> order(size_t(blocks.x) * blocks.y * blocks.z);
  std::iota(order.begin(), order.end(), size_t(0));
  if (schedule().order == Order::reverse) std::reverse(order.begin(), order.end());
  if (schedule().order == Order::shuffled) std::shuffle(order.begin(), order.end(), std::mt19937(schedule().seed));
  for (size_t i : order) {
    blockIdx = {unsigned(i % blocks.x), unsigned(i / blocks.x % blocks.y), unsigned(i / blocks.x / blocks.y)};
    block().shared = std::vector<unsigned char>(shared_bytes, 0xCB);  // exactly as long as asked for, and garbage
    block().run(threads, body);
  }
}

unsigned char* block_shared_memory() { return block().shared.data(); }
void block_barrier() { block().barrier(); }
const unsigned long long* exchange(unsigned mask, unsigned long long value) { return block().exchange(mask, value); }
int lane() { return block().lane(); }

}  // namespace simt
