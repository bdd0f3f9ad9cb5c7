// bf16 and fp16 as bit patterns: conversions to and from fp32, the same on every machine.
#pragma once

#include "math/platform.h"

namespace paceline {

using bf16 = uint16_t;

PACELINE_HD float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

PACELINE_HD uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

PACELINE_HD float from_bf16(bf16 value) { return float_from_bits(uint32_t(value) << 16); }

// Round to nearest even; NaN stays NaN (its payload is cut, so one bit of it is forced).
PACELINE_HD bf16 to_bf16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16((bits >> 16) | 0x40u);
  return bf16((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Exact: every fp16 value is an fp32 value.
PACELINE_HD float from_fp16(uint16_t value) {
  const uint32_t sign = uint32_t(value & 0x8000u) << 16, exponent = (value >> 10) & 31u, fraction = value & 1023u;
  if (exponent == 31) return float_from_bits(sign | 0x7f800000u | (fraction << 13));
  if (exponent == 0) {
    const float magnitude = float(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return float_from_bits(sign | ((exponent + 112u) << 23) | (fraction << 13));
}

}  // namespace paceline
