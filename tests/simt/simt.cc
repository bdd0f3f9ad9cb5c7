// Grids, one after the other, and what a device would start of the next one early: simt.h.
#include "simt/simt.h"

#include <xmmintrin.h>

#include <deque>

#include "simt/block.h"
#include "simt/runtime.h"

namespace simt {
namespace {

// The build gives kernels the CPU engine's floating-point mode (nvcc -ftz=true); here it is the thread's, for as long as they run.
class FlushMode {
 public:
  FlushMode() : callers_(_mm_getcsr()) { _mm_setcsr(0x9fc0); }  // FTZ, DAZ, nearest, all exceptions masked
  ~FlushMode() { _mm_setcsr(callers_); }

 private:
  unsigned callers_;
};

constexpr size_t kAhead = 4;  // grids started early at a time; on a device as many as find room

// A block of a grid whose turn has not come. One is enough to meet whatever a kernel does before it waits.
struct Started {
  std::shared_ptr<Grid> grid;
  size_t number = 0;  // of the block in the grid
  std::unique_ptr<Block> block;
};

// Where blocks run.
struct Stage {
  Block common;
  std::deque<Started> ahead;                  // in the order of their turns
  std::vector<std::unique_ptr<Block>> spare;  // stacks are dear
};
Stage& stage() {
  static auto* the = new Stage;  // stacks outlive every test
  return *the;
}

// The launch that was enqueued last, and how many calls there had been by then.
struct Newest {
  cudaStream_t stream = nullptr;
  std::weak_ptr<Grid> grid;
  int launches = 0, calls = 0;
};
Newest& newest() {
  static auto* the = new Newest;
  return *the;
}

std::vector<size_t> order_of(const Grid& grid) {
  std::vector<size_t> order(size_t(grid.blocks.x) * grid.blocks.y * grid.blocks.z);
  std::iota(order.begin(), order.end(), size_t(0));
  if (schedule().order == Order::reverse) std::reverse(order.begin(), order.end());
  if (schedule().order == Order::shuffled) std::shuffle(order.begin(), order.end(), std::mt19937(schedule().seed));
  return order;
}

void check_size(const Grid& grid) {
  if (grid.threads < 1 || grid.threads > kMostThreads)
    throw std::runtime_error("[simt] a block of " + std::to_string(grid.threads) + " threads");
  if (grid.shared_bytes > paceline::cuda::kMostSharedBytes)
    throw std::runtime_error("[simt] a block may have 99 KiB of shared memory, asked for " + std::to_string(grid.shared_bytes) + " bytes");
}

void start_early(const std::shared_ptr<Grid>& grid) {
  check_size(*grid);
  Stage& s = stage();
  if (s.spare.empty()) s.spare.push_back(std::make_unique<Block>());
  s.ahead.push_back({grid, order_of(*grid).at(0), std::move(s.spare.back())});
  s.spare.pop_back();
  s.ahead.back().block->start_early(*grid, s.ahead.back().number);
}

// What was started of the grid whose turn it is, if anything. Whatever was to come before it never will.
Started take_turn(const std::shared_ptr<Grid>& grid) {
  Stage& s = stage();
  while (!s.ahead.empty()) {
    Started first = std::move(s.ahead.front());
    s.ahead.pop_front();
    if (first.grid == grid) return first;
    s.spare.push_back(std::move(first.block));
  }
  return {};
}

void start_followers(const Grid& grid) {
  std::shared_ptr<Grid> next = grid.next.lock();
  for (size_t i = 0; next && i < kAhead; ++i, next = next->next.lock())
    if (i >= stage().ahead.size()) start_early(next);
}

void run_grid(const std::shared_ptr<Grid>& grid) {
  check_size(*grid);
  const FlushMode mode;
  Started begun = take_turn(grid);
  start_followers(*grid);
  if (begun.block) {
    begun.block->finish();
    stage().spare.push_back(std::move(begun.block));
  }
  for (size_t number : order_of(*grid))
    if (!begun.grid || number != begun.number) stage().common.run(*grid, number);
}

}  // namespace

Schedule& schedule() {
  static Schedule the;
  return the;
}

cudaError_t launch_grid(cudaStream_t stream, dim3 blocks, int threads, size_t shared_bytes, std::function<void()> body) {
  const auto grid = std::make_shared<Grid>(Grid{blocks, threads, shared_bytes, std::move(body), {}});
  Newest& last = newest();
  const auto before = last.grid.lock();
  const bool follows = before && last.stream == stream && last.launches == num_calls("launch") && last.calls == num_calls();
  if (const cudaError_t error = enqueue(stream, "launch", [grid] { run_grid(grid); })) return error;
  if (follows) before->next = grid;  // nothing else was called in between, let alone enqueued
  last = {stream, grid, num_calls("launch"), num_calls()};
  return cudaSuccess;
}

unsigned char* block_shared_memory() { return Block::current()->shared(); }
void block_barrier() { Block::current()->barrier(); }
const unsigned long long* exchange(unsigned mask, unsigned long long value) { return Block::current()->exchange(mask, value); }
int lane() { return Block::current()->lane(); }
void wait_for_grids_before() { Block::current()->wait_for_grids_before(); }
void send_copy(void* to, const void* from, size_t bytes) { Block::current()->send(to, from, bytes); }
void commit_copies() { Block::current()->commit(); }
void wait_for_copies(int newest) { Block::current()->wait_for_copies(size_t(newest)); }

}  // namespace simt
