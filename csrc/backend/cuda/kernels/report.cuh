// What the caller hears of emitted tokens besides their ids: report.cu.
#pragma once

#include "backend/cuda/kernels/choosing.cuh"

namespace paceline::cuda {

// Raw logprobs, top ids and hashes of the rows that the walks committed.
void report_rows(cudaStream_t, const ChoosingRows& targets, const Scratch&, const CycleResults&);

}  // namespace paceline::cuda
