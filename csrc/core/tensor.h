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
    case DType::int8: return "int8";
    case DType::int4: return "int4";
    case DType::int4_g32: return "int4_g32";
  }
  return "?";
}

inline DType dtype_of(const std::string& name) {
  std::string all;
  for (DType dtype : {DType::fp32, DType::bf16, DType::fp16, DType::int8, DType::int4, DType::int4_g32}) {
    if (name == name_of(dtype)) return dtype;
    all += (all.empty() ? "" : ", ") + std::string(name_of(dtype));
  }
  throw std::invalid_argument(message("dtype must be one of ", all, ", got ", name));
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
