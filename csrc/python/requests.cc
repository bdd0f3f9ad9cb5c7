// What is asked for, and what comes out: plain values.
#include "engine.h"
#include "python/bindings.h"

namespace paceline {

Acceptance acceptance_of(const std::string& name) {
  if (name == "coupled") return Acceptance::coupled;
  if (name == "rejection") return Acceptance::rejection;
  throw std::invalid_argument(message("[Engine] acceptance must be \"coupled\" or \"rejection\", got \"", name, "\""));
}

namespace {

DrafterKind drafter_of(const std::string& name) {
  for (DrafterKind kind : {DrafterKind::model, DrafterKind::ngram, DrafterKind::chain})
    if (name == name_of(kind)) return kind;
  throw std::invalid_argument(message("[Engine] drafter must be \"model\", \"ngram\" or \"chain\", got \"", name, "\""));
}

Policy policy_of(const std::string& name) {
  for (const auto& [known, policy] : {std::pair("fixed", Policy::fixed), {"auto", Policy::automatic}, {"budget", Policy::budget}, {"latency", Policy::latency}})
    if (name == known) return policy;
  throw std::invalid_argument(message("[Engine] policy must be \"fixed\", \"auto\", \"budget\" or \"latency\", got \"", name, "\""));
}

py::object stop_reason(const Output& output) {
  if (!output.stop_string.empty()) return py::bytes(output.stop_string);
  if (output.stop_token >= 0) return py::int_(output.stop_token);
  return py::none();
}

std::vector<std::vector<std::pair<int, float>>> top_logprobs(const Output& output) {
  std::vector<std::vector<std::pair<int, float>>> all;
  for (const auto& row : output.top_logprobs) {
    auto& pairs = all.emplace_back();
    for (const TopLogprob& each : row) pairs.emplace_back(each.token, each.logprob);
  }
  return all;
}

}  // namespace

void bind_requests(py::module_& m) {
  py::class_<EngineOptions>(m, "EngineOptions")
      .def(py::init([](int num_speculative_tokens, const std::string& acceptance, int max_model_len, int max_num_seqs,
                       const std::string& kv_dtype, int kv_cache_tokens, int prefill_chunk, int vocab_limit,
                       std::vector<std::string> token_bytes, bool debug_hash, int64_t profile_first, int64_t profile_last, int cycles_in_flight,
                       int prefill_chunk_beside, int trace_cycles, int64_t prefix_cache_bytes, const std::string& policy, int verify_budget,
                       double latency_target, float min_draft_confidence, const std::string& drafter, double draft_cost) {
             return EngineOptions{num_speculative_tokens, acceptance_of(acceptance), max_model_len, max_num_seqs, dtype_of(kv_dtype),
                                  kv_cache_tokens, prefill_chunk, vocab_limit, std::move(token_bytes), debug_hash, profile_first, profile_last,
                                  cycles_in_flight, prefill_chunk_beside, trace_cycles, prefix_cache_bytes, policy_of(policy), verify_budget,
                                  latency_target, min_draft_confidence, drafter_of(drafter), draft_cost};
           }), py::kw_only(), "num_speculative_tokens"_a, "acceptance"_a, "max_model_len"_a, "max_num_seqs"_a, "kv_dtype"_a,
           "kv_cache_tokens"_a, "prefill_chunk"_a, "vocab_limit"_a, "token_bytes"_a, "debug_hash"_a, "profile_first"_a, "profile_last"_a,
           "cycles_in_flight"_a, "prefill_chunk_beside"_a, "trace_cycles"_a, "prefix_cache_bytes"_a, "policy"_a, "verify_budget"_a,
           "latency_target"_a, "min_draft_confidence"_a, "drafter"_a, "draft_cost"_a);

  py::class_<RequestParams>(m, "RequestParams")
      .def(py::init([](int max_tokens, int min_tokens, double temperature, double top_p, int top_k, double min_p, double repetition_penalty,
                       double presence_penalty, double frequency_penalty, std::map<int, double> logit_bias, uint64_t seed,
                       std::vector<std::string> stop, std::vector<int> stop_token_ids, int logprobs, int num_speculative_tokens) {
             return RequestParams{max_tokens, min_tokens, temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty,
                                  frequency_penalty, std::move(logit_bias), seed, std::move(stop), std::move(stop_token_ids), logprobs,
                                  num_speculative_tokens};
           }), py::kw_only(), "max_tokens"_a, "min_tokens"_a, "temperature"_a, "top_p"_a, "top_k"_a, "min_p"_a, "repetition_penalty"_a,
           "presence_penalty"_a, "frequency_penalty"_a, "logit_bias"_a, "seed"_a, "stop"_a, "stop_token_ids"_a, "logprobs"_a,
           "num_speculative_tokens"_a);

  py::class_<RequestStats>(m, "RequestStats")
      .def_readonly("num_requests", &RequestStats::num_requests)
      .def_readonly("num_cached_prompt_tokens", &RequestStats::num_cached_prompt_tokens)
      .def_readonly("num_cycles", &RequestStats::num_cycles)
      .def_readonly("num_draft_tokens", &RequestStats::num_draft_tokens)
      .def_readonly("num_accepted_draft_tokens", &RequestStats::num_accepted_draft_tokens)
      .def_readonly("num_emitted_tokens", &RequestStats::num_emitted_tokens)
      .def_readonly("num_draft_faults", &RequestStats::num_draft_faults)
      .def_readonly("drafted_per_position", &RequestStats::drafted_per_position)
      .def_readonly("accepted_per_position", &RequestStats::accepted_per_position)
      .def_readonly("num_prefill_passes", &RequestStats::num_prefill_passes)
      .def_readonly("prefill_time", &RequestStats::prefill_time)
      .def_readonly("time_to_first_token", &RequestStats::time_to_first_token)
      .def_readonly("draft_time", &RequestStats::draft_time)
      .def_readonly("verify_time", &RequestStats::verify_time)
      .def_readonly("sample_time", &RequestStats::sample_time)
      .def_readonly("decode_time", &RequestStats::decode_time);

  py::class_<Output>(m, "Output")
      .def_readonly("number", &Output::number)
      .def_readonly("token_ids", &Output::tokens)
      .def_readonly("logprobs", &Output::logprobs)
      .def_property_readonly("top_logprobs", &top_logprobs)
      .def_readonly("cycles", &Output::cycles)
      .def_readonly("tau", &Output::tau)
      .def_readonly("accepted", &Output::accepted)
      .def_readonly("verify_time", &Output::verify_time)
      .def_readonly("sample_time", &Output::sample_time)
      .def_property_readonly("finish_reason", [](const Output& self) { return name_of(self.finish); })
      .def_property_readonly("stop_reason", &stop_reason)
      .def_readonly("error", &Output::error)
      .def_property_readonly("stats", [](const Output& self) -> py::object {
             return self.finish == FinishReason::none ? py::none() : py::cast(self.stats);
           })
      .def_readonly("logits_hash", &Output::logits_hash)
      .def_readonly("target_kv_hashes", &Output::target_kv_hashes)
      .def_readonly("draft_kv_hashes", &Output::draft_kv_hashes);
}

}  // namespace paceline
