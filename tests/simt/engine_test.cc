// The whole CUDA engine on the host, through the plugin's boundary: the same cycle, scheduler and caches as on a device, its own
// kernels, and stubs of the runtime and of cuBLASLt that are as treacherous as the real ones.
#include <cublasLt.h>

#include <cstdlib>
#include <optional>
#include <set>

#include "backend/cuda/kernels/kernels.h"
#include "backend/plugin.h"
#include "cpp/parity.h"
#include "decode/replay.h"
#include "simt/kernel_test.h"
#include "simt/runtime.h"

extern "C" const paceline::BackendPlugin* paceline_backend_plugin(uint32_t abi);

using namespace paceline;
using namespace paceline::test;

namespace {

std::shared_ptr<Backend> new_backend(const char* matmul = "", const char* graphs = "") {
  setenv("PACELINE_CUDA_MATMUL", matmul, 1);
  setenv("PACELINE_CUDA_GRAPHS", graphs, 1);
  return make_plugin_backend(*paceline_backend_plugin(kPluginAbi), 0);
}

std::shared_ptr<Backend>& current_backend() {
  static std::shared_ptr<Backend> current = new_backend();
  return current;
}

// As long as it lives, products in bf16 are cuBLAS's.
class ByCublas {
 public:
  ByCublas() { swap(); }
  ~ByCublas() { swap(); }

 private:
  static void swap() {
    static std::shared_ptr<Backend> other = new_backend("cublas");
    std::swap(other, current_backend());
  }
};

// As long as it lives, no graph is replayed: operations are launched one by one.
class OneByOne {
 public:
  OneByOne() { swap(); }
  ~OneByOne() { swap(); }

 private:
  static void swap() {
    static std::shared_ptr<Backend> other = new_backend("", "off");
    std::swap(other, current_backend());
  }
};

}  // namespace

std::shared_ptr<Backend> paceline::test::backend() { return current_backend(); }

namespace {

TinyShape small_shape() {
  TinyShape shape;
  shape.vocab = 83, shape.hidden = 32, shape.intermediate = 48, shape.layers = 2, shape.heads = 4, shape.kv_heads = 2, shape.head_dim = 8;
  return shape;
}

struct SmallPair {
  std::shared_ptr<Weights> target, draft;
  SmallPair(DType dtype, DType draft_dtype, const TinyShape& shape = small_shape(), const std::shared_ptr<Backend>& on = backend())
      : target(tiny_weights(on, shape, dtype, 1)), draft(tiny_weights(on, shape, draft_dtype, 1, 0.15f)) {}
  explicit SmallPair(DType dtype, const TinyShape& shape = small_shape(), const std::shared_ptr<Backend>& on = backend())
      : SmallPair(dtype, dtype, shape, on) {}
};

EngineOptions options_of(int tau, int batch = 1, int length = 128, DType kv = DType::bf16) {
  EngineOptions options;
  options.num_speculative_tokens = tau;
  options.max_model_len = length;
  options.max_num_seqs = batch;
  options.kv_cache_tokens = batch * length;
  options.prefill_chunk = options.prefill_chunk_beside = 64;
  options.kv_dtype = kv;
  return options;
}

RequestParams params_of(int max_tokens, double temperature = 0) {
  RequestParams params;
  params.max_tokens = max_tokens;
  params.temperature = temperature;
  params.seed = 5;
  params.logprobs = 0;
  return params;
}

std::vector<int> run(Engine& engine) {
  std::vector<int> tokens;
  while (!engine.idle())
    for (const Output& output : engine.step()) tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
  return tokens;
}

void check_taus(DType dtype, DType draft_dtype, double temperature, unsigned seed, std::vector<int> taus, int num_jobs = 4) {
  const SmallPair pair(dtype, draft_dtype);
  const std::vector<Job> jobs = jobs_of(num_jobs, temperature, 83, seed, 14);
  const std::vector<Text> plain = decode(pair.target, nullptr, 0, 1, jobs);
  for (int tau : taus) {
    const std::string what = message(name_of(dtype), ", draft ", name_of(draft_dtype), ", T ", temperature, ", tau ", tau);
    const std::vector<Text> texts = decode(pair.target, pair.draft, tau, 1 + tau % 3, jobs, Acceptance::coupled, 16 + 48 * (tau % 2));
    check_equal(texts, plain, what);
    check_draft_kv(pair.draft, jobs, texts, what);
  }
}

}  // namespace

TEST(speculative_equals_plain_bit_for_bit) {
  check_taus(DType::bf16, DType::bf16, 0.0, 1, {1, 4});
  check_taus(DType::bf16, DType::bf16, 0.9, 2, {2, 3});
  check_taus(DType::fp32, DType::fp32, 0.8, 3, {2});
}

TEST(integer_weights_speculate_bit_for_bit) {
  check_taus(DType::bf16, DType::int4, 0.8, 4, {3}, 2);
  check_taus(DType::int8, DType::int4_g32, 0.8, 5, {2}, 2);
  check_taus(DType::int4, DType::int8, 0.0, 6, {4}, 2);
}

TEST(products_by_cublas_speculate_bit_for_bit) {
  const ByCublas forced;
  simt::reset_calls();
  check_taus(DType::bf16, DType::bf16, 0.8, 7, {3}, 2);
  CHECK(simt::num_calls("cublasLtMatmul") > 0);
}

TEST(cublas_multiplies_nothing_but_fp32) {
  simt::reset_calls();
  check_taus(DType::bf16, DType::int8, 0.8, 8, {1}, 1);
  CHECK(simt::num_calls("cublasLtMatmul") == 0);
}

// Texts over three tokens, so that they repeat themselves; the host's proposals reach the device through shared memory.
TEST(drafters_on_the_host_speculate_bit_for_bit) {
  const SmallPair pair(DType::bf16);
  for (auto [acceptance, temperature] : {std::pair(Acceptance::coupled, 0.5), {Acceptance::rejection, 0.0}}) {
    std::vector<Job> jobs = jobs_of(4, temperature, 83, 17, 16);
    for (Job& job : jobs) job.params.logit_bias = {{1, 40.0f}, {2, 40.0f}, {3, 40.0f}}, job.params.stop_token_ids.clear();
    const std::vector<Text> plain = decode(pair.target, nullptr, 0, 1, jobs);
    for (DrafterKind kind : {DrafterKind::ngram, DrafterKind::chain}) {
      const std::string what = message("drafter ", int(kind), ", T ", temperature);
      const auto draft = kind == DrafterKind::chain ? pair.draft : nullptr;
      const std::vector<Text> texts = decode(pair.target, draft, 4, 3, jobs, acceptance, 64, nullptr, nullptr, kind);
      check_equal(texts, plain, what);
      if (draft) check_draft_kv(draft, jobs, texts, what);
      int accepted = 0, drafted = 0;
      for (const Text& text : texts) accepted += text.accepted, drafted += text.drafted;
      CHECK(accepted > 5 && accepted < drafted, what, ": ", accepted, " of ", drafted);
    }
  }
}

TEST(every_order_of_threads_gives_the_same_text) {
  const SmallPair pair(DType::bf16);
  const std::vector<Job> jobs = jobs_of(2, 0.8, 83, 11, 8);
  const std::vector<Text> want = decode(pair.target, pair.draft, 2, 2, jobs);
  for_each_order([&](const std::string& order) { check_equal(decode(pair.target, pair.draft, 2, 2, jobs), want, order); });
}

// Requests of all taus and lengths come and go, so that the batch shrinks and grows and every graph is replayed behind every other.
TEST(graphs_replayed_equal_operations_launched_one_by_one) {
  std::vector<Job> jobs = jobs_of(9, 0.8, 83, 91, 12);
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i].params.num_speculative_tokens = int(i * 2) % 4;
    jobs[i].params.max_tokens = 3 + int(i * 5) % 11;
  }
  const auto run = [&] {
    const SmallPair pair(DType::bf16);
    return decode(pair.target, pair.draft, 3, 3, jobs);
  };
  simt::reset_calls();
  const std::vector<Text> replayed = run();
  CHECK(simt::num_calls("cudaGraphLaunch") > 20, simt::num_calls("cudaGraphLaunch"));
  const OneByOne off;
  simt::reset_calls();
  const std::vector<Text> want = run();
  CHECK(simt::num_calls("cudaGraphLaunch") == 0 && simt::num_calls("launch") > 1000, simt::num_calls("launch"));
  check_equal(replayed, want, "graphs");
  for (size_t i = 0; i < jobs.size(); ++i) {
    CHECK(replayed[i].draft_kv == want[i].draft_kv, "request ", i, ": the draft's KV rows");
    CHECK(replayed[i].drafted == want[i].drafted && replayed[i].accepted == want[i].accepted, "request ", i, ": other drafts");
  }
}

TEST(architectures_differ_but_not_in_parity) {
  for (int variant = 0; variant < 3; ++variant) {
    TinyShape shape = small_shape();
    shape.bias = variant == 0, shape.qk_norm = variant == 1, shape.tied = variant == 2;
    shape.kv_heads = variant == 0 ? 1 : 4;
    shape.head_dim = variant == 1 ? 20 : 8;
    const SmallPair pair(DType::bf16, shape);
    const std::vector<Job> jobs = jobs_of(3, 0.9, 83, 50 + variant, 8);
    check_equal(decode(pair.target, pair.draft, 3, 2, jobs), decode(pair.target, nullptr, 0, 1, jobs), message("variant ", variant));
  }
}

TEST(rejection_is_plain_at_temperature_zero_and_accepts_everything_when_draft_is_target) {
  const SmallPair pair(DType::bf16);
  const std::vector<Job> greedy = jobs_of(3, 0.0, 83, 61, 10);
  check_equal(decode(pair.target, pair.draft, 3, 2, greedy, Acceptance::rejection), decode(pair.target, nullptr, 0, 1, greedy), "rejection");
  for (const Text& text : decode(pair.target, pair.target, 3, 2, jobs_of(3, 1.0, 83, 62, 10), Acceptance::rejection))
    CHECK(text.accepted == text.drafted || text.finish == FinishReason::stop, text.accepted, " of ", text.drafted);
}

// The two engines round alike but add in different orders: they may part only where the target hardly prefers one token.
TEST(greedy_text_is_that_of_the_cpu_engine_up_to_near_ties) {
  const std::shared_ptr<Backend> cpu = make_cpu_backend(1, "");
  for (const auto& [dtype, by_cublas] : std::vector<std::pair<DType, bool>>{{DType::bf16, false}, {DType::bf16, true}, {DType::fp32, true}}) {
    const std::optional<ByCublas> forced = by_cublas ? std::optional<ByCublas>(std::in_place) : std::nullopt;
    const double near = dtype == DType::bf16 ? 0.15 : 1e-4;  // nats; 0.07 was seen in bf16: logits of this network spread over 20
    const SmallPair pair(dtype), on_cpu(dtype, small_shape(), cpu);
    int compared = 0;
    for (const Job& job : jobs_of(6, 0.0, 83, 71, 12)) {
      RequestParams params = params_of(12);
      params.logprobs = 2;
      const auto collect = [&](Engine& engine) {
        std::vector<std::tuple<int, float, double>> all;  // token, logprob, margin
        engine.add(job.prompt, params);
        while (!engine.idle())
          for (const Output& output : engine.step())
            for (size_t i = 0; i < output.tokens.size(); ++i)
              all.emplace_back(output.tokens[i], output.logprobs[i], output.top_logprobs[i][0].logprob - output.top_logprobs[i][1].logprob);
        return all;
      };
      const EngineOptions options = options_of(3, 1, 128, dtype);
      Engine here(backend(), pair.target, pair.draft, options), there(cpu, on_cpu.target, on_cpu.draft, options);
      const auto got = collect(here), want = collect(there);
      for (size_t i = 0; i < want.size(); ++i, ++compared) {
        const auto [token, logprob, margin] = want[i];
        if (std::get<0>(got[i]) != token) {
          CHECK(margin < near, name_of(dtype), ", token ", i, " is ", std::get<0>(got[i]), ", the CPU's ", token, " by ", margin, " nats");
          break;
        }
        CHECK(std::abs(std::get<1>(got[i]) - logprob) < near, name_of(dtype), ", token ", i, ": logprob ", std::get<1>(got[i]), ", the CPU's ", logprob);
      }
    }
    CHECK(compared > 50, compared);
  }
}

TEST(verify_gives_the_logprobs_of_decoding) {
  const SmallPair pair(DType::bf16);
  Engine engine(backend(), pair.target, pair.draft, options_of(3));
  engine.add({3, 1, 4, 1, 5}, params_of(6));
  std::vector<int> tokens;
  std::vector<float> logprobs;
  while (!engine.idle())
    for (const Output& output : engine.step()) {
      tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
      logprobs.insert(logprobs.end(), output.logprobs.begin(), output.logprobs.end());
    }
  const std::vector<float> rows = engine.verify({3, 1, 4, 1, 5}, tokens);
  for (size_t i = 0; i < tokens.size(); ++i) CHECK(rows[i * 83 + tokens[i]] == logprobs[i], "token ", i);
}

TEST(a_cancelled_request_leaves_the_others_as_they_were) {
  const SmallPair pair(DType::bf16);
  const auto texts = [&](bool cancelled) {
    Engine engine(backend(), pair.target, pair.draft, options_of(2, 3));
    std::map<int64_t, std::vector<int>> all;
    const int64_t first = engine.add({1, 2, 3}, params_of(20, 0.7)), second = engine.add({9, 8, 7, 6}, params_of(14, 0.7));
    for (int step = 0; !engine.idle(); ++step) {
      if (cancelled && step == 2) engine.cancel(first);
      for (const Output& output : engine.step()) all[output.request].insert(all[output.request].end(), output.tokens.begin(), output.tokens.end());
    }
    return std::pair(all[first], all[second]);
  };
  const auto whole = texts(false), cut = texts(true);
  CHECK(cut.second == whole.second);
  CHECK(cut.first.size() < whole.first.size());
  CHECK(std::equal(cut.first.begin(), cut.first.end(), whole.first.begin()));
}

// Pages that ended requests have left, prompts and outputs, while a cycle that was launched for them is still to run: the bits of a cold start.
// Nothing is hashed here, since that would wait for the device.
TEST(a_reused_prefix_gives_the_bits_of_a_cold_one) {
  const SmallPair pair(DType::bf16);
  for (DType kv : {DType::bf16, DType::fp32}) {
    EngineOptions options = options_of(3, 2, 192, kv), off = options;
    for (int id = 0; id < 83; ++id) options.token_bytes.push_back(std::string(1, char('a' + id % 26)));
    off.token_bytes = options.token_bytes;
    off.prefix_cache_bytes = 0;
    off.num_speculative_tokens = 0;
    Engine warm(backend(), pair.target, pair.draft, options), cold(backend(), pair.target, nullptr, off);
    std::vector<int32_t> text = {3, 1, 4, 1, 5, 9, 2, 6};
    int64_t found = 0, accepted = 0;
    for (int turn = 0; turn < 5; ++turn) {
      for (int i = 0; i < 24; ++i) text.push_back((7 * i + 11 * turn) % 83);
      RequestParams params = params_of(12, turn % 2 ? 0.8 : 0);
      if (turn == 1) params.stop = {"a", "b", "c", "d", "e"};  // ends when the device has gone on
      std::vector<int> said, want;
      std::vector<float> logprobs, cold_logprobs;
      const int64_t id = warm.add(text, params);
      for (int step = 0; !warm.idle(); ++step) {
        if (turn == 2 && said.size() > 2) warm.cancel(id);
        for (const Output& output : warm.step()) {
          said.insert(said.end(), output.tokens.begin(), output.tokens.end());
          logprobs.insert(logprobs.end(), output.logprobs.begin(), output.logprobs.end());
          found += output.stats.num_cached_prompt_tokens, accepted += output.stats.num_accepted_draft_tokens;
        }
      }
      cold.add(text, params);
      while (!cold.idle())
        for (const Output& output : cold.step()) {
          want.insert(want.end(), output.tokens.begin(), output.tokens.end());
          cold_logprobs.insert(cold_logprobs.end(), output.logprobs.begin(), output.logprobs.end());
        }
      CHECK(!said.empty() && (turn == 2 ? said.size() <= want.size() : said.size() == want.size()), "turn ", turn, ": ", said.size(), " tokens");
      want.resize(said.size()), cold_logprobs.resize(said.size());
      CHECK(said == want && logprobs == cold_logprobs, "turn ", turn);
      text.insert(text.end(), said.begin(), said.end());
    }
    CHECK(found >= 2 * 64 && accepted > 0, found, " prompt tokens found, ", accepted, " drafts accepted");
  }
}

// One launch, no allocation, no synchronisation: what a cycle asks of CUDA, counted.
TEST(a_cycle_is_one_launch) {
  const SmallPair pair(DType::bf16);
  for (int tau : {0, 3}) {
    Engine engine(backend(), pair.target, tau ? pair.draft : nullptr, options_of(tau));
    engine.add({3, 1, 4}, params_of(40, 0.9));
    for (int step = 0; step < 3; ++step) engine.step();
    simt::reset_calls();
    constexpr int kCycles = 5;
    for (int step = 0; step < kCycles; ++step) CHECK(!engine.step().empty());
    CHECK(simt::num_calls("cudaGraphLaunch") == kCycles, simt::num_calls("cudaGraphLaunch"));
    for (const char* never : {"cudaMalloc", "cudaHostAlloc", "cudaFree", "cudaFreeHost", "cudaStreamSynchronize", "launch", "cublasLtMatmul",
                              "cudaGraphInstantiate", "cudaStreamBeginCapture", "cudaMemsetAsync"})
      CHECK(simt::num_calls(never) == 0, never, ": ", simt::num_calls(never));
    CHECK(simt::num_calls("cudaMemcpyAsync") <= kCycles, simt::num_calls("cudaMemcpyAsync"));  // tau of the slot, when it changes
  }
}

TEST(what_the_device_cannot_do_is_refused_by_name) {
  CHECK_THROWS(new_backend("cutlass"), std::invalid_argument, "PACELINE_CUDA_MATMUL must be cublas or unset, got cutlass");
  CHECK_THROWS(new_backend("", "on"), std::invalid_argument, "PACELINE_CUDA_GRAPHS must be off or unset, got on");
  CHECK_THROWS(load_backend("/nowhere/libpaceline_cuda.so", 0), DeviceError, "/nowhere/libpaceline_cuda.so");
}

// Given rows, run through the cycle without models: the same drafts and verdicts as on the CPU engine, bit for bit.
TEST(replay_is_the_cpu_engines) {
  constexpr int kTau = 2, kIds = 40, kCycles = 600;  // more than two batches
  const std::vector<float> target = random_floats((kTau + 1) * kIds, 3), draft = random_floats(kTau * kIds, 4);
  std::vector<double> uniforms;
  for (int i = 0; i < kCycles * kTau; ++i) uniforms.push_back(i % 5 == 0 ? 0.0 : double(i % 97) / 96);
  const auto cpu = make_cpu_backend(1, "");
  RequestParams p;
  p.temperature = 0.3;
  p.top_k = 12;
  p.seed = 11;
  for (Acceptance rule : {Acceptance::coupled, Acceptance::rejection})
    for (const double* given : {static_cast<const double*>(nullptr), static_cast<const double*>(uniforms.data())}) {
      const ReplayRows rows{kTau, kIds, kIds, target.data(), draft.data()};
      const Replay want = replay(*cpu, rule, rows, p, kCycles, given), got = replay(*new_backend(), rule, rows, p, kCycles, given);
      CHECK(got.seed == want.seed && got.position == want.position);
      CHECK(got.drafts == want.drafts, "rule ", int(rule));
      CHECK(got.accepted == want.accepted, "rule ", int(rule), given ? ", uniforms by hand" : "");
      CHECK(got.tokens == want.tokens, "rule ", int(rule));
    }
}

#ifdef PACELINE_HOST_SIMT  // what only the stub can tell or do

// The host runs ahead, and a graph holds what it should.
TEST(the_next_cycle_is_under_way_when_results_are_read) {
  const SmallPair pair(DType::bf16);
  for (int tau : {0, 3}) {
    Engine engine(backend(), pair.target, tau ? pair.draft : nullptr, options_of(tau));
    engine.add({3, 1, 4}, params_of(40, 0.9));
    for (int step = 0; step < 3; ++step) engine.step();
    for (int step = 0; step < 5; ++step) {
      CHECK(!engine.step().empty());
      CHECK(simt::num_pending() > 0, "nothing is under way after step ", step);
    }
    // Per pass: embed, per layer 4 products of 2 nodes, one for q, k and v and 2 for attention, the head's 2.
    const int pass = 1 + 2 * (4 * 2 + 1 + 2) + 2;
    CHECK(simt::num_graph_nodes() >= (tau + 1) * pass && simt::num_graph_nodes() <= (tau + 1) * (pass + 12) + 16, simt::num_graph_nodes(), " nodes");
  }
}

TEST(a_profiler_captures_the_cycles_it_was_asked_for) {
  const SmallPair pair(DType::bf16);
  EngineOptions options = options_of(2);
  options.profile_first = 2, options.profile_last = 4;
  Engine engine(backend(), pair.target, pair.draft, options);
  engine.add({3, 1, 4}, params_of(30));
  simt::reset_calls();
  engine.step();
  CHECK(simt::num_calls("cudaProfilerStart") == 0 && simt::num_calls("cudaGraphLaunch") == 1);
  while (simt::num_calls("cudaGraphLaunch") < 4) engine.step();
  CHECK(simt::num_calls("cudaProfilerStart") == 1 && simt::num_calls("cudaProfilerStop") == 0);
  run(engine);
  CHECK(simt::num_calls("cudaProfilerStart") == 1 && simt::num_calls("cudaProfilerStop") == 1);
}

// Captured once, at construction: a graph per tau, per number of sequences by fours, per context by fours, and per cycle under way.
TEST(graphs_are_captured_at_construction) {
  TinyShape shape = small_shape();
  shape.context = 9000;
  const SmallPair pair(DType::bf16, shape);
  simt::reset_calls();
  Engine engine(backend(), pair.target, pair.draft, options_of(2, 5, 9000));
  constexpr int kTaus = 3, kSequences = 3 /* 1, 4, 5 */, kContexts = 3 /* 2048, 8192, 9000 */, kUnderWay = 2;
  CHECK(simt::num_calls("cudaGraphInstantiate") == kTaus * kSequences * kContexts * kUnderWay, simt::num_calls("cudaGraphInstantiate"));
  for (int i = 0; i < 5; ++i) engine.add({3, 1, 4}, params_of(6 + i));
  run(engine);
  CHECK(simt::num_calls("cudaGraphInstantiate") == kTaus * kSequences * kContexts * kUnderWay, "captured later");
}

// Whatever call fails: an exception that names it, then EngineDead with that cause, and all device memory comes back.
TEST(any_failing_call_is_a_clean_error) {
  TinyShape shape = small_shape();
  shape.layers = 1, shape.hidden = 16, shape.intermediate = 16, shape.heads = 2, shape.kv_heads = 1, shape.vocab = 32;
  backend();  // its own memory is not what is counted
  const size_t before = simt::device_bytes_in_use();
  std::set<std::string> failed, heard;
  int survived = 0;
  for (int n = 1; survived < 3; ++n) {
    simt::fail_call(n);
    std::string said;
    try {
      const std::shared_ptr<Backend> own = new_backend();
      const SmallPair pair(DType::bf16, DType::fp32, shape, own);  // products of either kind
      Engine engine(own, pair.target, pair.draft, options_of(1, 1, 66));
      engine.add({1, 2, 3, 4}, params_of(4));
      try {
        CHECK(run(engine).size() == 4);
      } catch (const EngineDead& dead) {
        said = dead.what();
        CHECK_THROWS(engine.step(), EngineDead, "build a new one");
        CHECK_THROWS(engine.add({1}, params_of(1)), EngineDead, "build a new one");
      }
    } catch (const DeviceError& error) {
      said = error.what();
    }
    const std::string call = simt::failed_call();
    simt::fail_call(0);
    CHECK(simt::device_bytes_in_use() == before, call, " (call ", n, "): ", simt::device_bytes_in_use() - before, " bytes are lost");
    if (call.empty()) {
      ++survived;
      continue;
    }
    failed.insert(call);
    if (!said.empty()) heard.insert(call);
    // Destructors cannot throw, and a capture that ends after its line has failed reports that failure.
    if (said.empty()) CHECK(call.find("Destroy") != std::string::npos || call.find("Free") != std::string::npos || call == "cudaStreamSynchronize", call, " failed unheard");
    else CHECK(said.find("[cuda]") != std::string::npos, said);
  }
  for (const char* call : {"cudaMalloc", "cudaHostAlloc", "cudaGraphLaunch", "launch", "cublasLtMatmul", "cudaMemcpyAsync", "cudaStreamQuery",
                           "cudaStreamSynchronize", "cudaFuncGetAttributes", "cudaEventCreateWithFlags", "cudaGraphUpload", "cudaGraphInstantiate",
                           "cublasLtMatmulAlgoGetHeuristic"}) {
    CHECK(failed.count(call), call, " was never made to fail");
    CHECK(heard.count(call), call, " never failed with an error that was heard");
  }
}

// The stub's sums depend on the number of rows as the library's may: without the one bucket, parity would break here too.
TEST(the_stub_of_cublas_is_as_treacherous_as_the_library) {
  constexpr int kOutputs = 32, kK = 64;
  const auto multiply = [&](int rows, size_t workspace, int algorithm_of) {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t w, x, y, asked;
    cublasLtMatmulPreference_t preference;
    cublasLtCreate(&handle);
    cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    cublasLtMatrixLayoutCreate(&w, CUDA_R_32F, kK, kOutputs, kK);
    cublasLtMatrixLayoutCreate(&x, CUDA_R_32F, kK, rows, kK);
    cublasLtMatrixLayoutCreate(&asked, CUDA_R_32F, kK, algorithm_of, kK);
    cublasLtMatrixLayoutCreate(&y, CUDA_R_32F, kOutputs, rows, kOutputs);
    cublasLtMatmulPreferenceCreate(&preference);
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    cublasLtMatmulAlgoGetHeuristic(handle, operation, w, asked, y, y, preference, 1, &found, &count);
    Device<float> dw(random_floats(kOutputs * kK, 1)), dx(random_floats(size_t(rows) * kK, 2)), dy(size_t(rows) * kOutputs), room(workspace / 4 + 1);
    const float one = 1, zero = 0;
    cublasLtMatmul(handle, operation, &one, dw.data(), w, dx.data(), x, &zero, dy.data(), y, dy.data(), y, &found.algo, room.data(), workspace, stream());
    std::vector<float> sums = dy.read();
    sums.resize(kOutputs);  // of the first row
    cublasLtMatmulPreferenceDestroy(preference);
    for (auto layout : {w, x, y, asked}) cublasLtMatrixLayoutDestroy(layout);
    cublasLtMatmulDescDestroy(operation);
    cublasLtDestroy(handle);
    return sums;
  };
  const std::vector<float> want = multiply(64, 1 << 20, 64);
  CHECK(multiply(64, 1 << 20, 64) == want);
  CHECK(multiply(1, 1 << 20, 64) != want, "rows");
  CHECK(multiply(64, 4096, 64) != want, "workspace");
  CHECK(multiply(64, 1 << 20, 2) != want, "algorithm");
}

#endif

TEST_MAIN()
