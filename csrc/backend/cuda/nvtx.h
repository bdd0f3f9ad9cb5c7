// Ranges and marks for Nsight, in the domain `paceline`: static names, registered once, with a number beside them. Without a profiler
// each call is a test of one pointer.
#pragma once

#include <nvtx3/nvToolsExt.h>

#include "backend/backend.h"

namespace paceline::cuda {

class Nvtx {
 public:
  Nvtx();
  ~Nvtx();
  Nvtx(const Nvtx&) = delete;
  Nvtx& operator=(const Nvtx&) = delete;

  void begin(Span span, int64_t payload);
  void end();
  void mark(Span span, int64_t payload);

 private:
  nvtxEventAttributes_t event(Span span, int64_t payload) const;

  nvtxDomainHandle_t domain_;
  nvtxStringHandle_t names_[kNumSpans];
};

}  // namespace paceline::cuda
