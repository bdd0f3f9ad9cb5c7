// What a caller asks for, and what a step gives back.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "decode/stats.h"
#include "math/processors.h"

namespace paceline {

// Names and meaning as in the Python SamplingParams. Sentinels: -1 stands for Python's None where it is allowed.
struct RequestParams {
  int max_tokens = -1;                // -1 = until a stop or the context limit
  int min_tokens = 0;
  double temperature = 0.0;
  double top_p = 1.0;
  int top_k = 0;
  double min_p = 0.0;
  double repetition_penalty = 1.0, presence_penalty = 0.0, frequency_penalty = 0.0;
  std::map<int, double> logit_bias;
  uint64_t seed = 0;
  std::vector<std::string> stop;      // byte strings
  std::vector<int> stop_token_ids;    // EOS ids included, unless the caller ignores them
  int logprobs = -1;                  // -1 = not computed, 0 = the chosen token's, k = and the top k
  int num_speculative_tokens = -1;    // -1 = the engine's; 0 = plain decoding
};

constexpr int kMaxStopStrings = 128, kMaxStopBytes = 8192;  // of all of them: they are matched on the thread that all requests share

// Throws std::invalid_argument that names the parameter, what it must be, and what it is.
void validate(const RequestParams& params, int vocab_limit, int tau_max);
// What the backend is told of a request that `validate` let pass.
SlotParams slot_params(const RequestParams& params, int prompt_length, int end_length);

enum class FinishReason { none, stop, length, cancelled, error };
const char* name_of(FinishReason reason);

struct TopLogprob {
  int token;
  float logprob;
};

// What one step gave one request. tokens may be empty when the request only finished.
struct Output {
  int64_t request = 0;
  int64_t number = 0;                                  // among those of its request, from 1, once it is on its way to a reader
  std::vector<int> tokens;
  std::vector<float> logprobs;                         // one per token when asked for
  std::vector<std::vector<TopLogprob>> top_logprobs;   // k per token when asked for
  int cycles = 0;                                      // that gave it: 1, more where outputs were joined, 0 for a cancel
  int tau = 0, accepted = 0;
  double verify_time = 0, sample_time = 0;             // of the cycle, in seconds; all its requests shared the pass
  FinishReason finish = FinishReason::none;
  int stop_token = -1;                                 // the stop id that ended it, or
  std::string stop_string;                             // the stop string
  std::string error;                                   // finish == error: what happened
  RequestStats stats;                                  // filled when it finishes
  uint64_t logits_hash = 0;                            // debug: of the rows that chose all tokens so far
  std::vector<uint64_t> target_kv_hashes, draft_kv_hashes;  // debug, when it finishes: one per cached position
};

// What two outputs of a request, one after the other, gave together. Where memory runs out both are as they were.
void append(Output& output, Output&& next);

}  // namespace paceline
