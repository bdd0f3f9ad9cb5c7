// After construction nothing is allocated on the path of a token: no backend memory at all, and on the CPU no host memory either while a
// pass or a cycle computes. (What a step hands out, Output and its vectors, is the host's and is not of that path.)
#include "cpp/allocations.h"
#include "cpp/test.h"
#include "cpp/tiny_models.h"
#include "decode/cycle.h"

using namespace paceline;
using namespace paceline::test;

namespace {

// Calls since it was made.
struct Counted {
  const long news = Allocations::calls(Allocations::kNew), buffers = Allocations::calls(Allocations::kBuffer);
  long new_calls() const { return Allocations::calls(Allocations::kNew) - news; }
  long buffer_calls() const { return Allocations::calls(Allocations::kBuffer) - buffers; }
};

std::vector<int32_t> prompt_of(int length) {
  std::vector<int32_t> prompt(length);
  for (int i = 0; i < length; ++i) prompt[i] = (7 * i + 3) % 97;
  return prompt;
}

struct SmallPair {
  std::shared_ptr<Weights> target, draft;
  SmallPair(const std::shared_ptr<Backend>& backend, DType dtype, DType draft_dtype) {
    TinyShape shape;
    shape.context = 1100;  // attention by groups of pages
    target = tiny_weights(backend, shape, dtype, 1), draft = tiny_weights(backend, shape, draft_dtype, 1, 0.15f);
  }
};

EngineOptions options_of(Acceptance acceptance) {
  EngineOptions options;
  options.num_speculative_tokens = 3;
  options.max_model_len = 1100;
  options.max_num_seqs = 3;
  options.kv_cache_tokens = 3 * 1100;
  options.prefill_chunk = 64;
  options.acceptance = acceptance;
  for (int id = 0; id < 97; ++id) options.token_bytes.push_back(std::string(1, char('A' + id % 26)));
  return options;
}

}  // namespace

struct alignas(64) Aligned {
  char bytes[64];
};

TEST(the_counters_see_what_there_is) {
  const Counted all;
  { const std::vector<int> one(100); }
  { const auto aligned = std::make_unique<Aligned>(); }
  CHECK(all.new_calls() == 2 && all.buffer_calls() == 0);
  const std::shared_ptr<Backend> backend = make_cpu_backend(1, "");
  const Counted buffers;
  { const Buffer one = backend->allocate(100), other = backend->allocate_shared(100); }
  CHECK(buffers.buffer_calls() == 2, buffers.buffer_calls());
}

TEST(an_engine_takes_no_backend_memory_after_construction) {
  for (int threads : {1, 3})
    for (auto [dtype, draft_dtype, acceptance] :
         {std::tuple(DType::bf16, DType::bf16, Acceptance::coupled), {DType::fp32, DType::int4, Acceptance::rejection}, {DType::int8, DType::int8, Acceptance::coupled}}) {
      const std::shared_ptr<Backend> backend = make_cpu_backend(threads, "");
      const SmallPair pair(backend, dtype, draft_dtype);
      Engine engine(backend, pair.target, pair.draft, options_of(acceptance));
      const Counted all;
      const auto add = [&](int length, auto change) {
        RequestParams params;
        params.max_tokens = 30;
        params.temperature = 0.9;
        params.seed = uint64_t(length);
        change(params);
        return engine.add(prompt_of(length), params);
      };
      add(5, [](RequestParams&) {});
      add(200, [](RequestParams& p) { p.logprobs = 5, p.top_p = 0.9, p.top_k = 20, p.repetition_penalty = 1.2, p.frequency_penalty = 0.1; });
      add(700, [](RequestParams& p) { p.temperature = 0, p.num_speculative_tokens = 0; });
      add(63, [](RequestParams& p) { p.stop = {"ABCABC", "ZZ"}, p.min_p = 0.01, p.logit_bias = {{3, 1.0}}; });
      const int64_t dropped = add(90, [](RequestParams&) {});
      for (int step = 0; !engine.idle(); ++step) {
        engine.step();
        if (step == 3) engine.cancel(dropped);
        if (step == 5) engine.verify(prompt_of(150), {1, 2, 3});
      }
      add(700, [](RequestParams& p) { p.max_tokens = 3; });  // a prompt that was there before
      while (!engine.idle()) engine.step();
      CHECK(engine.stats().num_requests == 6);
      CHECK(all.buffer_calls() == 0, all.buffer_calls(), " buffers, ", threads, " threads, ", name_of(dtype));
    }
}

// All of it is taken at construction, for the longest text.
TEST(drafters_on_the_host_take_no_memory_at_all) {
  const std::shared_ptr<Backend> backend = make_cpu_backend(1, "");
  for (DrafterKind kind : {DrafterKind::ngram, DrafterKind::chain}) {
    constexpr int kSlots = 2, kTau = 8, kLength = 30000;
    const auto drafter = make_drafter(kind, *backend, {kSlots, kTau, kLength, 0.1});
    std::vector<int32_t> text(kLength), run(kTau);
    for (int i = 0; i < kLength; ++i) text[i] = int32_t((unsigned(i) * 2654435761u >> 20) % 60);
    const Counted all;
    int proposed = 0;
    for (int round = 0; round < 3; ++round)
      for (int slot = 0; slot < kSlots; ++slot) {
        drafter->start(slot);
        for (int length = 1; length <= kLength; length += length < 100 ? 1 : 977) {
          const Proposal proposal = drafter->propose(slot, std::span(text).first(length), kTau, run.data());
          drafter->learn(slot, proposal.source, proposal.length, 1, std::span(run).first(2));
          proposed += proposal.length;
        }
      }
    CHECK(proposed > 100, proposed);
    CHECK(all.new_calls() == 0 && all.buffer_calls() == 0, all.new_calls(), " new, ", all.buffer_calls(), " buffers");
  }
}

TEST(an_engine_with_a_drafter_on_the_host_takes_no_backend_memory) {
  const std::shared_ptr<Backend> backend = make_cpu_backend(1, "");
  const SmallPair pair(backend, DType::bf16, DType::bf16);
  for (DrafterKind kind : {DrafterKind::ngram, DrafterKind::chain}) {
    EngineOptions options = options_of(Acceptance::rejection);
    options.drafter = kind;
    Engine engine(backend, pair.target, kind == DrafterKind::chain ? pair.draft : nullptr, options);
    const Counted all;
    for (int length : {5, 200, 700, 63, 90}) {
      RequestParams params;
      params.max_tokens = 40;
      params.temperature = 0.3;
      params.logit_bias = {{1, 30.0}, {2, 30.0}};
      engine.add(prompt_of(length), params);
    }
    while (!engine.idle()) engine.step();
    CHECK(engine.stats().num_accepted_draft_tokens > 0);
    CHECK(all.buffer_calls() == 0, all.buffer_calls(), " buffers");
  }
}

TEST(pages_change_hands_without_backend_memory) {
  const std::shared_ptr<Backend> backend = make_cpu_backend(1, "");
  KvCache cache(*backend, {2, 2, 16, DType::bf16}, 12, 3, 256);
  const AttentionShape shape{4, 2, 16, nullptr, nullptr};
  const Counted all;
  for (int round = 0; round < 3; ++round) {
    CHECK(cache.reserve(0, 200));
    CHECK(cache.share(0, 1, 130, shape));
    CHECK(cache.reserve(1, 256));
    cache.publish();
    for (int slot : {0, 1}) cache.truncate(slot, 70);
    cache.publish();
    for (int slot : {0, 1}) cache.truncate(slot, 0);
  }
  CHECK(all.buffer_calls() == 0 && all.new_calls() == 0, all.buffer_calls(), " buffers, ", all.new_calls(), " new");
}

TEST(passes_and_cycles_take_no_memory_at_all) {
  for (int threads : {1, 3})
    for (Acceptance acceptance : {Acceptance::coupled, Acceptance::rejection}) {
      constexpr int kSlots = 2, kTau = 3, kLength = 1100, kPrompt = 700, kCycles = 20;
      const std::shared_ptr<Backend> backend = make_cpu_backend(threads, "");
      const SmallPair pair(backend, DType::bf16, DType::int4);
      const Transformer::Limits limits{64, kLength, kSlots, 2 * 18, DType::bf16};
      Transformer target(pair.target, limits), draft(pair.draft, limits);
      Cycle cycle(*backend, target, &draft, {kSlots, kTau, kLength, 97, acceptance, false, false, 1});
      RowsBuffer rows(*backend, 64);
      const auto logits = backend->allocate(64 * 97 * sizeof(float));
      long in_passes = 0, in_cycles = 0;
      int emitted = 0;
      for (int slot = 0; slot < kSlots; ++slot) {
        SlotParams params{};
        params.temperature = slot ? 0.8 : 0.0;
        params.top_p = slot ? 0.9 : 1.0;
        params.top_k = slot ? 30 : 0;
        params.repetition_penalty = 1.1f;
        params.seed = 5;
        params.prompt_length = kPrompt;
        params.end_length = kLength;
        params.num_logprobs = slot ? 5 : -1;
        cycle.start(slot, params, prompt_of(kPrompt));
        for (Model* model : {static_cast<Model*>(&target), static_cast<Model*>(&draft)}) {
          CHECK(model->cache().reserve(slot, kPrompt + kCycles * (kTau + 1) + kTau));
          model->cache().publish();
          for (int first = 0; first < kPrompt - 1; first += 64) {
            const int count = std::min(64, kPrompt - 1 - first);
            std::vector<int32_t> positions(count);
            for (int i = 0; i < count; ++i) positions[i] = first + i;
            const std::vector<int32_t> prompt = prompt_of(kPrompt);
            rows.fill(std::vector<int32_t>(count, slot), positions, {prompt.begin() + first, prompt.begin() + first + count});
            const Counted pass;
            model->forward(rows.rows(), first % 128 ? logits.as<float>() : nullptr);
            in_passes += pass.new_calls() + pass.buffer_calls();
          }
        }
        cycle.set_target_cached(slot, kPrompt - 1);
        cycle.set_draft_cached(slot, kPrompt - 1);
        cycle.set_wanted_tau(slot, kTau);
        cycle.set_running(slot, true);
      }
      for (int i = 0; i < kCycles; ++i) {
        const Counted one;
        cycle.launch(kTau, kSlots, kLength);
        cycle.wait();
        in_cycles += one.new_calls() + one.buffer_calls();
        for (int slot = 0; slot < kSlots; ++slot) emitted += cycle.result(slot).emitted;
      }
      CHECK(emitted >= kSlots * kCycles, emitted, " tokens");
      CHECK(in_passes == 0, in_passes, " allocations in prefill, ", threads, " threads");
      CHECK(in_cycles == 0, in_cycles, " allocations in cycles, ", threads, " threads");
    }
}

TEST_MAIN()
