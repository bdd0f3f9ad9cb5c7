// The processors of a set of rows: processors.cu.
#pragma once

#include "backend/cuda/kernels/choosing.cuh"

namespace paceline::cuda {

// Fills known[] of all `count` rows, and changed[] of those whose logits change.
void process_rows(cudaStream_t, const ChoosingRows&, int count);

}  // namespace paceline::cuda
