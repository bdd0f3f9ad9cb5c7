// Element types of weights and KV.
#pragma once

#include <cstddef>

namespace paceline {

enum class DType { fp32, bf16, fp16 };

constexpr size_t size_of(DType dtype) { return dtype == DType::fp32 ? 4 : 2; }

}  // namespace paceline
