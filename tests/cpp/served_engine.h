// An engine on its own thread, over scripted models: what a request gives is known beforehand.
#pragma once

#include <optional>
#include <thread>

#include "async/engine_thread.h"
#include "cpp/scripted_engine.h"

namespace paceline::test {

using namespace std::chrono_literals;

constexpr int kVocab = 32, kTau = 4, kSlots = 3, kMaxLen = 400;
constexpr auto kLong = 60s;  // a watchdog: nothing here takes a second

inline std::shared_ptr<Scripts> scripts(int count) {
  auto all = std::make_shared<Scripts>();
  for (int number = 0; number < count; ++number) {
    Script& script = all->emplace_back();
    for (int i = 0; i <= kMaxLen; ++i) script.tokens.push_back(i ? (i * (3 + number) + i / 7) % kVocab : number);
    script.drafts = script.tokens;
    for (int i = 0; i <= kMaxLen; i += 2 + number % 3) script.drafts[i] = (script.drafts[i] + 1) % kVocab;
  }
  return all;
}

inline std::vector<int32_t> prompt_of(const Scripts& all, int script, int length) {
  return {all[script].tokens.begin(), all[script].tokens.begin() + length};
}
inline std::vector<int> text_of(const Scripts& all, int script, int prompt, int length) {
  return {all[script].tokens.begin() + prompt, all[script].tokens.begin() + prompt + length};
}
inline RequestParams params_of(int max_tokens) {
  RequestParams params;
  params.max_tokens = max_tokens;
  return params;
}

struct Served {
  explicit Served(int max_queue = 1000, int scripts_ = 8, int slots = kSlots, int kv_cache_tokens = 0, int prefill_chunk = 0) : all(scripts(scripts_)) {
    ScriptedOptions options = options_of(kVocab, kTau, slots, kMaxLen);
    options.engine.debug_hash = false;
    if (kv_cache_tokens) options.engine.kv_cache_tokens = kv_cache_tokens;
    if (prefill_chunk) options.engine.prefill_chunk = options.engine.prefill_chunk_beside = prefill_chunk;
    const auto model = [&](ScriptedModel::Role role) {
      return std::make_unique<ScriptedModel>(*scripted_backend(), role, all, kVocab, Engine::limits_of(options.engine, 1 << 20));
    };
    auto first = model(ScriptedModel::Role::target), second = model(ScriptedModel::Role::draft);
    target = first.get();
    thread.emplace(std::make_shared<Engine>(scripted_backend(), std::move(first), std::move(second), options.engine), max_queue);
  }
  std::shared_ptr<Submission> submit(int script, int prompt, int max_tokens) {
    return thread->submit({{prompt_of(*all, script, prompt), params_of(max_tokens)}}).front();
  }
  // The thread stands still in the middle of a pass until this is let go. Before the first request only.
  std::unique_lock<std::mutex> hold() {
    target->before_forward = [this] {
      const int pass = ++entered;
      const std::lock_guard wait(gate);
      if (pass == fail_at) throw DeviceError("the ninth pass");
    };
    return std::unique_lock(gate);
  }

  std::shared_ptr<Scripts> all;
  ScriptedModel* target;
  std::mutex gate;
  int fail_at = 0;              // set before the first request
  std::atomic<int> entered{0};  // passes that stand there, or have gone on
  std::optional<EngineThread> thread;
};

inline std::vector<int> read_all(Submission& submission) {
  std::vector<int> tokens;
  for (bool last = false; !last;) {
    const auto output = submission.take(Submission::Until::something, kLong);
    CHECK(output, "nothing within a minute");
    tokens.insert(tokens.end(), output->tokens.begin(), output->tokens.end());
    last = output->finish != FinishReason::none;
  }
  CHECK(submission.done() && !submission.take(Submission::Until::something, 0s), "something after the last output");
  return tokens;
}

inline Output the_end(Submission& submission) {
  const auto start = std::chrono::steady_clock::now();
  auto output = submission.take(Submission::Until::end, kLong);
  CHECK(std::chrono::steady_clock::now() - start < kLong / 2, "nobody was woken");
  CHECK(output && output->finish != FinishReason::none, "no end within a minute");
  return std::move(*output);
}

}  // namespace paceline::test
