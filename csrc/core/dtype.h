// Element types of weights and KV.
#pragma once

#include <cstddef>

namespace paceline {

enum class DType { fp32, bf16, fp16, int8, int4, int4_g32 };  // int4: groups of 64; int4_g32: of 32

constexpr bool is_integer(DType dtype) { return dtype >= DType::int8; }
constexpr size_t size_of(DType dtype) { return dtype == DType::fp32 ? 4 : 2; }  // of the others
// Of integer formats: values along K that share a scale.
constexpr int group_of(DType dtype) { return dtype == DType::int4_g32 ? 32 : 64; }

}  // namespace paceline
