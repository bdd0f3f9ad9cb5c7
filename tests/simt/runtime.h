// A stub of the CUDA runtime for tests: the calls the engine makes, with the properties that could go wrong on a device.
//
//   * Work is done late: when somebody waits for it, or a piece at a time when a stream is asked whether it is done.
//   * Device memory can be touched only while a piece of work runs: the host that reads it otherwise meets a segmentation fault.
//     It starts as garbage, and allocations lie between gaps that AddressSanitizer watches.
//   * Every call is counted by name, and any one of them can be made to fail.
#pragma once

#include <string>

#include <cuda_runtime_api.h>

namespace simt {

// Calls since reset_calls, of one name or (empty) of all.
int num_calls(const std::string& name = "");
void reset_calls();
// The n-th call from now on (1 = the next) answers with an error, and those after it are sound again. 0: none.
void fail_call(int n);
// Name of the call that was made to fail; empty: none was.
std::string failed_call();

// Counts a call of this name; its answer.
cudaError_t called(const char* name);

size_t num_pending();          // pieces of work that streams have not begun
int num_graph_nodes();         // of the graph launched last
size_t device_bytes_in_use();

// devices.cc
int current_device();               // of this thread's context; 0 without one
void use_device();                  // something is made in the current device's context
bool device_was_used(int device);
void set_device_count(int count);   // 1 at first, 4 at most
void set_code_is_missing(bool missing);  // kernels were built for other devices

}  // namespace simt
