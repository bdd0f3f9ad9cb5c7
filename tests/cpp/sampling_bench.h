// Rows of logits and the sampling kernels of every instruction level that this machine has: shared by the tests of both.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "backend/cpu/kernels/sampling.h"

namespace paceline::test {

using namespace paceline::cpu;

struct Level {
  const char* name;
  const SamplingKernels* kernels;
};

inline std::vector<Level> levels() {
  std::vector<Level> all;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) all.push_back({"avx2", &avx2::sampling_kernels()});
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) all.push_back({"avx512", &avx512::sampling_kernels()});
  if (__builtin_cpu_supports("avx512bf16")) all.push_back({"avx512_bf16", &avx512_bf16::sampling_kernels()});
  return all;
}

inline SlotParams plain(double temperature) {
  SlotParams p{};
  p.temperature = temperature;
  p.top_p = 1;
  p.repetition_penalty = 1;
  p.num_logprobs = -1;
  p.seed = 11;
  return p;
}

struct Bench {
  std::vector<float> logits, copy;
  std::vector<int32_t> counts, history;
  std::vector<uint64_t> histogram;
  SlotParams params;

  Bench(int n, double temperature, int seed, double spread = 3) : logits(n), copy(n), counts(n), history{0}, histogram(2048), params(plain(temperature)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, float(spread));
    for (float& l : logits) l = std::round(normal(random) * 64) / 64;  // coarse: ties are common
  }
  SamplingScratch scratch() { return {copy.data(), counts.data(), histogram.data()}; }
  RowTask task(int limit) { return {logits.data(), int(logits.size()), limit, &params, history.data(), int(history.size())}; }
  ProcessedRow process(const SamplingKernels& k) { return k.process(task(int(logits.size())), scratch()); }
};

}  // namespace paceline::test
