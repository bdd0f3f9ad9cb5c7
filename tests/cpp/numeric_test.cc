// What is not a number, and temperatures at both ends: a bad row of the target ends its own request and no other, a bad row of the
// draft proposes nothing and is counted, a row that denies its draft gets it rejected, and every finite temperature is one.
#include <limits>
#include <set>

#include "cpp/table_engine.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr int kIds = 5, kTau = 4, kSlots = 3, kTokens = 24;
const std::vector<int32_t> kPrompt = {2, 1, 4};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

std::vector<RequestParams> three(double temperature) {
  std::vector<RequestParams> requests;
  for (int i = 0; i < kSlots; ++i) requests.push_back(sampling(temperature, uint64_t(i) + 5, kTokens));
  return requests;
}

void spoil(float* logits, float value) {
  if (value == -kInfinity) std::fill(logits, logits + kIds, value);  // nothing left to choose
  else logits[1] = value;
}

// Places of a cycle (0 = the first row) at which the text's token at `position` was chosen.
int place_of(const TableText& text, int position) {
  for (size_t i = text.cycles.size(); i-- > 0;)
    if (text.cycles[i].first <= position) return position - text.cycles[i].first;
  return -1;
}

// Of the cycles that could have drafted the token at `position` but had no row for it: how many drafts they had.
std::vector<int> faults_at(const TableText& text, int position) {
  std::vector<int> places;
  for (size_t i = 1; i < text.cycles.size(); ++i) {  // the first one drafts nothing: the draft's prompt is cached behind it
    const auto& [first, tau, accepted] = text.cycles[i];
    const int wanted = std::min(kTau, int(kPrompt.size()) + kTokens - first - 1);
    if (tau < wanted && first + tau == position) places.push_back(tau);
  }
  return places;
}

const char* name_of_rule(Acceptance rule) { return rule == Acceptance::coupled ? "coupled" : "rejection"; }

}  // namespace

TEST(a_bad_row_of_the_target_ends_its_own_request_at_every_place) {
  const TablePair pair = table_pair(kIds, DraftKind::noisy);
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection}) {
    TableEngine sound(pair, rule, kTau, kSlots, 64);
    const std::vector<TableText> want = decode(sound, kPrompt, three(1.0));
    std::set<std::pair<int, int>> seen;  // (slot, place)
    for (int victim = 0; victim < kSlots; ++victim)
      for (int at = int(kPrompt.size()); at < int(want[victim].tokens.size()); ++at)
        for (float value : {kNan, kInfinity, -kInfinity}) {
          const std::string where = message(name_of_rule(rule), ", slot ", victim, ", position ", at, ", ", value);
          TableEngine engine(pair, rule, kTau, kSlots, 64);
          engine.target().after_row = [&](int slot, int position, int32_t token, float* logits) {
            if (slot == victim && position == at - 1 && token == want[victim].tokens[at - 1]) spoil(logits, value);
          };
          const std::vector<TableText> got = decode(engine, kPrompt, three(1.0));
          for (int i = 0; i < kSlots; ++i)
            if (i != victim) CHECK(got[i].same_as(want[i]), where, ": slot ", i, " is another");
          const TableText &cut = got[victim], &whole = want[victim];
          CHECK(cut.finish == FinishReason::error, where, ": ", name_of(cut.finish));
          CHECK(cut.error.find(message("position ", at)) != std::string::npos, where, ": ", cut.error);
          CHECK(cut.error.find(value == -kInfinity ? "leave no token" : "NaN or infinity") != std::string::npos, where, ": ", cut.error);
          CHECK(int(cut.tokens.size()) == at, where, ": ", cut.tokens.size(), " tokens");
          CHECK(std::equal(cut.tokens.begin(), cut.tokens.end(), whole.tokens.begin()), where, ": another text");
          CHECK(std::equal(cut.logprobs.begin(), cut.logprobs.end(), whole.logprobs.begin()), where, ": other logprobs");
          seen.insert({victim, place_of(whole, at)});
        }
    CHECK(seen.size() == size_t(kSlots) * (kTau + 1), name_of_rule(rule), ": ", seen.size(), " places were tried");
  }
}

TEST(a_bad_row_of_the_draft_proposes_nothing_and_is_counted) {
  const TablePair pair = table_pair(kIds, DraftKind::noisy);
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection}) {
    TableEngine sound(pair, rule, kTau, kSlots, 64);
    const std::vector<TableText> want = decode(sound, kPrompt, three(1.0));
    for (const TableText& text : want) CHECK(text.stats.num_draft_faults == 0);
    std::set<std::pair<int, int>> seen;
    for (int victim = 0; victim < kSlots; ++victim)
      for (int at = int(kPrompt.size()) + 1; at < int(kPrompt.size()) + kTokens - 1; ++at)
        for (float value : {kNan, kInfinity, -kInfinity}) {
          const std::string where = message(name_of_rule(rule), ", slot ", victim, ", position ", at, ", ", value);
          TableEngine engine(pair, rule, kTau, kSlots, 64);
          engine.draft().after_row = [&](int slot, int position, int32_t, float* logits) {
            if (slot == victim && position == at - 1) spoil(logits, value);
          };
          const std::vector<TableText> got = decode(engine, kPrompt, three(1.0));
          for (int i = 0; i < kSlots; ++i)
            if (i != victim) CHECK(got[i].same_as(want[i]), where, ": slot ", i, " is another");
          const TableText& text = got[victim];
          CHECK(text.finish == FinishReason::length && text.tokens.size() == kPrompt.size() + kTokens, where, ": ", name_of(text.finish));
          if (rule == Acceptance::coupled) CHECK(text.same_as(want[victim]), where, ": another text");
          const std::vector<int> places = faults_at(text, at);
          const int faults = int(places.size());
          CHECK(text.stats.num_draft_faults == faults, where, ": ", text.stats.num_draft_faults, " faults counted of ", faults);
          for (const TableCycle& cycle : text.cycles)
            if (cycle.first <= at && at < cycle.first + cycle.tau) CHECK(false, where, ": proposed all the same");
          for (int place : places) seen.insert({victim, place});
          CHECK(engine->stats().num_draft_faults == faults, where, ": the engine's count");
        }
    CHECK(seen.size() == size_t(kSlots) * kTau, name_of_rule(rule), ": ", seen.size(), " places were tried");
  }
}

// `rejection`, fail closed: the row of a draft is not the one that it was drawn from any more. It gives the draft nothing, or is no row at
// all; then no draft is accepted, and in the second case the text is that of plain decoding.
TEST(a_row_that_denies_its_draft_gets_it_rejected) {
  const TablePair pair = table_pair(kIds, DraftKind::noisy);
  for (float value : {-kInfinity, kNan}) {
    TableEngine plain(pair, Acceptance::rejection, kTau, 1, 64), engine(pair, Acceptance::rejection, kTau, 1, 64);
    std::map<int, float*> rows;  // of this cycle's drafts, by the position that was fed
    engine.draft().after_row = [&](int, int position, int32_t, float* logits) { rows[position] = logits; };
    engine.target().after_row = [&](int, int position, int32_t token, float*) {
      const auto found = rows.find(position - 1);  // it proposed the token that is fed here
      if (found == rows.end()) return;
      found->second[token] = value;
      rows.erase(found);
    };
    for (uint64_t seed = 0; seed < 40; ++seed) {
      RequestParams alone = sampling(1.0, seed, kTokens);
      alone.num_speculative_tokens = 0;
      const TableText want = decode(plain, kPrompt, {alone})[0], got = decode(engine, kPrompt, {sampling(1.0, seed, kTokens)})[0];
      rows.clear();
      CHECK(got.finish == FinishReason::length && got.stats.num_draft_tokens > 30, got.stats.num_draft_tokens);
      CHECK(got.stats.num_accepted_draft_tokens == 0, "seed ", seed, ", ", value, ": ", got.stats.num_accepted_draft_tokens, " accepted");
      if (value != -kInfinity) CHECK(got.tokens == want.tokens, "seed ", seed, ": another text than plain decoding's");
    }
  }
}

constexpr double kTemperatures[] = {5e-324, 1e-310, 2.3e-308, 1e-301, 1e-300, 1e-30, 1e-6, 1e-3, 0.1, 1, 100, 1e30, 1e300, 1e302, 1.7e308};

TEST(speculation_changes_nothing_at_any_temperature) {
  const TablePair pair = table_pair(kIds, DraftKind::noisy);
  for (double temperature : kTemperatures) {
    TableEngine plain(pair, Acceptance::coupled, kTau, 1, 64), engine(pair, Acceptance::coupled, kTau, kSlots, 64);
    std::vector<RequestParams> requests = three(temperature);
    requests[1].temperature = 0;  // a mixed batch
    const std::vector<TableText> got = decode(engine, kPrompt, requests);
    for (int i = 0; i < kSlots; ++i) {
      RequestParams alone = requests[i];
      alone.num_speculative_tokens = 0;
      CHECK(got[i].same_as(decode(plain, kPrompt, {alone})[0]), "T ", temperature, ", slot ", i);
      alone.temperature = 0;
      if (temperature < 1e-5) CHECK(got[i].tokens == decode(plain, kPrompt, {alone})[0].tokens, "T ", temperature, ", slot ", i, ": not the best tokens");
    }
  }
}

// Beyond all logits nothing is told from anything: pairs of neighbouring tokens are uniform.
TEST(a_temperature_beyond_all_logits_is_uniform) {
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection})
    for (double temperature : {1e30, 1e302, 1.7e308}) {
      TableEngine engine(table_pair(kIds, DraftKind::noisy), rule, kTau, kSlots, 64);
      std::vector<RequestParams> requests;
      const int texts = int(statistics_size(2000));
      for (int i = 0; i < texts; ++i) requests.push_back(sampling(temperature, uint64_t(i) + (statistics_seed() << 32), 21));
      std::vector<long> pairs(kIds * kIds, 0);
      std::map<int64_t, std::vector<int>> tokens;
      for (const RequestParams& each : requests) tokens[engine->add(kPrompt, each)];
      while (!engine->idle())
        for (const Output& output : engine->step())
          tokens.at(output.request).insert(tokens.at(output.request).end(), output.tokens.begin(), output.tokens.end());
      for (const auto& [id, text] : tokens)
        for (size_t i = 0; i + 1 < text.size(); i += 2) ++pairs[text[i] * kIds + text[i + 1]];
      const auto result = reference::chi_square(pairs, std::vector<double>(pairs.size(), 10.0 * texts / double(pairs.size())));
      CHECK(result.p_value >= 1e-6, name_of_rule(rule), ", T ", temperature, ": X2 = ", result.statistic, ", p = ", result.p_value);
    }
}

// Exact ties: T = 0, and what is as good as 0, takes the lowest id, alone and beside others, whatever the rule.
TEST(ties_go_to_the_lowest_id) {
  TablePair pair = table_pair(kIds, DraftKind::equal);
  for (Table* table : {&pair.target, &pair.draft})
    for (size_t i = 0; i < table->logits.size(); ++i) table->logits[i] = i % size_t(table->vocab) < 2 ? 0 : 2.5f;  // best: 2 to 4
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection})
    for (double temperature : {0.0, 5e-324, 1e-310})
      for (bool mixed : {false, true}) {
        TableEngine engine(pair, rule, kTau, kSlots, 64);
        std::vector<RequestParams> requests = three(temperature);
        if (mixed) requests[0].temperature = requests[2].temperature = 0.8;
        const std::vector<TableText> got = decode(engine, kPrompt, requests);
        for (int i = 0; i < kSlots; ++i) {
          std::set<int> ids(got[i].tokens.begin() + kPrompt.size(), got[i].tokens.end());
          if (mixed && i != 1) CHECK(ids.size() > 1, "rule ", int(rule), ", slot ", i);
          else CHECK(ids == std::set<int>{2}, name_of_rule(rule), ", T ", temperature, ", slot ", i, ": ", *ids.rbegin());
          CHECK(got[i].stats.num_accepted_draft_tokens == got[i].stats.num_draft_tokens, name_of_rule(rule), ", T ", temperature);
        }
      }
}

TEST_MAIN()
