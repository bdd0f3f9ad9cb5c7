// The rows of a pass, in backend memory, owned. A plan fills them on the device, or the host does (prefill, verify).
#pragma once

#include <algorithm>
#include <vector>

#include "backend/backend.h"

namespace paceline {

class RowsBuffer {
 public:
  RowsBuffer(Backend& backend, int capacity)
      : backend_(backend), capacity_(capacity), memory_(backend.allocate((1 + 3 * size_t(capacity)) * sizeof(int32_t))) {}

  // Of host-made rows it is known how many they are, and how far their positions go.
  Rows rows() const {
    int32_t* base = memory_.as<int32_t>();
    return {filled_ ? filled_ : capacity_, base, base + 1, base + 1 + capacity_, base + 1 + 2 * capacity_, positions_};
  }

  // Host-made rows, at most `capacity`.
  void fill(const std::vector<int32_t>& slots, const std::vector<int32_t>& positions, const std::vector<int32_t>& tokens) {
    const Rows to = rows();
    const int32_t live = filled_ = int32_t(tokens.size());
    positions_ = 1;
    for (int32_t position : positions) positions_ = std::max(positions_, position + 1);
    backend_.upload(to.live, &live, sizeof live);
    backend_.upload(to.slot, slots.data(), slots.size() * sizeof(int32_t));
    backend_.upload(to.position, positions.data(), positions.size() * sizeof(int32_t));
    backend_.upload(to.token, tokens.data(), tokens.size() * sizeof(int32_t));
  }

  int capacity() const { return capacity_; }
  size_t bytes() const { return memory_.bytes(); }

 private:
  Backend& backend_;
  int capacity_, filled_ = 0, positions_ = 1 << 30;
  Buffer memory_;
};

}  // namespace paceline
