// The floating-point mode every computation runs in, whatever the caller's: round to nearest, subnormals flushed, exceptions
// masked. Set on entry, put back on exit; a thread of somebody else's never keeps ours.
#pragma once

#include <xmmintrin.h>

namespace paceline::cpu {

class FloatMode {
 public:
  FloatMode() : callers_(_mm_getcsr()) { _mm_setcsr(kOurs); }
  ~FloatMode() { _mm_setcsr(callers_); }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
  static constexpr unsigned kOurs = 0x9fc0;  // FTZ, DAZ, all exceptions masked, nearest
  unsigned callers_;
};

}  // namespace paceline::cpu
