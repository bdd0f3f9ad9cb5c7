// An engine over scripted models, its outputs collected, and what every run of it must satisfy.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "backend/cpu/cpu_backend.h"
#include "cpp/scripted_model.h"
#include "cpp/test.h"

namespace paceline::test {

// The CPU's, whose clock a test may set.
class ScriptedBackend final : public cpu::CpuBackend {
 public:
  using CpuBackend::CpuBackend;
  void timestamp(int64_t* nanoseconds) override {
    if (now) *nanoseconds = *now;
    else CpuBackend::timestamp(nanoseconds);
  }
  std::optional<int64_t> now;
};

inline const std::shared_ptr<ScriptedBackend>& scripted_backend() {
  static const auto shared = std::make_shared<ScriptedBackend>(1, "");
  return shared;
}

struct Job {
  int script = 0, prompt_length = 1;
  RequestParams params;
};

inline Job job_of(int script, int prompt_length, int max_tokens) {
  Job job{script, prompt_length, {}};
  job.params.max_tokens = max_tokens;
  job.params.logprobs = 0;
  return job;
}

struct CycleTrace {
  int tau, accepted, emitted;
  bool operator==(const CycleTrace&) const = default;
};

struct Text {
  Job job;
  std::vector<int> tokens;
  std::vector<float> logprobs;
  std::vector<std::vector<TopLogprob>> top_logprobs;
  FinishReason finish = FinishReason::none;
  int stop_token = -1;
  std::string stop_string, error;
  RequestStats stats;
  uint64_t logits_hash = 0;
  std::vector<uint64_t> target_kv, draft_kv;
  std::vector<CycleTrace> cycles;
};

struct ScriptedOptions {
  EngineOptions engine;
  int vocab_size = 32;
  bool has_draft = true;
  int draft_max_len = 1 << 20;
};

// KV for every slot's longest sequence; row hashes on. Nothing is kept for later requests, and pieces of prompts do not depend on how fast
// the machine is: rows and cycles are counted with a pencil.
inline ScriptedOptions options_of(int vocab_size, int tau, int slots, int max_model_len) {
  ScriptedOptions options;
  options.vocab_size = vocab_size;
  options.engine.num_speculative_tokens = tau;
  options.engine.max_model_len = max_model_len;
  options.engine.max_num_seqs = slots;
  options.engine.kv_cache_tokens = slots * max_model_len;
  options.engine.debug_hash = true;
  options.engine.cycles_in_flight = cycles_in_flight();
  options.engine.prefill_chunk_beside = options.engine.prefill_chunk;
  options.engine.prefix_cache_bytes = 0;
  return options;
}

class ScriptedEngine {
 public:
  ScriptedEngine(const ScriptedOptions& options, std::shared_ptr<const Scripts> scripts)
      : scripts_(std::move(scripts)), engine_options_(options.engine), vocab_size_(options.vocab_size) {
    const auto model = [&](ScriptedModel::Role role, int max_len) {
      const Engine::ModelLimits limits = Engine::limits_of(options.engine, max_len);
      return std::make_unique<ScriptedModel>(*scripted_backend(), role, scripts_, options.vocab_size, limits);
    };
    auto first = model(ScriptedModel::Role::target, 1 << 20);
    auto second = options.has_draft ? model(ScriptedModel::Role::draft, options.draft_max_len) : nullptr;
    target = first.get(), draft = second.get();
    engine_ = std::make_unique<Engine>(scripted_backend(), std::move(first), std::move(second), options.engine);
  }

  std::vector<int32_t> prompt(const Job& job) const {
    const auto& tokens = scripts_->at(job.script).tokens;
    return {tokens.begin(), tokens.begin() + job.prompt_length};
  }
  int64_t add(const Job& job) {
    const int64_t id = engine_->add(prompt(job), job.params);
    texts_[id].job = job;
    return id;
  }
  Engine* operator->() { return engine_.get(); }
  void cancel(int64_t id) { engine_->cancel(id); }
  bool idle() { return engine_->idle(); }
  int waiting() { return engine_->waiting(); }
  int64_t prefix_cache_bytes() { return engine_->prefix_cache_bytes(); }
  Text& text(int64_t id) { return texts_.at(id); }

  void step() {
    for (const Output& output : engine_->step()) {
      Text& text = texts_.at(output.request);
      CHECK(text.finish == FinishReason::none, "request ", output.request, " goes on after its end");
      check_sane(output, text.job.params.logprobs >= 0);
      text.tokens.insert(text.tokens.end(), output.tokens.begin(), output.tokens.end());
      text.logprobs.insert(text.logprobs.end(), output.logprobs.begin(), output.logprobs.end());
      text.top_logprobs.insert(text.top_logprobs.end(), output.top_logprobs.begin(), output.top_logprobs.end());
      text.finish = output.finish;
      if (output.finish != FinishReason::cancelled) text.cycles.push_back({output.tau, output.accepted, int(output.tokens.size())});
      if (output.finish == FinishReason::none) continue;
      text.stop_token = output.stop_token;
      text.stop_string = output.stop_string;
      text.error = output.error;
      text.stats = output.stats;
      text.logits_hash = output.logits_hash;
      text.target_kv = output.target_kv_hashes;
      text.draft_kv = output.draft_kv_hashes;
    }
    for (ScriptedModel* model : {target, draft})
      if (model) check_held(*model);
  }

  // Until all requests have ended. Nothing may hang: `most_steps` is the watchdog. Afterwards nothing is held.
  void drain(int most_steps = 10000) {
    for (int steps = 0; !idle(); ++steps) {
      CHECK(steps < most_steps, "no end after ", steps, " steps");
      step();
    }
    check_settled();
  }

  // All jobs; results in their order.
  std::vector<Text> run(const std::vector<Job>& jobs) {
    std::vector<int64_t> ids;
    for (const Job& job : jobs) ids.push_back(add(job));
    drain();
    std::vector<Text> texts;
    for (int64_t id : ids) texts.push_back(text(id));
    return texts;
  }

  // Nothing is held but for later requests, and the engine's counts are the sums of its requests'.
  void check_settled() {
    RequestStats sum;
    for (const auto& [id, text] : texts_) sum += text.stats;
    const RequestStats all = engine_->stats();
    CHECK(all.num_requests == int64_t(texts_.size()), all.num_requests, " requests counted of ", texts_.size());
    CHECK(all.num_cycles == sum.num_cycles && all.num_emitted_tokens == sum.num_emitted_tokens, all.num_emitted_tokens,
          " tokens counted");
    CHECK(all.num_draft_tokens == sum.num_draft_tokens && all.num_accepted_draft_tokens == sum.num_accepted_draft_tokens,
          "drafts counted");
    CHECK(all.drafted_per_position == sum.drafted_per_position && all.accepted_per_position == sum.accepted_per_position,
          "counts per position");
    int64_t held = 0;
    for (ScriptedModel* model : {target, draft}) {
      if (!model) continue;
      const Pages& pages = model->cache().pages();
      held += (pages.num_pages() - pages.num_free()) * int64_t(model->cache().page_bytes());
    }
    CHECK(held == engine_->prefix_cache_bytes(), held, " bytes are held, ", engine_->prefix_cache_bytes(), " of them for later requests");
  }

  ScriptedModel *target, *draft;  // draft may be null

 private:
  // Whatever comes out is a token that exists, with a logprob that is one.
  void check_sane(const Output& output, bool has_logprobs) const {
    for (int token : output.tokens) CHECK(token >= 0 && token < vocab_size_, "token ", token, " does not exist");
    CHECK(output.logprobs.size() == (has_logprobs ? output.tokens.size() : 0), output.logprobs.size(), " logprobs of ", output.tokens.size(), " tokens");
    for (float logprob : output.logprobs) CHECK(std::isfinite(logprob) && logprob <= 0, "a logprob of ", logprob);
    CHECK(!output.tokens.empty() || output.finish != FinishReason::none, "request ", output.request, " had a step for nothing");
  }

  // Between cycles a slot holds pages for the tokens it has, and no more: what rejected drafts needed has been given back. With a cycle
  // under way it also has what that may write: drafts of the cycle before that were still hoped for, and its own.
  void check_held(ScriptedModel& model) {
    const Pages& pages = model.cache().pages();
    for (int slot = 0; slot < model.num_slots(); ++slot) {
      if (pages.held(slot) == 0) continue;
      const int script = model.script_of(slot);
      int length = 0;  // of the longest that reads this script
      for (const auto& [id, text] : texts_)
        if (text.finish == FinishReason::none && text.job.script == script) length = std::max(length, text.job.prompt_length + int(text.tokens.size()));
      CHECK(length > 0, "slot ", slot, " holds pages of nobody");
      const int ahead = cycles_in_flight() > 1 ? 2 * engine_options_.num_speculative_tokens : 0;
      CHECK(pages.held(slot) <= pages.pages_for(length + ahead), "slot ", slot, " holds ", pages.held(slot), " pages for ", length, " tokens");
    }
  }

  std::shared_ptr<const Scripts> scripts_;
  EngineOptions engine_options_;
  int vocab_size_;
  std::unique_ptr<Engine> engine_;
  std::map<int64_t, Text> texts_;
};

// The same requests by the target alone, one after the other.
inline std::vector<Text> plain(ScriptedOptions options, const std::shared_ptr<const Scripts>& scripts, std::vector<Job> jobs) {
  options.has_draft = false;
  options.engine.num_speculative_tokens = 0;
  options.engine.max_num_seqs = 1;
  for (Job& job : jobs) job.params.num_speculative_tokens = -1;
  return ScriptedEngine(options, scripts).run(jobs);
}

inline void check_stats(const Text& text, const std::string& where) {
  const RequestStats& s = text.stats;
  int drafted = 0, accepted = 0, emitted = 0;
  std::vector<int64_t> drafted_at, accepted_at;
  for (const CycleTrace& cycle : text.cycles) {
    drafted += cycle.tau, accepted += cycle.accepted, emitted += cycle.emitted;
    CHECK(cycle.accepted <= cycle.tau && cycle.accepted <= cycle.emitted && cycle.emitted <= cycle.accepted + 1, where,
          ": a cycle of tau ", cycle.tau, ", accepted ", cycle.accepted, ", emitted ", cycle.emitted);
    drafted_at.resize(std::max<size_t>(drafted_at.size(), cycle.tau)), accepted_at.resize(drafted_at.size());
    for (int i = 0; i < cycle.tau; ++i) ++drafted_at[i];
    for (int i = 0; i < cycle.accepted; ++i) ++accepted_at[i];
  }
  CHECK(s.num_cycles == int(text.cycles.size()), where, ": num_cycles");
  CHECK(s.num_draft_tokens == drafted && s.num_accepted_draft_tokens == accepted, where, ": ", s.num_accepted_draft_tokens, " of ",
        s.num_draft_tokens, " accepted, the cycles say ", accepted, " of ", drafted);
  CHECK(s.num_emitted_tokens == emitted && emitted == int(text.tokens.size()), where, ": num_emitted_tokens ",
        s.num_emitted_tokens);
  CHECK(s.drafted_per_position == drafted_at && s.accepted_per_position == accepted_at, where, ": counts per position");
}

// Everything a caller can see, and the KV rows behind it. Both models' rows are tags of the same text, so a draft that cached
// fewer rows cached the same ones.
inline void check_same(const Text& got, const Text& want, const std::string& where) {
  CHECK(got.tokens == want.tokens, where, ": ", got.tokens.size(), " tokens, plain ", want.tokens.size(), ", or others");
  CHECK(got.finish == want.finish, where, ": ", name_of(got.finish), ", plain ", name_of(want.finish));
  CHECK(got.stop_token == want.stop_token && got.stop_string == want.stop_string, where, ": stopped by ", got.stop_token, " \"",
        got.stop_string, "\", plain by ", want.stop_token, " \"", want.stop_string, "\"");
  CHECK(got.error == want.error, where, ": \"", got.error, "\", plain \"", want.error, "\"");
  CHECK(got.logprobs == want.logprobs, where, ": logprobs");
  CHECK(got.top_logprobs.size() == want.top_logprobs.size(), where, ": alternatives");
  for (size_t i = 0; i < want.top_logprobs.size(); ++i)
    for (size_t k = 0; k < want.top_logprobs[i].size(); ++k)
      CHECK(got.top_logprobs[i].at(k).token == want.top_logprobs[i][k].token &&
            got.top_logprobs[i][k].logprob == want.top_logprobs[i][k].logprob,
            where, ": alternatives of token ", i);
  CHECK(got.logits_hash == want.logits_hash, where, ": logits of reached rows");
  CHECK(got.target_kv == want.target_kv, where, ": the target's KV rows");
  CHECK(got.draft_kv.size() <= want.target_kv.size(), where, ": the draft has more KV rows than there are tokens");
  for (size_t i = 0; i < got.draft_kv.size(); ++i) CHECK(got.draft_kv[i] == want.target_kv[i], where, ": the draft's KV row ", i);
  check_stats(got, where);
}

}  // namespace paceline::test
