// Names, element types and shapes of the tensors a checkpoint hands to the core.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/error.h"

namespace paceline {

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::fp32: return "fp32";
    case DType::bf16: return "bf16";
    case DType::fp16: return "fp16";
  }
  return "?";
}

inline DType dtype_of(const std::string& name) {
  for (DType dtype : {DType::fp32, DType::bf16, DType::fp16})
    if (name == name_of(dtype)) return dtype;
  throw std::invalid_argument(message("dtype must be one of fp32, bf16, fp16, got ", name));
}

// A tensor somebody else owns, row-major and contiguous in host memory.
struct TensorView {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  const void* data;

  int64_t size() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
};

inline std::string describe(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace paceline
