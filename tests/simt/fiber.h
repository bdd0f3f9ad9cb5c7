// A thread of a block: a fiber with a stack of its own, and what is known of it between two turns.
#pragma once

#include <vector>

#include "simt/simt.h"

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

constexpr size_t kStack = 256 << 10;
constexpr int kMostThreads = 1024;

enum class State { runnable, at_barrier, at_exchange, at_wait, done };

// Read when it is sent, which is as early as can be, and there when it is waited for, which is as late: until then its place is garbage.
struct CopyOnItsWay {
  void* to;
  size_t count;
  unsigned char bytes[16];
};

struct Fiber {
  void* stack_pointer;
  void* fake_stack;  // AddressSanitizer's
  uint3 index;
  State state;
  bool has_waited;  // for the grids before
  unsigned mask;    // of the exchange it waits in
  unsigned long long received[32];
  std::vector<std::vector<CopyOnItsWay>> copies;  // in groups; the newest one is open
};

struct Warp {
  unsigned arrived;
  unsigned long long values[32];
};

}  // namespace simt
