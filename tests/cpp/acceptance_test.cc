// Acceptance is exactly what theory says, and the token exactly what the seed says: bugs that leave the law right and only make
// drafts worse (a hole in the draft's cache, the draft's noise one position off) show nowhere else.
#include <limits>

#include "cpp/table_engine.h"
#include "math/noise.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr int kIds = 5;
const std::vector<int32_t> kPrompt = {2, 1, 4};  // the draft of 4 ids does not know its last token

// Probability that the draft's proposal is accepted, given the two laws of that row (design section 1, alpha).
double exact_acceptance(Acceptance rule, const std::vector<double>& target, const std::vector<double>& draft) {
  double sum = 0;
  for (size_t x = 0; x < target.size(); ++x) {
    if (rule == Acceptance::rejection) {
      sum += std::min(target[x], draft[x]);
    } else if (target[x] > 0 && draft[x] > 0) {  // both argmaxes fall on x
      double worst = 0;
      for (size_t y = 0; y < target.size(); ++y) worst += std::max(target[y] / target[x], draft[y] / draft[x]);
      sum += 1 / worst;
    }
  }
  return sum;
}

// z of sum(A_j - b_j), a martingale: b_j is the exact acceptance of row j given everything before it. Over all rows, and over those of
// each place in the cycle.
struct AcceptanceZ {
  static constexpr int kTau = 3;
  double sum[kTau] = {}, variance[kTau] = {}, accepted = 0;
  long judged = 0;

  void judge(int place, bool was_accepted, double b) {
    sum[place] += was_accepted - b, variance[place] += b * (1 - b), accepted += was_accepted, ++judged;
  }
  static double z(double sum, double variance) { return variance > 0 ? sum / std::sqrt(variance) : sum; }
  double at(int place) const { return z(sum[place], variance[place]); }
  double all() const { return z(sum[0] + sum[1] + sum[2], variance[0] + variance[1] + variance[2]); }
};

AcceptanceZ acceptance_z(Acceptance rule, DraftKind kind, const RequestParams& base, int batch, long judged_goal,
                         const std::vector<int32_t>& prompt = kPrompt) {
  constexpr int kTau = AcceptanceZ::kTau, kTokens = 20;
  TableEngine engine(table_pair(kIds, kind), rule, kTau, batch, int(prompt.size()) + 64);
  std::map<int64_t, std::vector<int>> texts;
  std::map<std::pair<int, int>, double> known;  // by the last two tokens, when nothing else matters
  const bool has_history = base.repetition_penalty != 1 || base.frequency_penalty != 0;
  AcceptanceZ result;
  uint64_t seed = 1 + (statistics_seed() << 32);
  const auto ask = [&] {
    RequestParams p = base;
    p.max_tokens = kTokens;
    p.seed = seed++;
    texts[engine->add(prompt, p)].assign(prompt.begin(), prompt.end());
  };
  for (int i = 0; i < batch; ++i) ask();
  while (result.judged < judged_goal)
    for (const Output& output : engine->step()) {
      std::vector<int>& text = texts.at(output.request);
      for (int j = 0; j < output.tau && j <= output.accepted; ++j) {
        const std::pair context{text[text.size() - 2], text.back()};
        auto found = known.find(context);
        double b;
        if (found == known.end() || has_history) {
          b = exact_acceptance(rule, engine.target_law(base, text, int(prompt.size())), engine.draft_law(base, text, int(prompt.size())));
          known[context] = b;
        } else {
          b = found->second;
        }
        result.judge(j, j < output.accepted, b);
        text.push_back(output.tokens[j]);
      }
      for (size_t j = std::min(output.tau, output.accepted + 1); j < output.tokens.size(); ++j) text.push_back(output.tokens[j]);
      if (output.finish == FinishReason::none) continue;
      texts.erase(output.request);
      ask();
    }
  const RequestStats all = engine->stats();  // all but the first ones begin with pages that others have left
  CHECK(all.num_cached_prompt_tokens >= (all.num_requests - batch) * int64_t((prompt.size() - 1) / kPagePositions * kPagePositions));
  return result;
}

}  // namespace

TEST(acceptance_is_its_exact_expectation) {
  const char* chosen = std::getenv("PACELINE_TEST_SCALE");  // never fewer: a hole in the draft's cache needs them
  const double scale = chosen ? std::max(1.0, std::atof(chosen)) : 1.0;
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection})
    for (DraftKind kind : {DraftKind::noisy, DraftKind::reversed, DraftKind::smaller, DraftKind::larger})
      for (int variant = 0; variant < 3; ++variant) {
        RequestParams p;
        p.temperature = variant == 2 ? 0.7 : 1.0;
        if (variant == 1) p.top_k = 4, p.top_p = 0.9, p.repetition_penalty = 1.2, p.frequency_penalty = 0.1;
        const AcceptanceZ of = acceptance_z(rule, kind, p, variant == 2 ? 7 : 1, long(160000 * scale));
        const std::string where = message("rule ", int(rule), ", draft ", int(kind), ", variant ", variant);
        const double mean = of.accepted / double(of.judged), z = of.all();
        CHECK(std::fabs(z) < 5, where, ": z = ", z, ", mean acceptance ", mean);
        for (int place = 0; place < AcceptanceZ::kTau; ++place)
          CHECK(std::fabs(of.at(place)) < 5, where, ", place ", place, ": z = ", of.at(place));
        if (variant == 0 && kind == DraftKind::noisy) std::printf("      %s: %.4f accepted, z = %.2f\n", rule == Acceptance::coupled ? "coupled" : "rejection", mean, z);
      }
}

// Behind a prefix that earlier requests have left in both caches, what is accepted is the same: no row of the draft is missing or another's.
TEST(acceptance_is_its_exact_expectation_behind_a_reused_prefix) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < 126; ++i) prompt.push_back(i * i % kIds);
  prompt.insert(prompt.end(), kPrompt.begin(), kPrompt.end());  // 129 tokens: the first draft reads the last row of the last page
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection})
    for (DraftKind kind : {DraftKind::noisy, DraftKind::smaller})
      for (int batch : {1, 4}) {
        RequestParams p;
        p.temperature = 1;
        const AcceptanceZ of = acceptance_z(rule, kind, p, batch, 160000, prompt);
        const double z = of.all(), mean = of.accepted / double(of.judged);
        CHECK(std::fabs(z) < 5, "rule ", int(rule), ", draft ", int(kind), ", batch ", batch, ": z = ", z, ", mean acceptance ", mean);
      }
}

// Neither slot, nor batch, nor what the neighbours do can change a bit: tokens, logprobs and what was accepted.
TEST(a_request_is_alone_in_any_batch) {
  const TablePair pair = table_pair(kIds, DraftKind::noisy);
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection}) {
    std::vector<RequestParams> requests;
    for (int i = 0; i < 21; ++i) {
      requests.push_back(sampling(i % 5 ? 1.0 : 0.0, uint64_t(i) << 40, 20 + 3 * i));
      requests.back().num_speculative_tokens = i % 4;
    }
    // Under `rejection` noise is addressed by cycles: seven come together and end before the next, so that no draft waits for others' prompts.
    TableEngine crowded(pair, rule, 4, 7, 128);
    const size_t at_once = rule == Acceptance::coupled ? requests.size() : 7;
    std::vector<TableText> together;
    for (size_t i = 0; i < requests.size(); i += at_once)
      for (TableText& text : decode(crowded, kPrompt, {requests.begin() + i, requests.begin() + i + at_once})) together.push_back(std::move(text));
    for (size_t i = 0; i < requests.size(); ++i) {
      TableEngine engine(pair, rule, 4, 1, 128);
      const TableText alone = decode(engine, kPrompt, {requests[i]})[0];
      CHECK(together[i].tokens == alone.tokens && together[i].logprobs == alone.logprobs, "rule ", int(rule), ", request ", i);
      CHECK(together[i].stats.num_accepted_draft_tokens == alone.stats.num_accepted_draft_tokens, "rule ", int(rule), ", request ", i);
    }
    for (size_t i = 1; i < requests.size(); ++i)
      for (size_t j = 1; j < i; ++j)
        CHECK(i % 5 == 0 || j % 5 == 0 || !std::equal(together[j].tokens.begin(), together[j].tokens.end(), together[i].tokens.begin()),
              "rule ", int(rule), ", requests ", j, " and ", i, " say the same although their seeds differ");
  }
}

TEST(a_draft_that_is_the_target_is_always_accepted) {
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection})
    for (double temperature : {0.0, 0.7, 1.0}) {
      TableEngine engine(table_pair(kIds, DraftKind::equal), rule, 4, 3, 64);
      std::vector<RequestParams> requests;
      for (int i = 0; i < 200; ++i) {
        requests.push_back(sampling(temperature, uint64_t(i), 50));
        RequestParams& p = requests.back();
        if (i % 2) p.frequency_penalty = 0.5, p.repetition_penalty = 1.1, p.top_k = 4;  // which see the drafts before them
        if (i % 4 == 3) p.stop_token_ids = {0, 2}, p.min_tokens = 50;
      }
      for (const TableText& text : decode(engine, kPrompt, requests))
        CHECK(text.stats.num_draft_tokens > 30 && text.stats.num_accepted_draft_tokens == text.stats.num_draft_tokens, "rule ", int(rule),
              ", T ", temperature, ": ", text.stats.num_accepted_draft_tokens, " of ", text.stats.num_draft_tokens);
    }
}

// Under `coupled` a token is argmax(logits / T + Gumbel(seed, position, id)), whatever the draft did. The position counts from the
// prompt's first token, which no law can tell.
TEST(a_coupled_token_is_what_its_seed_says) {
  for (DraftKind kind : kDraftKinds) {
    TableEngine engine(table_pair(kIds, kind), Acceptance::coupled, 4, 2, 64);
    const TablePair pair = table_pair(kIds, kind);
    for (const double temperature : {0.6, 1.0}) {
      std::vector<RequestParams> requests;
      for (int i = 0; i < 100; ++i) requests.push_back(sampling(temperature, uint64_t(i) * 0x9E3779B97F4A7C15u, 40));
      const std::vector<TableText> texts = decode(engine, kPrompt, requests);
      for (size_t i = 0; i < texts.size(); ++i)
        for (size_t at = kPrompt.size(); at < texts[i].tokens.size(); ++at) {
          const float* row = pair.target.row(texts[i].tokens[at - 2], texts[i].tokens[at - 1]);
          int best = 0;
          double most = -INFINITY;
          for (int id = 0; id < kIds; ++id) {
            const double e = exponential_at({requests[i].seed, uint32_t(at), 0, Purpose::token, 0}, uint32_t(id));
            const double score = double(row[id]) / temperature - std::log(e);
            if (score > most) most = score, best = id;
          }
          CHECK(texts[i].tokens[at] == best, "draft ", int(kind), ", request ", i, ", position ", at);
        }
    }
  }
}

// Rows after the first mismatch are conditioned on tokens that do not exist: NaN there must not be met. In a row that is reached
// it ends its own request, after what was emitted before, and no other.
TEST(a_broken_row_counts_only_if_it_is_reached) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const TablePair pair = table_pair(kIds, DraftKind::noisy);
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection}) {
    std::vector<RequestParams> requests;
    for (int i = 0; i < 5; ++i) requests.push_back(sampling(1.0, uint64_t(i), 40));
    TableEngine sound(pair, rule, 4, 5, 64);
    const std::vector<TableText> want = decode(sound, kPrompt, requests);

    TableEngine unreached(pair, rule, 4, 5, 64);
    long broken = 0;
    unreached.target().after_row = [&](int slot, int position, int32_t token, float* logits) {
      if (size_t(position) < want[slot].tokens.size() && want[slot].tokens[position] != token) logits[1] = nan, ++broken;
    };
    std::vector<TableText> got = decode(unreached, kPrompt, requests);
    CHECK(broken > 20, broken);
    for (int i = 0; i < 5; ++i)
      CHECK(got[i].tokens == want[i].tokens && got[i].logprobs == want[i].logprobs && got[i].finish == FinishReason::length, "rule ", int(rule), ", request ", i);

    for (int at : {3, 4, 11, 30}) {
      TableEngine reached(pair, rule, 4, 5, 64);
      reached.target().after_row = [&](int slot, int position, int32_t token, float* logits) {
        if (slot == 2 && position == at - 1 && token == want[2].tokens[at - 1]) logits[0] = nan;
      };
      got = decode(reached, kPrompt, requests);
      for (int i = 0; i < 5; ++i) {
        if (i == 2) {
          CHECK(got[i].finish == FinishReason::error, "position ", at);
          CHECK(got[i].tokens == std::vector<int>(want[i].tokens.begin(), want[i].tokens.begin() + at), "position ", at);
        } else {
          CHECK(got[i].tokens == want[i].tokens && got[i].logprobs == want[i].logprobs, "rule ", int(rule), ", request ", i, ", position ", at);
        }
      }
    }
  }
}

// A draft row without a usable distribution proposes nothing: the drafts before it are verified, and decoding goes on.
TEST(a_broken_draft_row_proposes_nothing) {
  const TablePair pair = table_pair(kIds, DraftKind::noisy);
  std::vector<RequestParams> requests;
  for (int i = 0; i < 3; ++i) requests.push_back(sampling(1.0, uint64_t(i), 40));
  TableEngine sound(pair, Acceptance::coupled, 4, 3, 64), broken(pair, Acceptance::coupled, 4, 3, 64);
  broken.draft().after_row = [](int, int position, int32_t, float* logits) {
    if (position % 3 == 0) logits[2] = std::numeric_limits<float>::infinity();
  };
  const std::vector<TableText> want = decode(sound, kPrompt, requests), got = decode(broken, kPrompt, requests);
  for (int i = 0; i < 3; ++i) {
    CHECK(got[i].tokens == want[i].tokens && got[i].logprobs == want[i].logprobs, "request ", i);
    CHECK(got[i].stats.num_draft_tokens > 5 && got[i].stats.num_draft_tokens < want[i].stats.num_draft_tokens, got[i].stats.num_draft_tokens);
  }
}

TEST_MAIN()
