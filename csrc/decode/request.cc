#include "decode/request.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "core/error.h"

namespace paceline {
namespace {

// Beyond these T times the noise would be subnormal, which machines treat differently, or infinite. Nothing is lost: below, all but exact
// ties of the best logit have weight 0; above, all logits that differ by less than 10^38 have the same one.
constexpr double kSmallestTemperature = 0x1p-1000, kLargestTemperature = 0x1p1000;

}  // namespace

namespace {

// As insert would grow it: a reserve of just what is needed would copy everything at every call.
template <class T>
void make_room(std::vector<T>& items, size_t more) {
  const size_t needed = items.size() + more;
  if (needed > items.capacity()) items.reserve(std::max(needed, 2 * items.capacity()));
}

}  // namespace

const char* name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::none: return "";
    case FinishReason::stop: return "stop";
    case FinishReason::length: return "length";
    case FinishReason::cancelled: return "cancelled";
    case FinishReason::error: return "error";
  }
  return "?";
}

void append(Output& output, Output&& next) {
  make_room(output.tokens, next.tokens.size());  // nothing is moved before there is room for all
  make_room(output.logprobs, next.logprobs.size());
  make_room(output.top_logprobs, next.top_logprobs.size());
  output.tokens.insert(output.tokens.end(), next.tokens.begin(), next.tokens.end());
  output.logprobs.insert(output.logprobs.end(), next.logprobs.begin(), next.logprobs.end());
  std::move(next.top_logprobs.begin(), next.top_logprobs.end(), std::back_inserter(output.top_logprobs));
  output.number = next.number;
  output.cycles += next.cycles;
  output.tau += next.tau;
  output.accepted += next.accepted;
  output.verify_time += next.verify_time;
  output.sample_time += next.sample_time;
  output.finish = next.finish;
  output.stop_token = next.stop_token;
  output.stop_string = std::move(next.stop_string);
  output.error = std::move(next.error);
  output.stats = std::move(next.stats);
  output.logits_hash = next.logits_hash;
  output.target_kv_hashes = std::move(next.target_kv_hashes);
  output.draft_kv_hashes = std::move(next.draft_kv_hashes);
}

void validate(const RequestParams& p, int vocab_limit, int tau_max) {
  require(p.max_tokens == -1 || p.max_tokens >= 1, "[generate] max_tokens must be at least 1 or None, got ", p.max_tokens);
  require(p.min_tokens >= 0, "[generate] min_tokens must be at least 0, got ", p.min_tokens);
  require(p.max_tokens == -1 || p.min_tokens <= p.max_tokens, "[generate] min_tokens must be at most max_tokens = ", p.max_tokens,
          ", got ", p.min_tokens);
  require(p.temperature >= 0 && std::isfinite(p.temperature), "[generate] temperature must be in [0, inf), got ", p.temperature);
  require(p.top_p > 0 && p.top_p <= 1, "[generate] top_p must be in (0, 1], got ", p.top_p);
  require(p.top_k >= 0, "[generate] top_k must be at least 0 (0 = off), got ", p.top_k);
  require(p.min_p >= 0 && p.min_p <= 1, "[generate] min_p must be in [0, 1], got ", p.min_p);
  require(p.repetition_penalty > 0 && std::isfinite(float(p.repetition_penalty)) && float(p.repetition_penalty) > 0,
          "[generate] repetition_penalty must be a positive float32, got ", p.repetition_penalty);
  require(std::isfinite(float(p.presence_penalty)), "[generate] presence_penalty must be finite, got ", p.presence_penalty);
  require(std::isfinite(float(p.frequency_penalty)), "[generate] frequency_penalty must be finite, got ", p.frequency_penalty);
  require(int(p.logit_bias.size()) <= kMaxLogitBias, "[generate] logit_bias must have at most ", kMaxLogitBias, " entries, got ",
          p.logit_bias.size());
  for (const auto& [id, bias] : p.logit_bias) {
    require(id >= 0 && id < vocab_limit, "[generate] logit_bias ids must be in [0, ", vocab_limit, "), got ", id);
    require(std::isfinite(float(bias)), "[generate] logit_bias values must be finite, got ", bias, " for id ", id);
  }
  require(int(p.stop_token_ids.size()) <= kMaxStopTokens, "[generate] stop_token_ids and EOS ids must be at most ", kMaxStopTokens,
          ", got ", p.stop_token_ids.size());
  for (int id : p.stop_token_ids)
    require(id >= 0 && id < vocab_limit, "[generate] stop_token_ids must be in [0, ", vocab_limit, "), got ", id);
  require(int64_t(p.stop.size()) <= kMaxStopStrings, "[generate] stop must have at most ", kMaxStopStrings, " strings, got ", p.stop.size());
  size_t stop_bytes = 0;
  for (const std::string& text : p.stop) {
    require(!text.empty(), "[generate] stop strings must not be empty");
    stop_bytes += text.size();
  }
  require(stop_bytes <= kMaxStopBytes, "[generate] stop strings must have at most ", kMaxStopBytes, " bytes in all, got ", stop_bytes);
  require(p.logprobs >= -1 && p.logprobs <= kMaxTopLogprobs, "[generate] logprobs must be in [0, ", kMaxTopLogprobs, "], got ", p.logprobs);
  require(p.num_speculative_tokens >= -1 && p.num_speculative_tokens <= tau_max,
          "[generate] num_speculative_tokens must be in [0, ", tau_max, "], got ", p.num_speculative_tokens, ": raise it in Engine(...)");
}

SlotParams slot_params(const RequestParams& p, int prompt_length, int end_length) {
  SlotParams slot{};
  slot.temperature = p.temperature < kSmallestTemperature ? 0.0 : std::min(p.temperature, kLargestTemperature);
  slot.top_p = p.top_p;
  slot.min_p = p.min_p;
  slot.top_k = p.top_k;
  slot.repetition_penalty = float(p.repetition_penalty);
  slot.frequency_penalty = float(p.frequency_penalty);
  slot.presence_penalty = float(p.presence_penalty);
  slot.seed = p.seed;
  slot.prompt_length = prompt_length;
  slot.end_length = end_length;
  slot.min_length = prompt_length + std::min(p.min_tokens, end_length - prompt_length);  // a sum of both could overflow
  slot.num_logprobs = p.logprobs;
  for (const auto& [id, bias] : p.logit_bias) {
    slot.bias_id[slot.num_bias] = id;
    slot.bias[slot.num_bias++] = float(bias);
  }
  for (int id : p.stop_token_ids) slot.stop_id[slot.num_stop++] = id;
  return slot;
}

}  // namespace paceline
