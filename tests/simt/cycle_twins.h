// The same cycle on the CPU engine and on the CUDA kernels, side by side: after every operation all that it may have written, and
// what lies behind it, must hold the same bytes.
#pragma once

#include <cstring>

#include "cpp/test.h"
#include "simt/kernel_test.h"

namespace paceline::test {

constexpr size_t kGuard = 8;  // elements behind every array that nobody may touch

// An array in host memory and its twin on the device. Both start as the same garbage.
template <class T>
class Both {
 public:
  Both(const char* name, size_t count) : name_(name), values_(count + kGuard), device_(count + kGuard) {
    std::memset(static_cast<void*>(values_.data()), 0xA5, values_.size() * sizeof(T));
    cuda::check(cudaHostAlloc(reinterpret_cast<void**>(&fetched_), bytes(), 0), "cudaHostAlloc");
    upload();
  }
  ~Both() { cudaFreeHost(fetched_); }
  Both(const Both&) = delete;
  Both& operator=(const Both&) = delete;
  T& operator[](size_t i) { return values_[i]; }
  T* host() { return values_.data(); }
  T* at(bool on_device) { return on_device ? device_.data() : values_.data(); }
  size_t size() const { return values_.size() - kGuard; }
  void upload() { device_.write(values_); }
  // Enqueued: many arrays are fetched, then waited for once.
  void fetch() const {
    cuda::check(cudaMemcpyAsync(fetched_, device_.data(), bytes(), cudaMemcpyDeviceToHost, stream()), "cudaMemcpyAsync");
  }
  void compare(const std::string& where) const {
    const auto* a = reinterpret_cast<const unsigned char*>(values_.data());
    const auto* b = reinterpret_cast<const unsigned char*>(fetched_);
    if (std::memcmp(a, b, bytes()) == 0) return;
    size_t i = 0;
    while (a[i] == b[i]) ++i;
    CHECK(false, where, ": ", name_, "[", i / sizeof(T), "] of ", size(), ", byte ", i % sizeof(T), ": ", describe(values_[i / sizeof(T)]),
          " on the CPU, ", describe(fetched_[i / sizeof(T)]), " on the device");
  }

 private:
  static std::string describe(const T& value) {
    if constexpr (std::is_arithmetic_v<T>) return message(value);
    else return "a record";
  }
  size_t bytes() const { return values_.size() * sizeof(T); }
  const char* name_;
  std::vector<T> values_;
  Device<T> device_;
  T* fetched_;  // pinned
};

template <class... Arrays>
void check_all(const std::string& where, const Arrays&... arrays) {
  (arrays.fetch(), ...);
  cuda::check(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
  (arrays.compare(where), ...);
}

struct TwinRows {
  explicit TwinRows(int capacity)
      : capacity(capacity), live("live", 1),
        slot("rows.slot", capacity), position("rows.position", capacity), token("rows.token", capacity) {}
  Rows rows(bool on_device) {
    return {capacity, live.at(on_device), slot.at(on_device), position.at(on_device), token.at(on_device)};
  }
  void check(const std::string& where) const { check_all(where, live, slot, position, token); }
  int capacity;
  Both<int32_t> live, slot, position, token;
};

struct Sizes {
  int slots, tau_max, vocab, vocab_limit, draft_vocab, max_len;
  Acceptance acceptance;
};

class Twins {
 public:
  explicit Twins(const Sizes& s)
      : sizes(s), stride(s.max_len + s.tau_max + 1), tokens("tokens", size_t(s.slots) * stride), length("length", s.slots),
        running("running", s.slots), wanted_tau("wanted_tau", s.slots), offered("offered", s.slots),
        offers("offers", size_t(s.slots) * s.tau_max), proposed("proposed", s.slots), drafting("drafting", s.slots),
        target_cached("target_cached", s.slots), draft_cached("draft_cached", s.slots), draft_fed("draft_fed", s.slots),
        first_row("first_row", s.slots), draft_row("draft_row", size_t(s.tau_max + 1) * s.slots), draft_fault("draft_fault", s.slots),
        stop_below("stop_below", s.slots), verify_budget("verify_budget", 1), confidence("confidence", s.slots), looked("looked", s.slots),
        row_confidence("row_confidence", size_t(s.slots) * s.tau_max), params("params", s.slots),
        draft_logits("draft_logits", size_t(s.tau_max + 1) * s.slots * s.draft_vocab),
        logits("logits", size_t(s.tau_max + 1) * s.slots * s.vocab), draft_pass(2 * s.slots), verify_pass(s.slots * (s.tau_max + 1)),
        results("results", s.slots), emitted("results.tokens", size_t(s.slots) * (s.tau_max + 1)),
        logprobs("results.logprobs", emitted.size()),
        top_ids("results.top_ids", emitted.size() * kMaxTopLogprobs), top_logprobs("results.top_logprobs", top_ids.size()),
        hashes("results.row_hashes", emitted.size()), confidences("results.confidence", row_confidence.size()), rows("evidence.rows", 1), drafted("evidence.drafted", size_t(s.slots) * s.tau_max),
        draft_logprob("evidence.draft_logprob", drafted.size()), target_logprob("evidence.target_logprob", drafted.size()),
        agreements("evidence.agreement", drafted.size()), catch_up_agreement("evidence.catch_up_agreement", s.slots),
        extra_probability("evidence.extra_probability", s.slots), scratch(scratch_bytes()) {
    cpu().prepare_sampling(s.slots, s.tau_max, Acceptance::coupled, s.vocab);
    for (int slot = 0; slot < s.slots; ++slot) offered[slot] = 0, stop_below[slot] = 0;
    verify_budget[0] = 0;
  }

  static Backend& cpu() {
    static const std::unique_ptr<Backend> the = make_cpu_backend(1, "");
    return *the;
  }

  CycleState state(bool on_device) {
    CycleState s{};
    s.num_slots = sizes.slots, s.tau_max = sizes.tau_max, s.tokens_stride = stride;
    s.vocab_limit = sizes.vocab_limit;
    s.draft_vocab_limit = std::min(sizes.draft_vocab, sizes.vocab_limit), s.draft_vocab_size = sizes.draft_vocab;
    s.draft_max_len = sizes.max_len, s.acceptance = sizes.acceptance;
    s.tokens = tokens.at(on_device), s.length = length.at(on_device), s.running = running.at(on_device);
    s.offered = offered.at(on_device), s.offers = offers.at(on_device), s.proposed = proposed.at(on_device);
    s.wanted_tau = wanted_tau.at(on_device), s.drafting = drafting.at(on_device), s.target_cached = target_cached.at(on_device);
    s.draft_cached = draft_cached.at(on_device), s.draft_fed = draft_fed.at(on_device), s.first_row = first_row.at(on_device);
    s.may_stop_early = may_stop_early, s.stop_below = stop_below.at(on_device), s.verify_budget = verify_budget.at(on_device);
    s.confidence = confidence.at(on_device), s.looked = looked.at(on_device), s.row_confidence = row_confidence.at(on_device);
    s.draft_row = draft_row.at(on_device), s.draft_fault = draft_fault.at(on_device), s.params = params.at(on_device), s.draft_logits = draft_logits.at(on_device);
    return s;
  }
  CycleResults outcome(bool on_device) {
    return {results.at(on_device), emitted.at(on_device), logprobs.at(on_device), top_ids.at(on_device), top_logprobs.at(on_device),
            hashes_wanted ? hashes.at(on_device) : nullptr, confidences.at(on_device)};
  }

  CycleEvidence evidence(bool on_device) {
    return {rows.at(on_device), drafted.at(on_device), draft_logprob.at(on_device), target_logprob.at(on_device),
            agreements.at(on_device), catch_up_agreement.at(on_device), extra_probability.at(on_device)};
  }

  // After the host has changed anything.
  void upload() {
    tokens.upload(), length.upload(), running.upload(), wanted_tau.upload(), offered.upload(), offers.upload(), proposed.upload(), drafting.upload(), target_cached.upload();
    draft_cached.upload(), draft_fed.upload(), first_row.upload(), draft_row.upload(), draft_fault.upload(), params.upload();
    stop_below.upload(), verify_budget.upload(), confidence.upload(), looked.upload(), row_confidence.upload();
  }
  void check_state(const std::string& where) const {
    check_all(where, tokens, length, running, wanted_tau, offered, offers, proposed, drafting, target_cached, draft_cached, draft_fed, first_row, draft_row, draft_fault, confidence, looked,
              row_confidence, params,
              draft_logits);
  }
  void check_results(const std::string& where) const {
    check_all(where, emitted, results, logprobs, top_ids, top_logprobs, hashes, confidences, logits);
  }

  void begin(const std::string& where) {
    cpu().begin_cycle(state(false));
    cuda::begin_cycle(stream(), state(true));
    check_state(where + ", begin_cycle");
  }
  void plan_draft(const std::string& where, int step) {
    cpu().plan_draft(state(false), step, draft_pass.rows(false));
    cuda::plan_draft(stream(), state(true), step, draft_pass.rows(true));
    check_state(where + ", plan_draft"), draft_pass.check(where + ", plan_draft");
  }
  void plan_verify(const std::string& where) {
    cpu().plan_verify(state(false), verify_pass.rows(false));
    cuda::plan_verify(stream(), state(true), verify_pass.rows(true));
    check_state(where + ", plan_verify"), verify_pass.check(where + ", plan_verify");
  }
  void check_evidence(const std::string& where) const {
    check_all(where, rows, drafted, draft_logprob, target_logprob, agreements, catch_up_agreement, extra_probability);
  }
  void record_catch_up(const std::string& where) {
    draft_logits.upload();
    cpu().record_catch_up(state(false), evidence(false));
    cuda::record_catch_up(stream(), state(true), evidence(true), memory());
    check_evidence(where + ", record_catch_up");
  }
  void record_cycle(const std::string& where) {
    cpu().record_cycle(state(false), verify_pass.rows(false), logits.host(), sizes.vocab, outcome(false), evidence(false));
    cuda::record_cycle(stream(), state(true), verify_pass.rows(true), logits.at(true), sizes.vocab, evidence(true), memory());
    check_evidence(where + ", record_cycle"), check_state(where + ", record_cycle");
  }
  void sample_draft(const std::string& where, int step) {
    draft_logits.upload();
    cpu().sample_draft(state(false), step);
    cuda::sample_draft(stream(), state(true), step, memory());
    check_state(where + ", sample_draft");
  }
  void accept(const std::string& where) {
    logits.upload();
    cpu().accept(state(false), logits.host(), sizes.vocab, outcome(false));
    cuda::accept(stream(), state(true), logits.at(true), sizes.vocab, outcome(true), memory());
    check_results(where + ", accept"), check_state(where + ", accept");
  }

  // A whole cycle. model(slot, position, size, row) fills a row that chooses the token at `position`, for the draft and the target.
  template <class Draft, class Target>
  void cycle(const std::string& where, Draft draft_model, Target target_model) {
    begin(where);
    for (int step = 0; step < sizes.tau_max; ++step) {
      const std::string place = where + ", step " + std::to_string(step);
      plan_draft(place, step);
      float* rows = draft_logits.host() + size_t(state(false).draft_logits_row(step)) * sizes.draft_vocab;
      for (int row = 0; row < draft_pass.live[0]; ++row)
        draft_model(draft_pass.slot[row], draft_pass.position[row] + 1, sizes.draft_vocab, rows + size_t(row) * sizes.draft_vocab);
      if (step == 0) record_catch_up(where);
      sample_draft(place, step);
    }
    plan_verify(where);
    for (int row = 0; row < verify_pass.live[0]; ++row)
      target_model(verify_pass.slot[row], verify_pass.position[row] + 1, sizes.vocab, logits.host() + size_t(row) * sizes.vocab);
    accept(where);
    record_cycle(where);
  }

  cuda::SamplingScratch memory() { return {scratch.data(), sizes.vocab}; }
  size_t scratch_bytes() const { return cuda::sampling_scratch_bytes(sizes.slots, sizes.tau_max, sizes.acceptance, sizes.vocab); }

  Sizes sizes;
  int stride;
  bool hashes_wanted = true, may_stop_early = false;
  Both<int32_t> tokens, length, running, wanted_tau, offered, offers, proposed, drafting, target_cached, draft_cached, draft_fed, first_row, draft_row, draft_fault;
  Both<float> stop_below;
  Both<int32_t> verify_budget;
  Both<double> confidence;
  Both<int32_t> looked;
  Both<float> row_confidence;
  Both<SlotParams> params;
  Both<float> draft_logits, logits;
  TwinRows draft_pass, verify_pass;
  Both<CycleResult> results;
  Both<int32_t> emitted;
  Both<float> logprobs;
  Both<int32_t> top_ids;
  Both<float> top_logprobs;
  Both<uint64_t> hashes;
  Both<float> confidences;
  Both<int32_t> rows, drafted;
  Both<float> draft_logprob, target_logprob, agreements, catch_up_agreement;
  Both<double> extra_probability;
  Device<unsigned char> scratch;
};

inline SlotParams plain_params(double temperature, int prompt_length, int end_length) {
  SlotParams p{};
  p.temperature = temperature;
  p.top_p = 1;
  p.repetition_penalty = 1;
  p.num_logprobs = -1;
  p.prompt_length = prompt_length;
  p.end_length = end_length;
  return p;
}

}  // namespace paceline::test
