#include "simt/runtime.h"

#include <cuda_profiler_api.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <vector>

#include "simt/simt.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#endif

struct CUgraph_st {
  std::vector<std::pair<const char*, std::function<void()>>> nodes;
};
struct CUgraphExec_st {
  CUgraph_st graph;
};
struct CUevent_st {
  std::chrono::steady_clock::time_point at;
  cudaStream_t stream = nullptr;
};
struct CUstream_st {
  int device = simt::current_device();
  std::deque<std::pair<const char*, std::function<void()>>> queue;
  CUgraph_st* capturing = nullptr;
  bool broken = false;  // the capture, by a call that cannot be captured
};

namespace simt {
namespace {

// Device memory: one stretch of addresses, closed but while work runs.
class Arena {
 public:
  Arena() : base_(static_cast<char*>(mmap(nullptr, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    if (base_ == MAP_FAILED) throw std::runtime_error("[simt] no addresses for device memory");
  }
  void* allocate(size_t bytes) {
    const size_t size = (bytes + 255) / 256 * 256 + kGap;
    auto free = free_.lower_bound(size);
    size_t at;
    if (free != free_.end() && free->first == size) {
      at = free->second;
      free_.erase(free);
    } else {
      if (used_ + size > kBytes) return nullptr;
      at = used_;
      used_ += size;
    }
    taken_[base_ + at] = {size, bytes};
    in_use_ += bytes;
    protect(at, size, PROT_READ | PROT_WRITE);
    ASAN_UNPOISON_MEMORY_REGION(base_ + at, bytes);
    std::memset(base_ + at, 0xCB, std::min(bytes, kFilled));
    ASAN_POISON_MEMORY_REGION(base_ + at + bytes, size - bytes);
    if (!opened_) protect(at, size, PROT_NONE);
    return base_ + at;
  }
  bool release(void* memory) {
    const auto found = taken_.find(static_cast<char*>(memory));
    if (found == taken_.end()) return false;
    ASAN_POISON_MEMORY_REGION(memory, found->second.second);
    free_.emplace(found->second.first, found->first - base_);
    in_use_ -= found->second.second;
    taken_.erase(found);
    return true;
  }
  bool owns(const void* at) const { return at >= base_ && at < base_ + kBytes; }
  void open() { if (opened_++ == 0) protect(0, used_, PROT_READ | PROT_WRITE); }
  void close() { if (--opened_ == 0) protect(0, used_, PROT_NONE); }
  size_t in_use() const { return in_use_; }

 private:
  static constexpr size_t kBytes = size_t(8) << 30, kGap = 4096, kFilled = 4 << 20;  // of a large allocation the rest is zeros, and costs nothing until it is touched
  void protect(size_t at, size_t bytes, int how) { mprotect(base_ + at / 4096 * 4096, (at % 4096 + bytes + 4095) / 4096 * 4096, how); }
  char* base_;
  size_t used_ = 0, in_use_ = 0;
  int opened_ = 0;
  std::map<char*, std::pair<size_t, size_t>> taken_;  // [size with gap, bytes asked for]
  std::multimap<size_t, size_t> free_;
};

Arena& arena() {
  static auto* the = new Arena;
  return *the;
}

struct Runtime {
  std::map<std::string, int> calls;
  int until_failure = 0, nodes = 0;
  std::string failed, fault;  // fault: what a kernel died of; sticks, as on a device
};
Runtime& runtime() {
  static auto* the = new Runtime;
  return *the;
}

void run_next(CUstream_st& stream) {
  const auto work = std::move(stream.queue.front());
  stream.queue.pop_front();
  if (!runtime().fault.empty()) return;
  try {
    work.second();
  } catch (const std::exception& error) {
    runtime().fault = error.what();
  }
}

// Opening takes longer than most pieces of work, so several are done at a time.
void run_some(CUstream_st& stream, int most) {
  arena().open();
  for (int i = 0; i < most && !stream.queue.empty(); ++i) run_next(stream);
  arena().close();
}

cudaError_t drain(cudaStream_t stream) {
  while (!stream->queue.empty()) run_some(*stream, 1 << 20);
  return runtime().fault.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}


std::set<cudaStream_t>& streams() {
  static auto* the = new std::set<cudaStream_t>;
  return *the;
}
void drain_all() {
  for (cudaStream_t stream : streams()) drain(stream);
}

// Ordered work: into the graph being captured, or the stream's queue.
void submit(CUstream_st& stream, const char* what, std::function<void()> work) {
  if (stream.capturing) stream.capturing->nodes.emplace_back(what, std::move(work));
  else stream.queue.emplace_back(what, std::move(work));
}

// A host buffer that is pageable is read (written) before the call returns, pinned memory when its turn comes.
std::map<const char*, size_t>& pinned() {
  static auto* the = new std::map<const char*, size_t>;
  return *the;
}
bool is_pinned(const void* at) {
  auto after = pinned().upper_bound(static_cast<const char*>(at));
  return after != pinned().begin() && at < std::prev(after)->first + std::prev(after)->second;
}

// Calls that a device refuses to a thread that captures; the capture is lost.
bool breaks_a_capture(const std::string& name) {
  static const std::set<std::string> unsafe{"cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost", "cudaStreamQuery", "cudaEventSynchronize"};
  if (!unsafe.count(name)) return false;
  bool broken = false;
  for (cudaStream_t stream : streams())
    if (stream->capturing) broken = stream->broken = true;
  return broken;
}

}  // namespace

cudaError_t called(const char* name) {
  Runtime& r = runtime();
  ++r.calls[name];
  if (!r.fault.empty()) return cudaErrorLaunchFailure;
  if (breaks_a_capture(name)) return cudaErrorStreamCaptureUnsupported;
  if (r.until_failure > 0 && --r.until_failure == 0) {
    r.failed = name;
    return cudaErrorUnknown;
  }
  return cudaSuccess;
}

cudaError_t enqueue(cudaStream_t stream, const char* what, std::function<void()> work) {
  if (const cudaError_t error = called(what)) return error;
  if (stream->device != current_device()) return cudaErrorInvalidResourceHandle;
  submit(*stream, what, std::move(work));
  return cudaSuccess;
}

int num_calls(const std::string& name) {
  int all = 0;
  for (const auto& [each, count] : runtime().calls)
    if (name.empty() || each == name) all += count;
  return all;
}
void reset_calls() { runtime().calls.clear(); }
void fail_call(int n) {
  runtime().until_failure = n;
  runtime().failed.clear();
  runtime().fault.clear();
}
std::string failed_call() { return runtime().failed; }
size_t num_pending() {
  size_t all = 0;
  for (cudaStream_t stream : streams()) all += stream->queue.size();
  return all;
}
int num_graph_nodes() { return runtime().nodes; }
size_t device_bytes_in_use() { return arena().in_use(); }

}  // namespace simt

using simt::called;

// ------------------------------------------------------------------------------------------------ errors
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    default: return "cudaErrorUnknown";
  }
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? simt::runtime().fault.c_str() : "an error of the stub runtime";
}

// ------------------------------------------------------------------------------------------------ memory
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (const cudaError_t error = called("cudaMalloc")) return error;
  simt::use_device();
  *memory = simt::arena().allocate(bytes);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
// Frees wait for whatever runs, and free even where they report that something before has failed.
cudaError_t cudaFree(void* memory) {
  simt::drain_all();
  const cudaError_t error = called("cudaFree");
  if (error) return simt::arena().release(memory), error;
  return !memory || simt::arena().release(memory) ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  if (const cudaError_t error = called("cudaHostAlloc")) return error;
  *memory = std::malloc(bytes);
  std::memset(*memory, 0xCB, bytes);
  simt::pinned()[static_cast<char*>(*memory)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  simt::drain_all();
  simt::pinned().erase(static_cast<char*>(memory));
  std::free(memory);
  return called("cudaFreeHost");
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) { return *device = host, called("cudaHostGetDevicePointer"); }
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return simt::enqueue(stream, "cudaMemsetAsync", [=] { std::memset(to, value, bytes); });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const bool pageable_source = kind == cudaMemcpyHostToDevice && !simt::is_pinned(from);
  const bool pageable_target = kind == cudaMemcpyDeviceToHost && !simt::is_pinned(to);
  if (stream->capturing && (pageable_source || pageable_target)) return cudaErrorStreamCaptureUnsupported;
  if (pageable_source) {
    auto copy = std::make_shared<std::vector<char>>(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
    return simt::enqueue(stream, "cudaMemcpyAsync", [=] { std::memcpy(to, copy->data(), bytes); });
  }
  const cudaError_t error = simt::enqueue(stream, "cudaMemcpyAsync", [=] { std::memcpy(to, from, bytes); });
  return error == cudaSuccess && pageable_target ? simt::drain(stream) : error;
}

// ------------------------------------------------------------------------------------------------ streams, events, graphs
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  if (const cudaError_t error = called("cudaStreamCreateWithFlags")) return error;
  simt::streams().insert(*stream = new CUstream_st);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  simt::drain(stream);
  simt::streams().erase(stream);
  delete stream;
  return called("cudaStreamDestroy");
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t error = called("cudaStreamSynchronize")) return error;
  if (stream->capturing) return cudaErrorStreamCaptureUnsupported;
  return simt::drain(stream);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (const cudaError_t error = called("cudaStreamQuery")) return error;
  simt::run_some(*stream, 24);
  if (!simt::runtime().fault.empty()) return cudaErrorLaunchFailure;
  return stream->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  if (const cudaError_t error = called("cudaEventCreateWithFlags")) return error;
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, called("cudaEventDestroy"); }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->stream = stream;
  return simt::enqueue(stream, "cudaEventRecord", [=] { event->at = std::chrono::steady_clock::now(); });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const cudaError_t error = called("cudaEventSynchronize")) return error;
  return event->stream ? simt::drain(event->stream) : cudaSuccess;  // never recorded: done
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->at - begin->at).count();
  return called("cudaEventElapsedTime");
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (const cudaError_t error = called("cudaStreamBeginCapture")) return error;
  stream->capturing = new CUgraph_st;
  stream->broken = false;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = std::exchange(stream->capturing, nullptr);
  if (stream->broken) {
    delete std::exchange(*graph, nullptr);
    return cudaErrorStreamCaptureInvalidated;
  }
  return called("cudaStreamEndCapture");
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (const cudaError_t error = called("cudaGraphInstantiate")) return error;
  *exec = new CUgraphExec_st{*graph};
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return called("cudaGraphUpload"); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (const cudaError_t error = called("cudaGraphLaunch")) return error;
  if (stream->device != simt::current_device()) return cudaErrorInvalidResourceHandle;
  simt::runtime().nodes = int(exec->graph.nodes.size());
  for (const auto& [what, work] : exec->graph.nodes) stream->queue.emplace_back(what, work);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, called("cudaGraphDestroy"); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return delete exec, called("cudaGraphExecDestroy"); }
cudaError_t cudaProfilerStart() { return called("cudaProfilerStart"); }
cudaError_t cudaProfilerStop() { return called("cudaProfilerStop"); }
