// Stops: the earliest event of the text ends it, wherever in a cycle it falls, and everything a caller can see is what plain
// decoding gives.
#include <algorithm>
#include <random>

#include "cpp/scripted_engine.h"

using namespace paceline;
using namespace paceline::test;

namespace {

constexpr int kVocab = 32, kEos = 24, kOther = 25, kHead = 26, kMiddle = 27, kTail = 28;  // text: ids 8 to 23

// "<26>" and so on: no token's bytes lie in another's, and stop strings may begin and end inside a token.
std::vector<std::string> bracketed() {
  std::vector<std::string> bytes;
  for (int id = 0; id < kVocab; ++id) bytes.push_back(message("<", id, ">"));
  return bytes;
}

ScriptedOptions options_of(int tau, int batch, int max_model_len, std::vector<std::string> token_bytes) {
  ScriptedOptions options = test::options_of(kVocab, tau, batch, max_model_len);
  options.engine.token_bytes = std::move(token_bytes);
  return options;
}

struct Ending {
  int count;  // tokens
  FinishReason finish;
  int stop_token = -1;
  std::string stop_string = "";
};

// The law, token by token, with no idea of cycles: a stop string first (it names more than an id does), a stop id, the limit.
Ending ending_of(const Script& script, const Job& job, int max_model_len, const std::vector<std::string>& bytes) {
  const RequestParams& p = job.params;
  const int room = max_model_len - job.prompt_length, most = p.max_tokens > 0 ? std::min(p.max_tokens, room) : room;
  std::string text;
  for (int count = 1;; ++count) {
    const int token = script.tokens[job.prompt_length + count - 1];
    text += bytes[token];
    std::string found;
    size_t found_end = std::string::npos;
    for (const std::string& stop : p.stop) {
      const size_t at = text.find(stop), end = at + stop.size();
      if (at == std::string::npos || end > found_end || (end == found_end && stop.size() < found.size())) continue;
      found = stop, found_end = end;
    }
    if (!found.empty()) return {count, FinishReason::stop, -1, found};
    if (std::count(p.stop_token_ids.begin(), p.stop_token_ids.end(), token)) return {count, FinishReason::stop, token};
    if (count == most) return {count, FinishReason::length};
  }
}

// What happens at output index `event`.
enum Kind { eos, stop_id, one_token_string, two_token_string, string_inside_tokens, rejected_eos_before, id_and_string,
           id_before_nan, string_before_nan, kKinds };

Script scripted(int number, Kind kind, int prompt_length, int accepted, int event, int length) {
  Script script;
  uint32_t state = 31 * uint32_t(number) + uint32_t(event);
  for (int i = 0; i < length; ++i) script.tokens.push_back(8 + int((state = state * 1664525u + 1013904223u) >> 16) % 16);
  script.tokens[0] = number;
  const int at = prompt_length + event;
  script.tokens[at] = kind == eos || kind == rejected_eos_before || kind == id_before_nan ? kEos : kind == stop_id ? kOther : kTail;
  if (at >= 3 && (kind == two_token_string || kind == string_inside_tokens)) {
    script.tokens[at - 1] = kMiddle;  // perhaps in the prompt: then the stop string is not in the output
    if (kind == string_inside_tokens) script.tokens[at - 2] = kHead;
  }
  if (kind == id_before_nan || kind == string_before_nan) script.target_broken = at + 1;
  script.drafts = script.tokens;
  for (int i = prompt_length + 1 + accepted; i < length; i += accepted + 1)
    script.drafts[i] = kind == rejected_eos_before && script.tokens[i] != kEos ? kEos : script.tokens[i] == 8 ? 9 : 8;
  script.nonsense_is_nan = number % 2;
  return script;
}

Job job_of(int number, Kind kind, int prompt_length, int max_tokens) {
  Job job{number, prompt_length, {}};
  job.params.max_tokens = max_tokens;
  job.params.logprobs = number % 3;
  job.params.stop_token_ids = {kEos, kOther};
  switch (kind) {
    case one_token_string: case string_before_nan: job.params.stop = {"<30>", "<28>"}; break;
    case two_token_string: job.params.stop = {"<27><28>", "<28><27>"}; break;
    case string_inside_tokens: job.params.stop = {"6><27><2", "6><27><28>"}; break;  // both end in one token, the shorter first
    case id_and_string: job.params.stop = {"28"}, job.params.stop_token_ids = {kTail}; break;
    default: break;
  }
  return job;
}

// Where in its cycle the last token of a text came from.
enum Place { accepted_draft, residual, bonus, undrafted, kPlaces };
Place place_of_end(const Text& text) {
  const CycleTrace& last = text.cycles.back();
  if (last.emitted == last.accepted) return accepted_draft;
  return last.tau == 0 ? undrafted : last.accepted < last.tau ? residual : bonus;
}

}  // namespace

// Stop strings against a search of the whole text: short tokens, overlapping stops, several that end together.
TEST(stop_strings_are_found_where_they_end) {
  std::mt19937 random(7);
  const auto below = [&](int n) { return int(random() % unsigned(n)); };
  const auto word = [&](int longest) {
    std::string bytes;
    for (int length = 1 + below(longest); int(bytes.size()) < length;) bytes += "ab"[below(8) / 7];
    return bytes;
  };
  int found = 0, together = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops;
    for (int count = 1 + below(3); int(stops.size()) < count;) stops.push_back(word(6));
    StopStrings machine(stops);
    std::string text;
    for (int token = 0; token < 12; ++token) {
      const std::string bytes = below(8) ? word(3) : "";
      text += bytes;
      std::string expected;
      size_t expected_end = std::string::npos;
      for (const std::string& stop : stops) {
        const size_t at = text.find(stop);
        if (at == std::string::npos) continue;
        const size_t end = at + stop.size();
        together += end == expected_end && stop != expected;
        if (end < expected_end || (end == expected_end && stop.size() > expected.size())) expected = stop, expected_end = end;
      }
      const std::string* got = machine.feed(bytes);
      CHECK((got ? *got : "") == expected, "\"", text, "\": \"", got ? *got : "", "\", expected \"", expected, "\"");
      if (!got) continue;
      ++found;
      break;
    }
  }
  CHECK(found > 5000 && together > 100, found, " ", together);
}

// Every kind of event at every index of runs of every length, with a limit before, at and behind it, alone and in a ragged
// batch whose members stop differently.
TEST(the_earliest_event_wins) {
  int seen[kKinds][kPlaces] = {}, lengths = 0;
  const std::vector<std::string> bytes = bracketed();
  for (int tau : {1, 3, 4})
    for (int accepted = 0; accepted <= tau; ++accepted)
      for (int event = 0; event < 2 * tau + 4; ++event)
        for (int prompt_length : {2, 61})
          for (int limit : {-2, -1, 0, 1, 2, 1000}) {
            const int max_tokens = limit == 1000 ? -1 : event + 1 + limit, max_model_len = prompt_length + 3 * tau + 8;
            if (max_tokens == 0 || max_tokens < -1 || (limit != 1000 && max_tokens < 1)) continue;
            auto scripts = std::make_shared<Scripts>();
            std::vector<Job> jobs;
            for (int kind = 0; kind < kKinds; ++kind) {
              scripts->push_back(scripted(kind, Kind(kind), prompt_length, accepted, event, max_model_len + 1));
              jobs.push_back(job_of(kind, Kind(kind), prompt_length, max_tokens));
            }
            const std::vector<Text> reference = plain(options_of(tau, 1, max_model_len, bytes), scripts, jobs);
            for (int batch : {1, 3}) {
              const std::vector<Text> texts = ScriptedEngine(options_of(tau, batch, max_model_len, bytes), scripts).run(jobs);
              for (int kind = 0; kind < kKinds; ++kind) {
                const std::string where = message("kind ", kind, ", tau ", tau, ", accepted ", accepted, ", event at ", event,
                                                  ", prompt ", prompt_length, ", max_tokens ", max_tokens, ", batch ", batch);
                const Ending ending = ending_of(scripts->at(kind), jobs[kind], max_model_len, bytes);
                const Text& text = texts[kind];
                CHECK(int(text.tokens.size()) == ending.count, where, ": ", text.tokens.size(), " tokens, expected ", ending.count);
                CHECK(text.finish == ending.finish, where, ": ", name_of(text.finish));
                CHECK(text.stop_token == ending.stop_token && text.stop_string == ending.stop_string, where, ": stopped by ",
                      text.stop_token, " \"", text.stop_string, "\"");
                CHECK(std::equal(text.tokens.begin(), text.tokens.end(), scripts->at(kind).tokens.begin() + prompt_length), where);
                check_same(text, reference[kind], where);
                if (ending.finish == FinishReason::stop) ++seen[kind][place_of_end(text)];
                else ++lengths;
              }
            }
          }
  for (int kind = 0; kind < kKinds; ++kind)
    for (int place = 0; place < kPlaces; ++place) CHECK(seen[kind][place] > 0, "kind ", kind, " never ended in place ", place);
  CHECK(lengths > 1000, lengths);
}

// The draft proposes EOS, the target has other plans: the text goes on, with nothing of the EOS in it.
TEST(a_rejected_eos_ends_nothing) {
  for (int tau : {1, 2, 4, 8})
    for (int accepted = 0; accepted < tau; ++accepted) {
      auto scripts = std::make_shared<Scripts>(1, scripted(0, rejected_eos_before, 5, accepted, 90, 101));
      const Job job = job_of(0, rejected_eos_before, 5, 60);
      const ScriptedOptions options = options_of(tau, 1, 100, bracketed());
      const Text text = ScriptedEngine(options, scripts).run({job})[0];
      CHECK(text.finish == FinishReason::length && text.tokens.size() == 60);
      CHECK(std::count(text.tokens.begin(), text.tokens.end(), kEos) == 0);
      CHECK(text.stats.num_draft_tokens > text.stats.num_accepted_draft_tokens);
      check_same(text, plain(options, scripts, {job})[0], message("tau ", tau, ", accepted ", accepted));
    }
}

// Below min_tokens an EOS or stop id is not there to be chosen, by either model; the first one at or beyond it ends the text.
TEST(min_tokens_masks_stops) {
  int masked = 0;
  for (int tau : {1, 4, 8})
    for (int event = 0; event < 12; ++event)
      for (int min_tokens = 0; min_tokens < 12; ++min_tokens) {
        auto scripts = std::make_shared<Scripts>(1, scripted(0, eos, 4, tau, event, 81));
        Job job = job_of(0, eos, 4, 30);
        job.params.min_tokens = min_tokens;
        const ScriptedOptions options = options_of(tau, 1, 80, bracketed());
        const Text text = ScriptedEngine(options, scripts).run({job})[0];
        const std::string where = message("tau ", tau, ", EOS at ", event, ", min_tokens ", min_tokens);
        check_same(text, plain(options, scripts, {job})[0], where);
        CHECK(int(text.tokens.size()) > min_tokens || text.finish == FinishReason::length, where, ": stopped after ",
              text.tokens.size());
        for (int i = 0; i + 1 < int(text.tokens.size()); ++i)
          CHECK(text.tokens[i] != kEos && text.tokens[i] != kOther, where, ": goes on after a stop");
        if (event >= min_tokens) CHECK(int(text.tokens.size()) == event + 1 && text.stop_token == kEos, where);
        masked += event < min_tokens;
      }
  CHECK(masked > 100, masked);
  auto scripts = std::make_shared<Scripts>(1, scripted(0, eos, 4, 4, 3, 81));
  for (const int min_tokens : {30, INT32_MAX - 4, INT32_MAX}) {  // more than there is room for: no stop at all
    Job job = job_of(0, eos, 4, -1);
    job.params.min_tokens = min_tokens;
    const Text text = ScriptedEngine(options_of(4, 1, 20, bracketed()), scripts).run({job})[0];
    CHECK(text.finish == FinishReason::length && text.tokens.size() == 16, "min_tokens ", min_tokens, ": ", text.tokens.size(), " tokens, ",
          name_of(text.finish));
  }
}

// Matched by the thread that everybody waits for: there may be only so many.
TEST(stop_strings_are_bounded) {
  RequestParams params;
  params.stop.assign(kMaxStopStrings, "x");
  validate(params, 16, 4);
  params.stop.emplace_back("y");
  CHECK_THROWS(validate(params, 16, 4), std::invalid_argument, "[generate] stop must have at most 128 strings, got 129");
  params.stop.assign(4, std::string(kMaxStopBytes / 4, 'x'));
  validate(params, 16, 4);
  params.stop.emplace_back("y");
  CHECK_THROWS(validate(params, 16, 4), std::invalid_argument, "[generate] stop strings must have at most 8192 bytes in all, got 8193");
}

// A reached row of NaN ends the text with an error at the same token as in plain decoding; one behind a mismatch is not reached.
TEST(numeric_faults_count_when_reached) {
  for (int tau : {1, 4})
    for (int accepted = 0; accepted <= tau; ++accepted)
      for (int event = 0; event < 2 * tau + 4; ++event) {
        Script script = scripted(1, eos, 3, accepted, 70, 81);  // number 1: rejected rows hold NaN too
        script.target_broken = 3 + event;
        auto scripts = std::make_shared<Scripts>(2, script);
        const Job job = job_of(1, eos, 3, -1);
        const ScriptedOptions options = options_of(tau, 1, 80, bracketed());
        const Text text = ScriptedEngine(options, scripts).run({job})[0];
        const std::string where = message("tau ", tau, ", accepted ", accepted, ", NaN at ", event);
        CHECK(text.finish == FinishReason::error && int(text.tokens.size()) == event, where, ": ", text.tokens.size(), " tokens");
        CHECK(text.error == message("[generate] the target's logits for position ", 3 + event, " hold NaN or infinity"), where,
              ": ", text.error);
        check_same(text, plain(options, scripts, {job})[0], where);
      }
}

// A row of the draft that cannot be used ends the cycle's drafts, not the text.
TEST(a_broken_draft_row_only_costs_drafts) {
  for (int tau : {1, 4})
    for (int event = 1; event < 2 * tau + 4; ++event) {
      Script script = scripted(0, eos, 3, 1000, 40, 81);
      script.draft_broken = 3 + event;
      auto scripts = std::make_shared<Scripts>(1, script);
      const Job job = job_of(0, eos, 3, 30);
      const ScriptedOptions options = options_of(tau, 1, 80, bracketed());
      const Text text = ScriptedEngine(options, scripts).run({job})[0];
      CHECK(text.finish == FinishReason::length && text.tokens.size() == 30);
      CHECK(text.stats.num_draft_tokens == text.stats.num_accepted_draft_tokens);
      check_same(text, plain(options, scripts, {job})[0], message("tau ", tau, ", NaN in the draft at ", event));
    }
}

// Everything at once, at random, 20,000 requests: ambiguous bytes, several stops, ragged batches, sampling, penalties, short
// drafts, small chunks, more requests than slots. Plain decoding, one request after the other, is the reference.
TEST(twenty_thousand_requests_equal_plain_decoding) {
  const std::vector<std::string> pieces = {"a", "b", "ab", "ba", "aa", "c", "abc", "", "ca", "\xe2\x82", "\xac", "bb", "cab",
                                           "\n", "a\n", "abab"};
  std::mt19937 random(2024);
  const auto below = [&](int n) { return int(random() % unsigned(n)); };
  int requests = 0, finishes[5] = {};
  long drafted = 0, accepted = 0, stopped_by_string = 0, tokens = 0;
  while (requests < 20000) {
    const int tau = 1 + below(8), batch = 1 + below(4), count = 4 + below(9), max_model_len = 10 + below(130);
    ScriptedOptions options = options_of(tau, batch, max_model_len, pieces);
    options.vocab_size = 16;
    options.engine.prefill_chunk = 8 + below(100);
    options.engine.acceptance = below(3) ? Acceptance::coupled : Acceptance::rejection;
    if (below(4) == 0) options.draft_max_len = 2 + below(max_model_len);
    const bool sampled = options.engine.acceptance == Acceptance::coupled && below(3) == 0;
    auto scripts = std::make_shared<Scripts>();
    std::vector<Job> jobs;
    for (int number = 0; number < count; ++number) {
      Script& script = scripts->emplace_back();
      const int wrong = below(4) * below(30);  // per cent
      for (int i = 0; i <= max_model_len; ++i) script.tokens.push_back(i ? below(16) : number);
      for (int token : script.tokens) script.drafts.push_back(below(100) < wrong ? below(16) : token);
      if (below(8) == 0) script.target_broken = below(max_model_len);
      if (below(8) == 0) script.draft_broken = below(max_model_len);
      script.nonsense_is_nan = !sampled && below(4) == 0;
      Job job{number, 1 + below(below(2) ? max_model_len - 1 : std::min(8, max_model_len - 1)), {}};
      RequestParams& p = job.params;
      p.max_tokens = below(3) ? 1 + below(30) : -1;
      if (below(4) == 0) p.min_tokens = below(p.max_tokens > 0 ? p.max_tokens + 1 : 8);
      for (int i = below(3); i > 0; --i) p.stop_token_ids.push_back(below(16));
      for (int i = below(2) * below(4); i > 0; --i) {
        std::string& stop = p.stop.emplace_back();
        for (int length = 1 + below(4); int(stop.size()) < length;) stop += "abc\n"[below(4)];
      }
      p.logprobs = below(4) - 1;
      if (sampled) p.temperature = 0.3 + below(10), p.seed = random(), p.top_k = below(2) * 6;
      if (below(6) == 0) p.repetition_penalty = 1.2, p.frequency_penalty = 0.1;
      if (below(4) == 0) p.num_speculative_tokens = below(tau + 1);
      jobs.push_back(job);
    }
    const std::vector<Text> texts = ScriptedEngine(options, scripts).run(jobs), reference = plain(options, scripts, jobs);
    for (int i = 0; i < count; ++i, ++requests) {
      check_same(texts[i], reference[i], message("request ", requests, ", tau ", tau, ", batch ", batch));
      ++finishes[int(texts[i].finish)];
      drafted += texts[i].stats.num_draft_tokens, accepted += texts[i].stats.num_accepted_draft_tokens;
      stopped_by_string += !texts[i].stop_string.empty(), tokens += long(texts[i].tokens.size());
    }
  }
  std::printf("%d requests, %ld tokens, %ld of %ld drafts accepted; %d stops (%ld by string), %d lengths, %d errors\n", requests,
              tokens, accepted, drafted, finishes[int(FinishReason::stop)], stopped_by_string, finishes[int(FinishReason::length)],
              finishes[int(FinishReason::error)]);
  CHECK(accepted > 10000 && drafted - accepted > 10000);
  for (FinishReason reason : {FinishReason::stop, FinishReason::length, FinishReason::error})
    CHECK(finishes[int(reason)] > 500, name_of(reason));
  CHECK(stopped_by_string > 1000);
}

TEST_MAIN()
