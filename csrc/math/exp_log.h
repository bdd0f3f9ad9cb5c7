// exp, log and log1p in double: our own polynomials, so that the bits are the same on every machine and backend.
// Relative error below 3 ulp over the ranges stated (tests/cpp/math_test.cc measures it against long double).
#pragma once

#include "math/platform.h"

namespace paceline {

constexpr double kLn2Hi = 0x1.62e42fefa3800p-1;   // ln 2, low 11 bits clear: n * kLn2Hi is exact for |n| < 2^11
constexpr double kLn2Lo = 0x1.ef35793c76730p-45;  // ln 2 - kLn2Hi
constexpr double kLog2E = 0x1.71547652b82fep+0;

// e^x for x <= 709; 0 below -708 (no subnormal results: the engine flushes them anyway). NaN gives 0.
PACELINE_HD double exp_of(double x) {
  if (!(x >= -708.0)) return 0.0;
  const double shifted = fma(x, kLog2E, 0x1.8p52);  // the integer n = round(x log2 e) sits in the low bits
  const double n = shifted - 0x1.8p52;
  const double r = fma(-n, kLn2Lo, fma(-n, kLn2Hi, x));  // |r| <= 0.347
  double p = 1.0 / 6227020800.0;                         // Taylor to r^13: the next term is below 5e-18
  p = fma(p, r, 1.0 / 479001600.0);
  p = fma(p, r, 1.0 / 39916800.0);
  p = fma(p, r, 1.0 / 3628800.0);
  p = fma(p, r, 1.0 / 362880.0);
  p = fma(p, r, 1.0 / 40320.0);
  p = fma(p, r, 1.0 / 5040.0);
  p = fma(p, r, 1.0 / 720.0);
  p = fma(p, r, 1.0 / 120.0);
  p = fma(p, r, 1.0 / 24.0);
  p = fma(p, r, 1.0 / 6.0);
  p = fma(p, r, 0.5);
  p = fma(p, r, 1.0);
  p = fma(p, r, 1.0);
  return p * double_from_bits((bits_of(shifted) + 1023) << 52);
}

// ln x for normal positive x.
PACELINE_HD double log_of(double x) {
  const uint64_t bits = bits_of(x);
  // x = m 2^n with m in [sqrt(1/2), sqrt(2)): subtracting the bits of sqrt(1/2) makes the exponent field count from there.
  const uint64_t offset = bits - 0x3fe6a09e667f3bcdull;
  const int64_t n = int64_t(offset) >> 52;
  const double m = double_from_bits(bits - (uint64_t(n) << 52));
  const double f = m - 1.0;  // exact
  const double s = f / (2.0 + f), z = s * s;
  double p = 1.0 / 23.0;  // ln m = 2 atanh s = 2 s (1 + z/3 + z^2/5 + ...), z <= 0.0295
  p = fma(p, z, 1.0 / 21.0);
  p = fma(p, z, 1.0 / 19.0);
  p = fma(p, z, 1.0 / 17.0);
  p = fma(p, z, 1.0 / 15.0);
  p = fma(p, z, 1.0 / 13.0);
  p = fma(p, z, 1.0 / 11.0);
  p = fma(p, z, 1.0 / 9.0);
  p = fma(p, z, 1.0 / 7.0);
  p = fma(p, z, 1.0 / 5.0);
  p = fma(p, z, 1.0 / 3.0);
  // 2 s = f - s f exactly; written so, the leading term f carries no rounding.
  const double tail = fma(2.0 * s * z, p, double(n) * kLn2Lo);
  return fma(double(n), kLn2Hi, f + (tail - s * f));
}

// -ln(1 - y) for y in (0, 1 - 2^-53]. The rounding of 1 - y is put back by a first-order term.
PACELINE_HD double minus_log1m(double y) {
  const double u = 1.0 - y;
  const double lost = (1.0 - u) - y;  // exact: 1 - y = u + lost
  return -(log_of(u) + lost / u);
}

}  // namespace paceline
