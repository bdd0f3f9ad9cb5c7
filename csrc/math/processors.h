// The request's processors, token by token: the formulas only, shared by every backend and the tests. Loops live in the
// backends. Order (transformers' order; it matters): sets, logit_bias, repetition, frequency, presence, temperature,
// top-k, top-p, min-p. Draft and target rows pass through the very same ones.
#pragma once

#include "math/platform.h"

namespace paceline {

constexpr float kLargest = 3.402823466e+38f, kMinusInfinity = -__builtin_inff();
constexpr int kMaxLogitBias = 1024;   // entries of logit_bias a request may have
constexpr int kMaxStopTokens = 128;   // EOS and stop ids a request may have
constexpr int kMaxTopLogprobs = 32;   // alternatives reported per token

// What the backend knows of one request. Plain data: it is copied to the device when the request enters its slot.
struct SlotParams {
  double temperature;         // 0 <= T < inf; 0 is argmax
  double top_p;               // (0, 1]; 1 = off
  double min_p;               // [0, 1]; 0 = off
  int32_t top_k;              // 0 = off
  float repetition_penalty;   // > 0; 1 = off
  float frequency_penalty, presence_penalty;  // 0 = off
  uint64_t seed;
  uint32_t sample_index;
  int32_t prompt_length;      // tokens before this index are the prompt
  int32_t end_length;         // prompt + max_tokens, at most the context limit: the sequence never grows past it
  int32_t min_length;         // below it EOS and stop ids are masked (prompt + min_tokens)
  int32_t num_logprobs;       // -1 = none computed, 0 = the chosen token's, k = and the top k
  int32_t num_bias, num_stop;
  int32_t bias_id[kMaxLogitBias];
  float bias[kMaxLogitBias];
  int32_t stop_id[kMaxStopTokens];
};

// transformers' RepetitionPenaltyLogitsProcessor; once per distinct id of prompt, output and earlier drafts.
PACELINE_HD float repetition_penalised(float logit, float penalty) { return logit > 0.0f ? logit / penalty : logit * penalty; }

// OpenAI's frequency and presence penalties; count over output and earlier drafts.
PACELINE_HD float count_penalised(float logit, float frequency, float presence, int count) {
  if (count == 0) return logit;
  return (logit - frequency * float(count)) - presence;
}

// A row after its processors. Every cut keeps an upper set of the logits (ties stay), so one threshold says who survives.
struct ProcessedRow {
  const float* logits;  // [n] processed; ids outside the sets hold -inf
  int32_t n;            // ids that exist
  float l_max;          // largest allowed logit
  float threshold;      // token i survives iff logits[i] >= threshold; above -inf always
  int32_t argmax;       // lowest id that holds l_max
  int32_t fault;        // RowFault
  double temperature;
};

// The logit's distance from the largest, in units of the temperature: <= 0.
PACELINE_HD double scaled(const ProcessedRow& row, float logit) { return (double(logit) - double(row.l_max)) / row.temperature; }

enum RowFault : int32_t {
  kRowSound = 0,
  kRowNotFinite = 1,  // NaN or +inf among the raw logits
  kRowEmpty = 2,      // no token left to choose
};

}  // namespace paceline
