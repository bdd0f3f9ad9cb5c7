// An engine over two tables, and what requests to it should do: shared by the tests of the law and of acceptance.
#pragma once

#include <map>
#include <set>

#include "cpp/table_model.h"
#include "cpp/test.h"
#include "reference/chi_square.h"
#include "reference/processors.h"

namespace paceline::test {

enum class DraftKind { equal, noisy, reversed, one_hot, smaller, larger, flat };
constexpr DraftKind kDraftKinds[] = {DraftKind::equal, DraftKind::noisy, DraftKind::reversed, DraftKind::one_hot, DraftKind::smaller, DraftKind::larger};

// The target's vocabulary is padded by 2 ids that do not exist, with logits no processor would survive.
constexpr int kPadding = 2;

inline Table target_table(int ids, unsigned seed = 1) {
  const Table real = random_table(ids, seed);
  Table table{ids + kPadding, std::vector<float>(size_t(ids + kPadding) * (ids + kPadding) * (ids + kPadding), 1000.0f)};
  for (int before = 0; before < ids; ++before)
    for (int last = 0; last < ids; ++last)
      std::copy(real.row(before, last), real.row(before, last) + ids, table.logits.begin() + (size_t(before) * table.vocab + last) * table.vocab);
  return table;
}

// A draft over `vocab` ids that knows something, nothing, or the wrong thing about the target.
inline Table draft_table(const Table& target, int ids, DraftKind kind, unsigned seed = 2) {
  const int vocab = kind == DraftKind::smaller ? ids - 1 : kind == DraftKind::larger ? ids + 4 : ids;
  Table table = random_table(vocab, seed);
  for (int before = 0; before < std::min(ids, vocab); ++before)
    for (int last = 0; last < std::min(ids, vocab); ++last) {
      float* row = table.logits.data() + (size_t(before) * vocab + last) * vocab;
      const float* truth = target.row(before, last);
      for (int token = 0; token < vocab; ++token) {
        if (token >= ids) row[token] = 1000;  // ids beyond the target's: must never be proposed
        else if (kind == DraftKind::equal) row[token] = truth[token];
        else if (kind == DraftKind::flat) row[token] = 0;
        else if (kind == DraftKind::reversed) row[token] = -truth[token];
        else if (kind == DraftKind::one_hot) row[token] = token == (before + last) % vocab ? 40.0f : 0.0f;
        else row[token] = truth[token] + 0.7f * row[token];
      }
    }
  return table;
}

struct TablePair {
  int ids;
  Table target, draft;
};

inline TablePair table_pair(int ids, DraftKind kind) {
  const Table target = target_table(ids);
  return {ids, target, draft_table(target, ids, kind)};
}

class TableEngine {
 public:
  TableEngine(const TablePair& pair, Acceptance acceptance, int tau, int batch, int max_len = 32,
              const std::function<void(EngineOptions&)>& adjust = nullptr, DrafterKind drafter = DrafterKind::model)
      : pair_(pair), batch_(batch), backend_(make_cpu_backend(1, "")), engine_([&] {
          EngineOptions options;
          options.cycles_in_flight = test::cycles_in_flight();
          options.num_speculative_tokens = tau;
          options.acceptance = acceptance;
          options.drafter = drafter;
          options.max_model_len = max_len;
          options.max_num_seqs = batch;
          options.kv_dtype = DType::fp32;
          options.kv_cache_tokens = batch * max_len;
          options.prefill_chunk = options.prefill_chunk_beside = 64;  // under `rejection` texts depend on when drafts begin
          options.vocab_limit = pair.ids;
          options.trace_cycles = 0;  // it only looks on, as parity, traces and policies show with it: here it would take a fifth of the time
          if (adjust) adjust(options);
          const Engine::ModelLimits limits = Engine::limits_of(options, max_len);
          auto target = std::make_unique<TableModel>(*backend_, pair.target, limits);
          auto draft = drafter == DrafterKind::ngram ? nullptr : std::make_unique<TableModel>(*backend_, pair.draft, limits);
          target_ = target.get();
          draft_ = draft.get();
          return std::make_unique<Engine>(backend_, std::move(target), std::move(draft), options);
        }()) {}

  Engine& operator*() { return *engine_; }
  Engine* operator->() { return engine_.get(); }
  TableModel& target() { return *target_; }
  TableModel& draft() { return *draft_; }
  int batch() const { return batch_; }

  // The law of the token after `tokens`, by the target or the draft; [ids] (a draft of fewer ids cannot propose the rest).
  std::vector<double> target_law(const RequestParams& p, const std::vector<int>& tokens, int prompt_length) const {
    return law_of(pair_.target, pair_.ids, p, tokens, prompt_length);
  }
  std::vector<double> draft_law(const RequestParams& p, const std::vector<int>& tokens, int prompt_length) const {
    std::vector<double> law = law_of(pair_.draft, std::min(pair_.ids, pair_.draft.vocab), p, tokens, prompt_length);
    law.resize(pair_.ids, 0.0);
    return law;
  }

 private:
  static std::vector<double> law_of(const Table& table, int limit, const RequestParams& p, const std::vector<int>& tokens, int prompt_length) {
    const auto known = [&](int token) { return token < table.vocab ? token : 0; };
    const int last = known(tokens.back()), before = tokens.size() > 1 ? known(tokens[tokens.size() - 2]) : 0;
    return reference::law(reference::processed_logits(table.row(before, last), limit, p, tokens, prompt_length), p);
  }

  TablePair pair_;
  int batch_;
  std::shared_ptr<Backend> backend_;
  TableModel *target_ = nullptr, *draft_ = nullptr;
  std::unique_ptr<Engine> engine_;
};

struct TableCycle {
  int first, tau, accepted;  // first: position of the first token it emitted
};

struct TableText {
  std::vector<int> tokens;  // prompt first
  std::vector<float> logprobs;
  std::vector<TableCycle> cycles;
  FinishReason finish = FinishReason::none;
  std::string error;
  RequestStats stats;
  bool same_as(const TableText& other) const { return tokens == other.tokens && logprobs == other.logprobs && finish == other.finish; }
};

inline RequestParams sampling(double temperature, uint64_t seed, int max_tokens) {
  RequestParams p;
  p.temperature = temperature;
  p.max_tokens = max_tokens;
  p.seed = seed;
  p.logprobs = 0;
  return p;
}

// All at once, in the order of the requests: request i in slot i where there are slots enough, and then every step gives every one that has
// not ended a token or its end.
inline std::vector<TableText> decode(TableEngine& engine, const std::vector<int32_t>& prompt, const std::vector<RequestParams>& requests) {
  std::vector<TableText> texts(requests.size());
  std::map<int64_t, size_t> place;
  for (size_t i = 0; i < requests.size(); ++i) {
    texts[i].tokens.assign(prompt.begin(), prompt.end());
    place[engine->add(prompt, requests[i])] = i;
  }
  while (!engine->idle()) {
    std::set<size_t> heard;
    size_t alive = 0;
    for (const TableText& text : texts) alive += text.finish == FinishReason::none;
    for (const Output& output : engine->step()) {
      TableText& text = texts[place.at(output.request)];
      CHECK(!output.tokens.empty() || output.finish != FinishReason::none, "request ", output.request, ": no progress");
      heard.insert(place.at(output.request));
      text.cycles.push_back({int(text.tokens.size()), output.tau, output.accepted});
      text.tokens.insert(text.tokens.end(), output.tokens.begin(), output.tokens.end());
      text.logprobs.insert(text.logprobs.end(), output.logprobs.begin(), output.logprobs.end());
      text.finish = output.finish, text.error = output.error, text.stats = output.stats;
    }
    if (int(requests.size()) <= engine.batch()) CHECK(heard.size() == alive, heard.size(), " of ", alive, " requests went on");
  }
  return texts;
}

}  // namespace paceline::test
