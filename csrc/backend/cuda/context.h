// The calling thread's CUDA context. Device work needs ours to be current; whoever embeds the engine may have another one there (torch
// on a second GPU) and gets it back. By the driver's own calls: cudaSetDevice makes a context, some hundred MB, on the device it
// goes back to, even where nobody uses that one.
#pragma once

struct CUctx_st;

namespace paceline::cuda {

using Context = CUctx_st*;

Context current_context();  // nullptr: none

// Makes `wanted` current for as long as this lives; then whatever was before is again.
class ContextScope {
 public:
  explicit ContextScope(Context wanted);
  ~ContextScope();
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;

 private:
  Context before_;
};

}  // namespace paceline::cuda
