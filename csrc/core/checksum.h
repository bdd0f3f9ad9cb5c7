// A 64-bit checksum of bytes: finds damage, not malice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace paceline {

// Four chains of multiplications side by side, so that it keeps up with memory.
static inline uint64_t checksum(const char* data, size_t bytes) {
  uint64_t h[4] = {1, 2, 3, bytes};
  const auto mix = [&h](int lane, uint64_t word) {
    h[lane] = (h[lane] ^ word) * 0x9E3779B97F4A7C15u;
    h[lane] ^= h[lane] >> 32;
  };
  size_t at = 0;
  for (; at + 32 <= bytes; at += 32)
    for (int lane = 0; lane < 4; ++lane) {
      uint64_t word;
      std::memcpy(&word, data + at + 8 * lane, 8);
      mix(lane, word);
    }
  for (; at < bytes; ++at) mix(0, uint8_t(data[at]));
  for (int lane = 1; lane < 4; ++lane) mix(0, h[lane]);
  return h[0];
}

}  // namespace paceline
