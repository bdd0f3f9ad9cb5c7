// The joint law of four emitted tokens against full enumeration, through the whole engine: marginals miss bugs that a joint law
// shows (a bonus token from the row before leaves every first token's law as it was).
//
// PACELINE_LAW_N sets the number of texts per case (mutants whose power allows it run with fewer).
#include <atomic>
#include <limits>
#include <mutex>
#include <thread>

#include "cpp/pairwise.h"
#include "cpp/table_engine.h"
#include "decode/cycle.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr double kAlpha = 1e-6;
const std::vector<int32_t> kPrompt = {1, 3};

long texts_per_case(long by_default = 250000) { return statistics_size(by_default); }

struct Case {
  Acceptance acceptance;
  DraftKind draft;
  int batch, tau;  // tau -1: 0 to 3, request by request
  RequestParams params;
  std::string name;
  int ids = 5, length = 4;  // the tokens that are judged together: the first ones
  int max_tokens = 4;
  std::function<void(int, int, int32_t, float*)> after_draft_row = nullptr;  // see TableModel
  DrafterKind drafter = DrafterKind::model;
  std::vector<int32_t> prompt = kPrompt;
};

// Expected counts of all ids^length texts, as numbers in base `ids`, first token highest.
template <class LawOf>
void enumerate(std::vector<int>& text, int length, double weight, const LawOf& law_of, std::vector<double>& expected) {
  if (length == 0) return expected.push_back(weight);
  const std::vector<double> law = law_of(text);
  for (size_t token = 0; token < law.size(); ++token) {
    text.push_back(int(token));
    enumerate(text, length - 1, weight * law[token], law_of, expected);
    text.pop_back();
  }
}

RequestParams stranger() {
  RequestParams p;
  p.temperature = 2.5;
  p.top_k = 2;
  p.repetition_penalty = 1.7;
  p.max_tokens = 6;
  return p;
}

// Decode n texts of the case; with a batch, every fourth request is a stranger with other processors that nobody counts.
std::vector<long> decode(const Case& c, TableEngine& engine, long n, uint64_t seed) {
  std::vector<long> counts(size_t(std::pow(c.ids, c.length)), 0);
  std::map<int64_t, std::vector<int>> texts;
  long asked = 0, done = 0;
  const auto ask = [&] {
    const bool counted = c.batch == 1 || asked % 4 != 3;
    RequestParams p = counted ? c.params : stranger();
    p.seed = ((seed + 1000003 * statistics_seed()) << 32) + uint64_t(asked);
    p.num_speculative_tokens = c.tau >= 0 ? c.tau : int(asked % 4);
    if (counted) p.max_tokens = c.max_tokens;
    const int64_t id = engine->add(c.prompt, p);
    if (counted) texts[id];
    ++asked;
  };
  for (int i = 0; i < 2 * c.batch; ++i) ask();
  while (done < n)
    for (const Output& output : engine->step()) {
      const auto found = texts.find(output.request);
      if (found != texts.end()) found->second.insert(found->second.end(), output.tokens.begin(), output.tokens.end());
      if (output.finish == FinishReason::none) continue;
      CHECK(output.finish == FinishReason::length, c.name, ": ", output.error);
      ask();
      if (found == texts.end()) continue;
      CHECK(int(found->second.size()) == c.max_tokens, c.name);
      int cell = 0;
      found->second.resize(c.length);
      for (int token : found->second) {
        CHECK(token >= 0 && token < c.ids, c.name, ": token ", token, " does not exist");
        cell = cell * c.ids + token;
      }
      ++counts[cell];
      ++done;
      texts.erase(found);
    }
  return counts;
}

void check_case(const Case& c, long n, uint64_t seed) {
  TableEngine engine(table_pair(c.ids, c.draft), c.acceptance, 3, c.batch, 32, nullptr, c.drafter);
  if (c.after_draft_row) engine.draft().after_row = c.after_draft_row;
  std::vector<double> expected;
  std::vector<int> text(c.prompt.begin(), c.prompt.end());
  enumerate(text, c.length, double(n), [&](const std::vector<int>& t) { return engine.target_law(c.params, t, int(c.prompt.size())); }, expected);
  std::vector<long> counts = decode(c, engine, n, seed);
  long total = 0;
  for (long count : counts) total += count;
  for (double& e : expected) e *= double(total) / double(n);
  const auto result = reference::chi_square(counts, expected);
  CHECK(result.p_value >= kAlpha, c.name, ": X2 = ", result.statistic, " at ", result.degrees, " degrees, p = ", result.p_value);
}

std::vector<Case> grid(Acceptance acceptance) {
  const char* draft_names[] = {"equal", "noisy", "reversed", "one-hot", "smaller", "larger"};
  std::vector<Case> cases;
  // Levels: draft 6, tau 3, temperature 2, top-k 2, top-p 2, min-p 2, penalties 2, bias 2, batch 2.
  for (const std::vector<int>& at : pairwise({6, 3, 2, 2, 2, 2, 2, 2, 2}, 5)) {
    Case c{acceptance, kDraftKinds[at[0]], at[8] ? 7 : 1, at[1] == 0 ? 1 : at[1] == 1 ? 3 : -1, {}, ""};
    c.params.temperature = at[2] ? 0.7 : 1.0;
    if (at[3]) c.params.top_k = 3;
    if (at[4]) c.params.top_p = 0.8;
    if (at[5]) c.params.min_p = 0.1;
    if (at[6]) c.params.repetition_penalty = 1.3, c.params.frequency_penalty = 0.3, c.params.presence_penalty = 0.4;
    if (at[7]) c.params.logit_bias = {{0, 0.8}, {4, -0.6}};
    c.name = message(acceptance == Acceptance::coupled ? "coupled" : "rejection", ", draft ", draft_names[at[0]], ", tau ", c.tau, ", T ",
                     c.params.temperature, ", top-k ", c.params.top_k, ", top-p ", c.params.top_p, ", min-p ", c.params.min_p, ", penalties ",
                     at[6], ", bias ", at[7], ", batch ", c.batch);
    cases.push_back(c);
  }
  return cases;
}

// Proposals from the text are point masses: judged and corrected as such, alone and where they take turns with a draft. A prompt that
// repeats itself has a match at the first token already.
std::vector<Case> text_grid(Acceptance acceptance) {
  std::vector<Case> cases;
  // Levels: drafter 2, draft 3, tau 2, temperature 2, cuts 2, penalties 2, batch 2.
  for (const std::vector<int>& at : pairwise({2, 3, 2, 2, 2, 2, 2}, 11)) {
    Case c{acceptance, kDraftKinds[at[1]], at[6] ? 7 : 1, at[2] ? 3 : -1, {}, ""};
    c.drafter = at[0] ? DrafterKind::chain : DrafterKind::ngram;
    c.prompt = {1, 3, 2, 0, 1, 3, 4, 2, 0, 1, 3};
    c.params.temperature = at[3] ? 0.7 : 1.0;
    if (at[4]) c.params.top_k = 3, c.params.min_p = 0.05;
    if (at[5]) c.params.repetition_penalty = 1.3, c.params.frequency_penalty = 0.3, c.params.presence_penalty = 0.4;
    c.name = message(acceptance == Acceptance::coupled ? "coupled" : "rejection", at[0] ? ", chain" : ", ngram", ", draft ", at[1], ", tau ", c.tau,
                     ", T ", c.params.temperature, ", cuts ", at[4], ", penalties ", at[5], ", batch ", c.batch);
    cases.push_back(c);
  }
  return cases;
}

// All cases of a grid on two threads, each with its own engine. The first failure is the test's.
void check_grid(const std::vector<Case>& cases) {
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::string failure;
  const auto work = [&] {
    for (size_t i = next++; i < cases.size(); i = next++) try {
        check_case(cases[i], texts_per_case(), i + 1);
      } catch (const std::exception& error) {
        const std::lock_guard lock(mutex);
        if (failure.empty()) failure = error.what();
        next = cases.size();
      }
  };
  std::thread other(work);
  work();
  other.join();
  CHECK(failure.empty(), failure);
  std::printf("      %zu cases of %ld texts\n", cases.size(), texts_per_case());
}

}  // namespace

TEST(the_oracle_s_chi_square_is_right) {
  // Values of scipy.stats.chi2.sf.
  const double known[][3] = {{3.84, 1, 0.05004352124870519}, {10, 4, 0.04042768199451279}, {700, 624, 0.01838095302260839},
                             {900, 624, 2.464030624357417e-12}, {0.5, 7, 0.9994464813904249}, {624, 624, 0.49247131386999243}};
  for (const auto& [x, degrees, p] : known) {
    const double got = reference::upper_gamma(degrees / 2, x / 2);
    CHECK(std::fabs(got - p) < 1e-9 * p, x, " at ", degrees, ": ", got, " instead of ", p);
  }
}

// A flat draft over 48 ids: a probability of 1/48 rounded to 8 bits is off by 6 %, for every token alike. One position, and so
// few cells that this shows (a joint law of more positions would need millions of texts).
TEST(law_of_more_ids) {
  Case c{Acceptance::rejection, DraftKind::flat, 7, 3, {}, "48 ids", 48, 1};
  c.params.temperature = 1;
  check_case(c, texts_per_case(), 99);
}

// Where a draft's row is NaN nothing is proposed, and the token there is plain: the law is what it was.
TEST(law_beside_broken_draft_rows) {
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection}) {
    Case c{rule, DraftKind::noisy, 7, 3, {}, "a broken draft"};
    c.params.temperature = 1;
    c.after_draft_row = [](int, int position, int32_t token, float* logits) {
      if (position % 2 == 0 && token != 1) logits[3] = std::numeric_limits<float>::quiet_NaN();
    };
    check_case(c, texts_per_case(), 77);
  }
}

TEST(joint_law_from_the_text_coupled) { check_grid(text_grid(Acceptance::coupled)); }
TEST(joint_law_from_the_text_rejection) { check_grid(text_grid(Acceptance::rejection)); }

TEST(joint_law_coupled) { check_grid(grid(Acceptance::coupled)); }
TEST(joint_law_rejection) { check_grid(grid(Acceptance::rejection)); }

// A controller that looks at the drafts it has seen, discarded ones included. tau is 4 iff the last cycle's mean draft
// log-probability is above the mean of all cycles so far; noise that a redrafted position consulted before would be conditioned
// on that choice. The cycle is driven directly: requests of the engine have a fixed tau.
TEST(controlled_law_rejection) {
  constexpr int kWide = 6, kLength = 4, kSlots = 64, kTau = 4;
  const long n = texts_per_case(500000);
  const TablePair pair = table_pair(kWide, DraftKind::noisy);
  const auto backend = std::shared_ptr<Backend>(make_cpu_backend(1, ""));
  const int prompt_length = int(kPrompt.size()), end = prompt_length + kLength + kTau + 1;
  const Engine::ModelLimits limits{kSlots * (kTau + 1), end, kSlots, kSlots};
  TableModel target(*backend, pair.target, limits), draft(*backend, pair.draft, limits);
  Cycle cycle(*backend, target, &draft, {kSlots, kTau, end, kWide, Acceptance::rejection, false, false, 1});
  for (KvCache* cache : {&target.cache(), &draft.cache()}) {
    for (int slot = 0; slot < kSlots; ++slot) CHECK(cache->reserve(slot, end));
    cache->publish();
  }
  RequestParams p;
  p.temperature = 1;

  // The drafts of a cycle, as the target reads them: rows past the committed tokens.
  std::vector<std::vector<int>> text(kSlots), seen(kSlots);
  target.after_row = [&](int slot, int position, int32_t token, float*) {
    auto& rows = seen[slot];
    rows.resize(std::max(rows.size(), size_t(position) + 1));
    rows[position] = token;
  };
  uint64_t seed = 1 + (statistics_seed() << 32);
  RowsBuffer prefill(*backend, 1);
  const auto start = [&](int slot) {
    text[slot].assign(kPrompt.begin(), kPrompt.end());
    SlotParams params{};
    params.temperature = 1, params.top_p = 1, params.repetition_penalty = 1, params.num_logprobs = -1;
    params.seed = seed++;
    params.prompt_length = prompt_length, params.end_length = end;
    cycle.start(slot, params, kPrompt);
    prefill.fill({slot}, {0}, {kPrompt[0]});
    target.forward(prefill.rows(), nullptr);
    cycle.set_target_cached(slot, 1);
    cycle.set_wanted_tau(slot, kTau);
    cycle.set_running(slot, true);
  };
  std::vector<long> counts(kWide * kWide * kWide * kWide, 0);
  double sum = 0;
  long cycles = 0, done = 0;
  for (int slot = 0; slot < kSlots; ++slot) start(slot);
  const auto draft_log_probability = [&](int before, int last, int token) {
    const float* row = pair.draft.row(before, last);
    double total = 0;
    for (int i = 0; i < kWide; ++i) total += std::exp(double(row[i]));
    return row[token] - std::log(total);
  };
  while (done < n) {
    cycle.launch(kTau, kSlots, end);
    cycle.wait();
    for (int slot = 0; slot < kSlots; ++slot) {
      const CycleResult& result = cycle.result(slot);
      double mean = 0;
      for (int i = 0; i < result.tau; ++i) {
        const int at = result.first_position + i;
        mean += draft_log_probability(seen[slot][at - 2], seen[slot][at - 1], seen[slot][at]) / result.tau;
      }
      text[slot].insert(text[slot].end(), cycle.tokens(slot), cycle.tokens(slot) + result.emitted);
      if (result.tau) sum += mean, ++cycles;
      cycle.set_wanted_tau(slot, mean > sum / double(cycles) ? kTau : 1);
      if (int(text[slot].size()) < prompt_length + kLength) continue;
      int cell = 0;
      for (int i = 0; i < kLength; ++i) cell = cell * kWide + text[slot][prompt_length + i];
      ++counts[cell];
      ++done;
      start(slot);
    }
  }
  std::vector<double> expected;
  std::vector<int> prompt(kPrompt.begin(), kPrompt.end());
  const auto law_of = [&](const std::vector<int>& t) {
    return reference::law(reference::processed_logits(pair.target.row(t[t.size() - 2], t.back()), kWide, p, t, prompt_length), p);
  };
  enumerate(prompt, kLength, double(done), law_of, expected);
  const auto result = reference::chi_square(counts, expected);
  CHECK(result.p_value >= kAlpha, "X2 = ", result.statistic, " at ", result.degrees, " degrees, p = ", result.p_value);
}

TEST_MAIN()
