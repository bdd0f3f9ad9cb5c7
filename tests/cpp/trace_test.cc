// What the trace says of a text, against what can be found out without it: rows of both models scored anew, and other taus' traces of the
// same text. The agreement m belongs to the text, not to the policy: every tau sees the same.
#include <cmath>
#include <map>

#include "cpp/parity.h"
#include "decode/trace.h"

using namespace paceline;
using namespace paceline::test;

std::shared_ptr<Backend> paceline::test::backend() {
  static std::shared_ptr<Backend> shared = make_cpu_backend(1, "");
  return shared;
}

namespace {

constexpr int kRows = 4096;

EngineOptions options_of(const std::shared_ptr<Weights>& target, int tau, int batch, Acceptance acceptance, int records = kRows) {
  EngineOptions options;
  options.num_speculative_tokens = tau;
  options.max_model_len = target->config().max_position_embeddings;
  options.max_num_seqs = batch;
  options.kv_dtype = DType::fp32;
  options.kv_cache_tokens = batch * options.max_model_len;
  options.prefill_chunk = options.prefill_chunk_beside = 64;
  options.acceptance = acceptance;
  options.trace_cycles = records;
  options.cycles_in_flight = cycles_in_flight();
  options.prefix_cache_bytes = 0;
  return options;
}

struct Run {
  std::vector<std::vector<int32_t>> texts;  // prompt and output
  std::vector<RequestStats> stats;
  std::vector<std::vector<int>> emitted;    // tokens of each output
  TraceColumns trace;
};

Run run(Engine& engine, const std::vector<Job>& jobs) {
  Run result;
  std::map<int64_t, size_t> place;
  for (const Job& job : jobs) {
    place[engine.add(job.prompt, job.params)] = result.texts.size();
    result.texts.push_back(job.prompt);
  }
  result.stats.resize(jobs.size());
  while (!engine.idle())
    for (const Output& output : engine.step()) {
      std::vector<int32_t>& text = result.texts[place.at(output.request)];
      text.insert(text.end(), output.tokens.begin(), output.tokens.end());
      result.emitted.push_back(output.tokens);
      if (output.finish != FinishReason::none) result.stats[place.at(output.request)] = output.stats;
    }
  result.trace = engine.trace();
  return result;
}

// Accepted often enough that draft runs end in a bonus token.
Pair good_pair() {
  return {"good draft", tiny_weights(backend(), TinyShape(), DType::fp32, 1), tiny_weights(backend(), TinyShape(), DType::fp32, 1, 0.04f)};
}

// m by request and position, from everything that a trace says of it.
std::map<std::pair<int64_t, int>, float> agreement_of(const TraceColumns& t) {
  std::map<std::pair<int64_t, int>, float> known;
  const auto note = [&](int64_t request, int position, float value) {
    if (std::isnan(value)) return;
    const auto [at, fresh] = known.try_emplace({request, position}, value);
    CHECK(fresh, "request ", request, ", position ", position, " is told twice: ", at->second, " and ", value);
  };
  for (size_t row = 0; row < t.cycle.size(); ++row) {
    note(t.request[row], t.position[row] - 1, t.catch_up_agreement[row]);
    for (int j = 0; j < t.tau_max; ++j) note(t.request[row], t.position[row] + j, t.agreement[row * t.tau_max + j]);
  }
  return known;
}

std::vector<Job> few_jobs(double temperature, unsigned seed) {
  std::vector<Job> jobs = jobs_of(5, temperature, TinyShape().vocab, seed, 40);
  for (Job& job : jobs) {  // raw rows are the processed ones but for the temperature
    const auto own = job.params;
    job.params = {};
    job.params.max_tokens = own.max_tokens, job.params.temperature = own.temperature, job.params.seed = own.seed;
  }
  return jobs;
}

// log-softmax rows of a model, given the whole text: row i chooses token first + i.
std::vector<float> rows_of(const std::shared_ptr<Weights>& model, const std::vector<int32_t>& text, int first, int count) {
  EngineOptions options = options_of(model, 0, 1, Acceptance::coupled, 0);
  Engine engine(backend(), model, nullptr, options);
  std::vector<float> rows;
  for (int i = 0; i < count; ++i) {
    const std::vector<float> row = engine.verify({text.begin(), text.begin() + first + i}, {});
    rows.insert(rows.end(), row.begin(), row.end());
  }
  return rows;
}

// The share of a token after temperature.
double share(const float* logprobs, int vocab, int token, double temperature) {
  double total = 0;
  for (int i = 0; i < vocab; ++i) total += std::exp((double(logprobs[i]) - logprobs[token]) / temperature);
  return 1 / total;
}

void check_rows(Acceptance acceptance, double temperature, unsigned seed) {
  const Pair pair = good_pair();
  const int vocab = pair.target->config().vocab_size;
  Engine engine(backend(), pair.target, pair.draft, options_of(pair.target, 3, 2, acceptance));
  const std::vector<Job> jobs = few_jobs(temperature, seed);
  const Run got = run(engine, jobs);
  const TraceColumns& t = got.trace;
  int told = 0, caught_up = 0, drafts = 0;
  for (size_t job = 0; job < jobs.size(); ++job) {
    const std::vector<int32_t>& text = got.texts[job];
    const int first = int(jobs[job].prompt.size()), count = int(text.size()) - first;
    const std::vector<float> target = rows_of(pair.target, text, first, count), draft = rows_of(pair.draft, text, first, count);
    const auto expected = [&](int position) -> double {
      const float* of_target = target.data() + size_t(position - first) * vocab;
      const float* of_draft = draft.data() + size_t(position - first) * vocab;
      if (acceptance == Acceptance::rejection && temperature > 0)
        return std::min(1.0, share(of_draft, vocab, text[position], temperature) / share(of_target, vocab, text[position], temperature));
      return std::max_element(of_draft, of_draft + vocab) - of_draft == text[position];
    };
    for (size_t row = 0; row < t.cycle.size(); ++row) {
      if (t.request[row] != int64_t(job + 1)) continue;
      const int position = t.position[row];
      const std::string where = message("request ", job, ", position ", position);
      if (!std::isnan(t.catch_up_agreement[row])) {
        ++caught_up;
        if (temperature == 0 || acceptance == Acceptance::rejection)
          CHECK(std::abs(t.catch_up_agreement[row] - expected(position - 1)) < 1e-4, where, ": caught up with ", t.catch_up_agreement[row]);
      }
      for (int j = 0; j < t.tau[row]; ++j) {
        const size_t at = row * t.tau_max + j;
        const int drafted = t.drafted[at];
        ++drafts;
        CHECK(drafted >= 0 && drafted < vocab && t.draft_logprob[at] <= 0, where, ", draft ", j, ": ", drafted, ", ", t.draft_logprob[at]);
        const bool reached = j < t.emitted[row];
        if (reached && acceptance == Acceptance::coupled)
          CHECK((j < t.accepted[row]) == (drafted == text[position + j]), where, ", draft ", j, " of ", t.accepted[row], " accepted: ", drafted);
        CHECK(reached == !std::isnan(t.target_logprob[at]) && reached == !std::isnan(t.agreement[at]), where, ", draft ", j);
        if (!reached) continue;
        const size_t of_row = size_t(position + j - first) * vocab + drafted;
        CHECK(t.target_logprob[at] == target[of_row], where, ", draft ", j, ": ", t.target_logprob[at], " for ", target[of_row]);
        CHECK(t.draft_logprob[at] == draft[of_row], where, ", draft ", j, ": ", t.draft_logprob[at], " for ", draft[of_row]);
        if (temperature == 0 || acceptance == Acceptance::rejection)
          CHECK(std::abs(t.agreement[at] - expected(position + j)) < 1e-4, where, ", draft ", j, ": ", t.agreement[at], " for ", expected(position + j));
        ++told;
      }
    }
  }
  CHECK(told > 60 && caught_up > 10 && drafts > told, told, " ", caught_up, " ", drafts);
}

}  // namespace

TEST(greedy_rows_are_those_of_both_models) { check_rows(Acceptance::coupled, 0.0, 1); }
TEST(coupled_rows_are_those_of_both_models) { check_rows(Acceptance::coupled, 0.8, 2); }
TEST(rejection_rows_are_those_of_both_models) { check_rows(Acceptance::rejection, 0.8, 3); }
TEST(greedy_rejection_rows_are_those_of_both_models) { check_rows(Acceptance::rejection, 0.0, 4); }

TEST(agreement_does_not_depend_on_tau) {
  for (double temperature : {0.0, 0.8}) {
    const Pair pair = good_pair();
    const std::vector<Job> jobs = jobs_of(5, temperature, TinyShape().vocab, 7, 40);  // processors and all
    std::map<std::pair<int64_t, int>, float> known;
    int compared = 0, agreed = 0, denied = 0;
    for (int tau = 1; tau <= 6; ++tau) {
      Engine engine(backend(), pair.target, pair.draft, options_of(pair.target, tau, 1 + tau % 3, Acceptance::coupled));
      for (const auto& [at, value] : agreement_of(run(engine, jobs).trace)) {
        const auto [before, fresh] = known.try_emplace(at, value);
        compared += !fresh;
        agreed += value == 1, denied += value == 0;
        CHECK(before->second == value, "T ", temperature, ", tau ", tau, ", request ", at.first, ", position ", at.second, ": ", value);
      }
    }
    CHECK(compared > 300 && agreed > 100 && denied > 100, compared, " ", agreed, " ", denied);
  }
}

// Every cycle of a request is there, one behind the other, and adds up to what the request's statistics say.
TEST(records_add_up) {
  const Pair pair = good_pair();
  std::vector<Job> jobs = jobs_of(7, 0.8, TinyShape().vocab, 11, 30);
  jobs[2].params.num_speculative_tokens = 1;
  Engine engine(backend(), pair.target, pair.draft, options_of(pair.target, 4, 3, Acceptance::coupled));
  const Run got = run(engine, jobs);
  const TraceColumns& t = got.trace;
  std::map<int64_t, int> rows_of_cycle, sequences_of_cycle;
  for (size_t row = 0; row < t.cycle.size(); ++row) rows_of_cycle[t.cycle[row]] += t.tau[row] + 1, ++sequences_of_cycle[t.cycle[row]];
  double last_start = 0;
  for (size_t row = 0; row < t.cycle.size(); ++row) {
    CHECK(t.rows[row] == rows_of_cycle[t.cycle[row]] && t.sequences[row] == sequences_of_cycle[t.cycle[row]], "cycle ", t.cycle[row], ": ", t.rows[row]);
    CHECK(t.start[row] >= last_start && t.verify_time[row] > 0 && t.host_time[row] >= 0, "cycle ", t.cycle[row]);
    last_start = t.start[row];
  }
  for (size_t job = 0; job < jobs.size(); ++job) {
    int cycles = 0, drafted = 0, accepted = 0, emitted = 0, position = int(jobs[job].prompt.size());
    for (size_t row = 0; row < t.cycle.size(); ++row) {
      if (t.request[row] != int64_t(job + 1)) continue;
      ++cycles, drafted += t.tau[row], accepted += t.accepted[row], emitted += t.emitted[row];
      CHECK(t.position[row] == position, "request ", job, ": ", t.position[row], " for ", position);
      position += t.emitted[row];
      CHECK(t.wanted_tau[row] == (job == 2 ? 1 : 4) && t.reason[row] == uint8_t(job == 2 ? TauReason::request : TauReason::fixed));
      CHECK(t.tau[row] <= t.wanted_tau[row] && t.accepted[row] <= t.tau[row]);
      const auto kind = ExtraKind(t.extra_kind[row]);
      CHECK((kind == ExtraKind::none) == (t.extra_token[row] < 0) && (kind == ExtraKind::none) == (t.emitted[row] == t.accepted[row]));
      if (kind == ExtraKind::bonus) CHECK(t.accepted[row] == t.tau[row]);
      if (kind == ExtraKind::residual) CHECK(t.accepted[row] < t.tau[row]);
      if (kind != ExtraKind::none) CHECK(t.extra_token[row] == got.texts[job][position - 1], "request ", job);
      for (int j = t.tau[row]; j < t.tau_max; ++j) CHECK(t.drafted[row * t.tau_max + j] == -1 && std::isnan(t.draft_logprob[row * t.tau_max + j]));
    }
    const RequestStats& stats = got.stats[job];
    CHECK(cycles == stats.num_cycles && drafted == stats.num_draft_tokens && accepted == stats.num_accepted_draft_tokens &&
              emitted == stats.num_emitted_tokens, "request ", job, ": ", cycles, " of ", stats.num_cycles);
  }
}

TEST(the_newest_records_stay) {
  const Pair pair = good_pair();
  const std::vector<Job> jobs = few_jobs(0.8, 12);
  Engine whole(backend(), pair.target, pair.draft, options_of(pair.target, 2, 2, Acceptance::coupled));
  Engine few(backend(), pair.target, pair.draft, options_of(pair.target, 2, 2, Acceptance::coupled, 10));
  Engine none(backend(), pair.target, pair.draft, options_of(pair.target, 2, 2, Acceptance::coupled, 0));
  const TraceColumns all = run(whole, jobs).trace, last = run(few, jobs).trace;
  const Run untold = run(none, jobs);
  CHECK(untold.trace.cycle.empty() && untold.texts.size() == jobs.size());
  CHECK(last.cycle.size() == 10 && all.cycle.size() > 20);
  const size_t skipped = all.cycle.size() - 10;
  CHECK(std::equal(last.cycle.begin(), last.cycle.end(), all.cycle.begin() + skipped));
  CHECK(std::equal(last.position.begin(), last.position.end(), all.position.begin() + skipped));
  CHECK(std::equal(last.drafted.begin(), last.drafted.end(), all.drafted.begin() + skipped * 2));
}


TEST_MAIN()
