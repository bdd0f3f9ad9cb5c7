// Drafters on the host: what they look up against a search by brute force, what they take, and that an engine with them writes the bits of
// plain decoding. The law under `rejection` is law_test and conditional_law_test.
#include "decode/chain_drafter.h"

#include <algorithm>
#include <set>
#include <utility>

#include "cpp/parity.h"
#include "cpp/planted_costs.h"

using namespace paceline;
using namespace paceline::test;

std::shared_ptr<Backend> paceline::test::backend() {
  static std::shared_ptr<Backend> shared = make_cpu_backend(1, "");
  return shared;
}

namespace {

// Memory of an automaton between guards that nobody may touch.
class Guarded {
 public:
  explicit Guarded(int capacity) : memory_(SuffixAutomaton::bytes(capacity) / 4 + kGuard, 0), automaton_(memory_.data(), capacity) {
    std::fill(memory_.end() - kGuard, memory_.end(), kMark);
  }
  SuffixAutomaton& operator*() { return automaton_; }
  SuffixAutomaton* operator->() { return &automaton_; }
  void check() const {
    for (auto each = memory_.end() - kGuard; each != memory_.end(); ++each) CHECK(*each == kMark, "something was written behind the memory");
  }

 private:
  static constexpr int kGuard = 64, kMark = 0x5A5A5A5A;
  std::vector<int32_t> memory_;
  SuffixAutomaton automaton_;
};

// The longest suffix of every prefix of the text that also ends earlier, and the latest place where: length[i][j] is how much the
// prefixes of i and j tokens have in common at their ends.
std::vector<SuffixAutomaton::Match> matches_by_force(const std::vector<int32_t>& text) {
  std::vector<SuffixAutomaton::Match> best(text.size(), {0, 0});
  std::vector<int> before(text.size() + 1, 0), now(text.size() + 1, 0);
  for (size_t i = 1; i <= text.size(); ++i) {
    for (size_t j = 1; j < i; ++j) {
      now[j] = text[i - 1] == text[j - 1] ? before[j - 1] + 1 : 0;
      if (now[j] > 0 && now[j] >= best[i - 1].length) best[i - 1] = {now[j], int(j)};
    }
    std::swap(before, now);
  }
  return best;
}

// latest: the place must be the latest one; else any is right.
void check_text(SuffixAutomaton& automaton, const std::vector<int32_t>& text, bool latest, const std::string& what) {
  automaton.clear();
  const auto want = matches_by_force(text);
  for (size_t i = 0; i < text.size(); ++i) {
    automaton.append(text[i]);
    const SuffixAutomaton::Match got = automaton.match();
    CHECK(got.length == want[i].length, what, ", token ", i, ": a match of ", got.length, ", by force ", want[i].length);
    if (got.length == 0) continue;
    CHECK(got.end >= got.length && got.end <= int(i), what, ", token ", i, ": a match that ends at ", got.end);
    CHECK(std::equal(text.begin() + got.end - got.length, text.begin() + got.end, text.begin() + (int(i) + 1 - got.length)), what, ", token ", i);
    if (latest) CHECK(got.end == want[i].end, what, ", token ", i, ": the match that ends at ", got.end, " of those up to ", want[i].end);
  }
}

std::vector<int32_t> random_text(int length, int alphabet, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> text(length);
  for (int32_t& token : text) token = int32_t(random() % unsigned(alphabet)) * 7001;
  return text;
}

// abaababa...: every prefix is the one before it and the one before that; a text that is as repetitive as can be without a period.
std::vector<int32_t> fibonacci_word(int length) {
  std::vector<int32_t> text(length, 0);
  if (length > 1) text[1] = 1;
  for (int whole = 2, before = 1; whole < length; before = std::exchange(whole, whole + before))
    for (int i = 0; i < before && whole + i < length; ++i) text[whole + i] = text[i];
  return text;
}

std::vector<int32_t> thue_morse(int length) {
  std::vector<int32_t> text(length);
  for (int i = 0; i < length; ++i) text[i] = __builtin_popcount(unsigned(i)) & 1;
  return text;
}

Drafter::Limits limits_of(int slots, int tau, int max_len, double cost = 0.2) { return {slots, tau, max_len, cost}; }

std::vector<int32_t> proposed(Drafter& drafter, const std::vector<int32_t>& text, int most, DraftSource* source = nullptr) {
  std::vector<int32_t> run(most);
  const Proposal proposal = drafter.propose(0, text, most, run.data());
  if (source) *source = proposal.source;
  run.resize(proposal.length);
  return run;
}

}  // namespace

TEST(matches_equal_a_search_by_force) {
  Guarded automaton(1500);
  for (unsigned seed = 0; seed < 40; ++seed)
    for (int alphabet : {1, 2, 3, 5, 40, 1000}) {
      const int length = 1 + int(seed * 97 % 600);
      check_text(*automaton, random_text(length, alphabet, seed), alphabet > 2, message("alphabet ", alphabet, ", seed ", seed));
    }
  automaton.check();
}

TEST(matches_in_texts_that_are_hard) {
  constexpr int kLength = 1500;
  Guarded automaton(kLength);
  const auto check = [&](const std::vector<int32_t>& text, const char* what) { check_text(*automaton, text, false, what), automaton.check(); };
  check(std::vector<int32_t>(kLength, 9), "aaaa");
  check(fibonacci_word(kLength), "Fibonacci");
  check(thue_morse(kLength), "Thue-Morse");
  std::vector<int32_t> text(kLength, 1);
  text[0] = 0;
  check(text, "abbb: as many states as there can be");
  text.back() = 2;
  check(text, "abbbc: as many edges");
  for (int period : {2, 3, 7, 64}) {
    for (int i = 0; i < kLength; ++i) text[i] = i % period;
    check(text, "a period");
    text[kLength / 2] = 99;
    check(text, "a broken period");
  }
  for (int i = 0; i < kLength; ++i) text[i] = i;
  check(text, "all different");
  text = random_text(kLength / 2, 30, 5);
  text.insert(text.end(), text.begin(), text.end());
  check(text, "said twice");
}

TEST(memory_is_the_texts_and_its_capacity_is_enough) {
  for (int capacity = 1; capacity <= 40; ++capacity)
    for (int kind = 0; kind < 5; ++kind) {
      Guarded automaton(capacity);
      std::vector<int32_t> text = kind == 0 ? std::vector<int32_t>(capacity, 3) : kind == 1 ? fibonacci_word(capacity) : random_text(capacity, kind, 7);
      if (kind == 4 && capacity > 2) std::fill(text.begin() + 1, text.end() - 1, 5), text.back() = 6;
      for (int round = 0; round < 3; ++round) check_text(*automaton, text, false, message("capacity ", capacity, ", kind ", kind));
      automaton.check();
    }
  CHECK(SuffixAutomaton::bytes(8192) <= 8192 * 110, SuffixAutomaton::bytes(8192));
}

// Whatever was read before, long or short.
TEST(a_cleared_automaton_is_a_new_one) {
  Guarded used(3000), fresh(3000);
  for (int before : {1, 10, 200, 3000}) {
    used->clear();
    for (int32_t token : random_text(before, 50, unsigned(before))) used->append(token);
    check_text(*used, random_text(700, 50, 3), true, message("after ", before));
    CHECK(used->size() == 700);
  }
}

// Linear, or the deadline is missed by hours: half a million tokens of the hardest kinds.
TEST(a_token_costs_little_in_any_text) {
  constexpr int kLength = 1 << 19;
  const Watchdog watchdog(100);
  Guarded automaton(kLength);
  for (const std::vector<int32_t>& text : {std::vector<int32_t>(kLength, 1), fibonacci_word(kLength), random_text(kLength, 2, 1), random_text(kLength, 50000, 2)}) {
    automaton->clear();
    for (int32_t token : text) automaton->append(token);
  }
  automaton.check();
}

TEST(a_run_is_as_long_as_its_match) {
  const auto ngram = make_drafter(DrafterKind::ngram, *backend(), limits_of(1, 8, 100));
  using Tokens = std::vector<int32_t>;
  CHECK(proposed(*ngram, {1, 2, 3, 4, 1}, 8) == Tokens{}, "one token is no match");
  ngram->start(0);
  CHECK(proposed(*ngram, {1, 2, 3, 4, 1, 2}, 8) == (Tokens{3, 4}));
  CHECK(proposed(*ngram, {1, 2, 3, 4, 1, 2, 3, 4, 1}, 8) == (Tokens{2, 3, 4, 1, 2}), "it goes on over its own beginning");
  CHECK(proposed(*ngram, {1, 2, 3, 4, 1, 2, 3, 4, 1, 5}, 8) == Tokens{});
  CHECK(proposed(*ngram, {1, 2, 3, 4, 1, 2, 3, 4, 1, 5, 9, 1, 5}, 8) == (Tokens{9, 1}), "the latest place");
  CHECK(proposed(*ngram, {1, 2, 3, 4, 1, 2, 3, 4, 1, 5, 9, 1, 5}, 1) == (Tokens{9}), "no more than is wanted");
  CHECK(proposed(*ngram, {1, 2, 3, 4, 1, 2, 3, 4, 1, 5, 9, 1, 5}, 0) == (Tokens{}));
  ngram->start(0);
  CHECK(proposed(*ngram, Tokens(20, 6), 8) == Tokens(8, 6));
  ngram->start(0);
  CHECK(proposed(*ngram, {9, 1}, 8) == Tokens{}, "of another sequence");
}

// A prompt so long that reading it at once would make others wait is read in pieces, and nothing is proposed before.
TEST(a_long_prompt_is_read_in_pieces) {
  constexpr int kLength = 40000;
  const auto ngram = make_drafter(DrafterKind::ngram, *backend(), limits_of(1, 4, kLength));
  std::vector<int32_t> text(kLength, 0);
  for (int i = 0; i < kLength; ++i) text[i] = i % 100;
  int asked = 1;
  while (proposed(*ngram, text, 4).empty()) ++asked;
  CHECK(asked == 3, asked);
}

TEST(slots_do_not_meet) {
  const auto ngram = make_drafter(DrafterKind::ngram, *backend(), limits_of(3, 8, 50));
  std::vector<int32_t> run(8);
  const std::vector<int32_t> first{1, 2, 3, 1, 2}, second{9, 8, 1, 2, 7, 1, 2}, third{4, 5, 6};
  for (int round = 0; round < 2; ++round) {
    CHECK(ngram->propose(0, first, 8, run.data()).length == 2 && run[0] == 3);
    CHECK(ngram->propose(1, second, 8, run.data()).length == 2 && run[0] == 7);
    CHECK(ngram->propose(2, third, 8, run.data()).length == 0);
    ngram->start(round);
  }
}

TEST(the_source_that_emits_more_per_unit_of_cost) {
  SourceHistory even{.model_accepted = {2}, .model_drafted = {4}, .ngram_accepted = {{{2}, {2}, {2}, {2}}}};
  const auto chosen = [&](int match_length, int run, double draft_cost) { return choose_source(even, {DraftSource::ngram, run, match_class(match_length)}, 4, draft_cost); };
  CHECK(chosen(5, 4, 0.1) == DraftSource::ngram, "it costs nothing");
  CHECK(chosen(5, 0, 0.1) == DraftSource::model, "it has nothing");
  CHECK(chosen(5, 1, 0.05) == DraftSource::model, "a run of one is worth two tokens at most, the draft's three");
  even.ngram_accepted[match_class(5)].value = 0.5;
  CHECK(chosen(5, 4, 0.1) == DraftSource::model && chosen(9, 4, 0.1) == DraftSource::ngram, "by length of the match");
  CHECK(chosen(5, 4, 0.5) == DraftSource::ngram, "a draft half as dear as the target");
  even.model_accepted.value = even.model_drafted.value = 1;
  CHECK(chosen(5, 4, 0.2) == DraftSource::model, "one draft at a time, and always right");
  for (auto [length, number] : {std::pair(2, 0), {3, 1}, {4, 1}, {5, 2}, {8, 2}, {9, 3}, {1000, 3}}) CHECK(match_class(length) == number, length);
}

// The chain leaves a source that keeps failing, and comes back: what its n-gram would have proposed is judged in the draft's cycles too.
TEST(a_chain_follows_what_is_accepted) {
  constexpr int kTau = 4;
  ChainDrafter chain(*backend(), limits_of(1, kTau, 1000));
  chain.start(0);
  std::vector<int32_t> text{1, 2, 3, 1, 2, 3}, run(kTau);
  const auto cycle = [&](bool ngram_is_right, int by_model) {
    const Proposal proposal = chain.propose(0, text, kTau, run.data());
    CHECK(proposal.length > 0, text.size());
    const bool ngram = proposal.source == DraftSource::ngram;
    const int accepted = ngram ? (ngram_is_right ? proposal.length : 0) : by_model;
    std::vector<int32_t> emitted(accepted + 1, 500);
    for (int i = 0; ngram_is_right && i <= accepted; ++i) emitted[i] = run[i % proposal.length];
    chain.learn(0, proposal.source, ngram ? proposal.length : kTau, accepted, emitted);
    // The text stays as it is: its match is of three tokens each time.
    return proposal.source;
  };
  CHECK(cycle(true, 2) == DraftSource::ngram, "it is tried at first");
  for (int i = 0; i < 40; ++i) cycle(false, 3);
  CHECK(cycle(false, 3) == DraftSource::model, "it has failed");
  int later = 0;
  while (cycle(true, 2) == DraftSource::model) CHECK(++later < 40, "never again");
  CHECK(later > 1, later);
  chain.start(0);
  CHECK(cycle(true, 2) == DraftSource::ngram, "another sequence begins anew");
}

// ------------------------------------------------------------------------------------------------ engines

namespace {

// Prompts that say things twice, and texts of few different tokens or of one: tiny models of random weights would not repeat themselves.
std::vector<Job> repetitive_jobs(int count, double temperature, int vocab, unsigned seed, int max_tokens = 60) {
  std::vector<Job> jobs = jobs_of(count, temperature, vocab, seed, max_tokens);
  std::mt19937 random(seed);
  for (size_t number = 0; number < jobs.size(); ++number) {
    Job& job = jobs[number];
    if (number % 4 < 2) job.params.logit_bias = {{int(number), 30.0}, {int(number) + 1, 30.0}, {int(number) + 2, 30.0}};
    if (number % 4 == 2) job.params.repetition_penalty = 1, job.params.frequency_penalty = -1;
    const std::vector<int32_t> once(job.prompt.begin(), job.prompt.begin() + std::min<size_t>(job.prompt.size(), 3 + random() % 20));
    for (unsigned i = 0; i < 1 + random() % 3; ++i) job.prompt.insert(job.prompt.end(), once.begin(), once.end());
  }
  return jobs;
}

long sum_of(const std::vector<Text>& texts, int Text::*field) {
  long sum = 0;
  for (const Text& text : texts) sum += text.*field;
  return sum;
}

void check_parity(DType dtype, double temperature, unsigned seed, Acceptance acceptance = Acceptance::coupled) {
  long accepted = 0, rejected = 0;
  for (const Pair& pair : pairs(dtype)) {
    const std::vector<Job> jobs = repetitive_jobs(8, temperature, pair.target->config().vocab_size, seed);
    const std::vector<Text> plain = decode(pair.target, nullptr, 0, 1, jobs);
    for (int tau : {1, 2, 3, 5, 8}) {
      const std::string what = message(pair.name, ", tau ", tau, ", T ", temperature, ", ", name_of(dtype));
      const std::vector<Text> by_ngram = decode(pair.target, nullptr, tau, 1 + tau % 4, jobs, acceptance, 64, nullptr, nullptr, DrafterKind::ngram);
      check_equal(by_ngram, plain, what + ", ngram");
      accepted += sum_of(by_ngram, &Text::accepted), rejected += sum_of(by_ngram, &Text::drafted) - sum_of(by_ngram, &Text::accepted);
      const std::vector<Text> by_chain = decode(pair.target, pair.draft, tau, 1 + tau % 4, jobs, acceptance, 64, nullptr, nullptr, DrafterKind::chain);
      check_equal(by_chain, plain, what + ", chain");
      check_draft_kv(pair.draft, jobs, by_chain, what);
    }
  }
  CHECK(accepted > 100 && rejected > 100, accepted, " accepted, ", rejected, " rejected");
}

EngineOptions small_options(DrafterKind kind, int tau, int batch, int tokens) {
  EngineOptions options;
  options.num_speculative_tokens = tau;
  options.max_model_len = 320;
  options.max_num_seqs = batch;
  options.kv_dtype = DType::bf16;
  options.kv_cache_tokens = tokens;
  options.prefill_chunk = options.prefill_chunk_beside = 64;
  options.drafter = kind;
  return options;
}

}  // namespace

TEST(greedy_fp32) { check_parity(DType::fp32, 0, 1); }
TEST(greedy_int8) { check_parity(DType::int8, 0, 2); }
TEST(sampled_bf16) { check_parity(DType::bf16, 0.4, 3); }
TEST(greedy_under_rejection) { check_parity(DType::bf16, 0, 4, Acceptance::rejection); }

// What is told of the host's drafts, whoever drafted, is what came out.
class Watching : public PlantedCosts {
 public:
  Watching(const ControllerOptions& options, Machine machine, std::map<int, long>* taus, long* judged_undrafted)
      : PlantedCosts(options, std::move(machine), 0.3, 5, taus), judged_undrafted_(judged_undrafted) {}
  void choose(std::span<const Candidate> candidates, std::span<TauChoice> choices) override {
    PlantedCosts::choose(candidates, choices);
    for (size_t i = 0; i < candidates.size(); ++i) CHECK(candidates[i].own >= 0 || choices[i].tau <= candidates[i].most, choices[i].tau, " drafts of ", candidates[i].most);
  }
  void observe(const CycleCost& cost, std::span<const Judged> judged) override {
    for (const Judged& each : judged) {
      CHECK(each.run_judged - each.run_right <= 1 && each.run_right <= each.run_judged, each.run_right, " of ", each.run_judged);
      if (each.tau > 0 && each.passes == 0) CHECK(each.accepted == std::min(each.tau, each.run_right), each.accepted, " of ", each.tau, ", ", each.run_right, " right");
      *judged_undrafted_ += each.tau == 0 && each.run_judged > 0;
    }
    PlantedCosts::observe(cost, judged);
  }

 private:
  long* judged_undrafted_;
};

TEST(a_policy_over_what_the_text_drafts_changes_no_bit) {
  const Machine rising{"rising", 0.15, 0.1, 0.05}, dear{"dear", 1.0, 1.0, 0.0};
  long judged_undrafted = 0;
  for (double temperature : {0.0, 0.5})
    for (const Pair& pair : pairs(DType::bf16)) {
      const std::vector<Job> jobs = repetitive_jobs(8, temperature, pair.target->config().vocab_size, 9);
      const std::vector<Text> plain = decode(pair.target, nullptr, 0, 1, jobs);
      for (DrafterKind kind : {DrafterKind::ngram, DrafterKind::chain})
        for (Policy policy : {Policy::automatic, Policy::latency})
          for (const Machine& machine : {rising, dear}) {
            const int batch = kind == DrafterKind::ngram ? 3 : 2;
            const double latency = policy == Policy::latency ? 2.2 : 0;
            const auto draft = kind == DrafterKind::chain ? pair.draft : nullptr;
            const std::string what = message(pair.name, ", ", name_of(kind), ", ", machine.name, latency > 0 ? ", latency" : ", auto", ", T ", temperature);
            std::map<int, long> taus;
            const std::vector<Text> texts = decode(
                pair.target, draft, 6, batch, jobs, Acceptance::coupled, 64,
                [&](EngineOptions& options) { options.policy = policy, options.latency_target = latency; },
                std::make_unique<Watching>(ControllerOptions{policy, 6, batch, latency}, machine, &taus, &judged_undrafted), kind);
            check_equal(texts, plain, what);
            if (draft) check_draft_kv(draft, jobs, texts, what);
            CHECK(taus.size() > 1, what, ": one tau only, so nothing is shown");
          }
    }
  CHECK(judged_undrafted > 100, judged_undrafted);
}

TEST(a_budget_needs_a_draft_that_says_how_sure_it_is) {
  const Pair pair = pairs(DType::bf16)[0];
  const auto built = [&] {
    decode(pair.target, nullptr, 2, 1, {}, Acceptance::coupled, 64, [](EngineOptions& o) { o.policy = Policy::budget, o.verify_budget = 4; }, nullptr, DrafterKind::ngram);
  };
  CHECK_THROWS(built(), std::invalid_argument, "[Engine] policy must not be \"budget\" where the host drafts");
}

// Little memory, prompts that begin alike, requests of their own tau, cancels: still the bits of plain decoding.
TEST(pages_prefixes_and_cancels) {
  const Pair pair = pairs(DType::bf16)[0];
  for (DrafterKind kind : {DrafterKind::ngram, DrafterKind::chain}) {
    const auto draft = kind == DrafterKind::chain ? pair.draft : nullptr;
    std::mt19937 random(unsigned(kind) + 10);
    std::vector<Job> jobs = repetitive_jobs(60, 0.0, pair.target->config().vocab_size, 77, 40);
    for (size_t i = 0; i < jobs.size(); ++i) {
      if (i % 2) {  // begins as another does
        const Job& other = jobs[random() % i];
        jobs[i].prompt.insert(jobs[i].prompt.begin(), other.prompt.begin(), other.prompt.end());
      }
      jobs[i].prompt.resize(std::min<size_t>(jobs[i].prompt.size(), 200));
      jobs[i].params.temperature = i % 3 ? 0.0 : 0.5;
      jobs[i].params.max_tokens = 1 + int(random() % 60);
      jobs[i].params.logprobs = -1;
    }
    const std::vector<Text> plain = decode(pair.target, nullptr, 0, 2, jobs);
    Engine engine(backend(), pair.target, draft, small_options(kind, 6, 3, 448));
    std::map<int64_t, size_t> place;
    std::vector<std::vector<int>> texts(jobs.size());
    std::set<size_t> cancelled;
    size_t next = 0, steps = 0;
    long accepted = 0;
    while (next < jobs.size() || !engine.idle()) {
      if (next < jobs.size() && engine.waiting() < 4) {
        RequestParams params = jobs[next].params;
        params.num_speculative_tokens = int(next % 8) - 1;
        place[engine.add(jobs[next].prompt, params)] = next;
        ++next;
      }
      if (++steps % 17 == 0) engine.cancel(place.rbegin()->first), cancelled.insert(place.rbegin()->second);
      for (const Output& output : engine.step()) {
        std::vector<int>& text = texts[place.at(output.request)];
        text.insert(text.end(), output.tokens.begin(), output.tokens.end());
        accepted += output.accepted;
      }
    }
    for (size_t i = 0; i < jobs.size(); ++i) {
      const bool whole = texts[i].size() == plain[i].tokens.size();
      CHECK(whole || cancelled.count(i), "request ", i, " of drafter ", int(kind), ": ", texts[i].size(), " tokens of ", plain[i].tokens.size());
      CHECK(std::equal(texts[i].begin(), texts[i].end(), plain[i].tokens.begin()), "request ", i, " of drafter ", int(kind));
    }
    CHECK(accepted > 100, accepted);
    CHECK(engine.stats().num_cached_prompt_tokens > 0, "no prefix was reused");
  }
}

// A chain lets the draft fall behind while the n-gram drafts, and catches up before it is asked again.
TEST(a_chain_uses_both_and_says_so) {
  const Pair pair = pairs(DType::fp32)[0];
  EngineOptions options = small_options(DrafterKind::chain, 4, 2, 640);
  options.kv_dtype = DType::fp32;
  Engine engine(backend(), pair.target, pair.draft, options);
  for (const Job& job : repetitive_jobs(12, 0.0, pair.target->config().vocab_size, 5, 60)) engine.add(job.prompt, job.params);
  while (!engine.idle()) engine.step();
  const TraceColumns trace = engine.trace();
  const size_t n = trace.cycle.size();
  CHECK(n > 50, n);
  int by_model = 0, by_ngram = 0, fell_behind = 0;
  for (size_t i = 0; i < n; ++i) {
    if (trace.tau[i] == 0) continue;
    const bool ngram = trace.source[i] == uint8_t(DraftSource::ngram);
    (ngram ? by_ngram : by_model) += 1;
    for (int j = 0; j < trace.tau[i]; ++j) {
      const size_t at = i * size_t(trace.tau_max) + size_t(j);
      CHECK(trace.drafted[at] >= 0);
      CHECK(std::isnan(trace.draft_logprob[at]) == ngram, "a proposal from the text has no row of the draft");
      if (j < trace.emitted[i]) CHECK(trace.agreement[at] == float(j < trace.accepted[i]), "cycle ", trace.cycle[i]);
    }
    if (ngram) CHECK(std::isnan(trace.catch_up_agreement[i]));
  }
  for (size_t i = 2; i < n; ++i)
    fell_behind += trace.tau[i] > 0 && trace.source[i] == 0 && trace.source[i - 1] == 1 && trace.source[i - 2] == 1;
  CHECK(by_model > 10 && by_ngram > 10 && fell_behind > 0, by_model, " ", by_ngram, " ", fell_behind);
}

// The same requests, the same choices: under `rejection` a seed gives the same text again.
TEST(a_chain_goes_by_no_clock) {
  const Pair pair = pairs(DType::bf16)[0];
  const std::vector<Job> jobs = repetitive_jobs(8, 0.8, pair.target->config().vocab_size, 6);
  const std::vector<Text> once = decode(pair.target, pair.draft, 4, 3, jobs, Acceptance::rejection, 64, nullptr, nullptr, DrafterKind::chain);
  check_equal(decode(pair.target, pair.draft, 4, 3, jobs, Acceptance::rejection, 64, nullptr, nullptr, DrafterKind::chain), once, "again");
}

TEST(what_does_not_go_together_is_refused) {
  const Pair pair = pairs(DType::bf16)[0];
  const auto make = [&](DrafterKind kind, bool draft, int tau) { Engine(backend(), pair.target, draft ? pair.draft : nullptr, small_options(kind, tau, 1, 320)); };
  CHECK_THROWS(make(DrafterKind::chain, false, 2), std::invalid_argument, "drafter must be model or ngram without a draft, got chain");
  CHECK_THROWS(make(DrafterKind::ngram, true, 2), std::invalid_argument, "drafter must be model or chain with a draft, got ngram");
  CHECK_THROWS(make(DrafterKind::model, false, 2), std::invalid_argument, "num_speculative_tokens must be 0 without a draft");
  make(DrafterKind::ngram, false, 0);
  Engine engine(backend(), pair.target, nullptr, small_options(DrafterKind::ngram, 2, 1, 320));
  RequestParams params;
  params.num_speculative_tokens = 3;
  CHECK_THROWS(engine.add({1}, params), std::invalid_argument, "num_speculative_tokens must be in [0, 2]");
}

// A draft whose context ends early is no bound for the n-gram.
TEST(beyond_the_drafts_context_the_ngram_goes_on) {
  TinyShape shape, brief = shape;
  brief.context = 70;
  const auto target = tiny_weights(backend(), shape, DType::fp32, 1), draft = tiny_weights(backend(), brief, DType::fp32, 1, 0.1f);
  std::vector<Job> jobs = repetitive_jobs(6, 0.0, shape.vocab, 31, 100);
  for (Job& job : jobs) job.params.stop_token_ids.clear();
  const std::vector<Text> plain = decode(target, nullptr, 0, 1, jobs);
  const std::vector<Text> chain = decode(target, draft, 4, 2, jobs, Acceptance::coupled, 64, nullptr, nullptr, DrafterKind::chain);
  check_equal(chain, plain, "short draft");
  CHECK(sum_of(chain, &Text::accepted) > 100, sum_of(chain, &Text::accepted));
}

TEST_MAIN()
