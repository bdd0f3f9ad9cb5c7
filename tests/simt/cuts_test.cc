// Top-k, top-p, min-p and the edges of chunks: thresholds and choices of the CUDA kernels against those of the CPU engine.
#include "backend/cpu/kernels/sampling.h"
#include "backend/cuda/kernels/choosing.cuh"
#include "simt/cycle_twins.h"
#include "simt/random_model.h"

using namespace paceline;
using namespace paceline::test;

namespace {

// A sequence of one token that drafts nothing.
void start(Twins& twins, int slot) {
  twins.tokens[size_t(slot) * twins.stride] = 0;
  twins.length[slot] = twins.running[slot] = 1;
  twins.wanted_tau[slot] = twins.target_cached[slot] = twins.draft_cached[slot] = 0;
}

const RandomModel kNoDraft(1, 0, 0, 0);

// What the kernels know of a slot's only row.
cuda::RowState known_of(Twins& twins, int slot) {
  const cuda::Scratch parts = cuda::cut_up(nullptr, twins.sizes.slots, twins.sizes.tau_max, twins.sizes.acceptance, twins.sizes.vocab);
  cuda::RowState known;
  const auto bytes = twins.scratch.read();
  std::memcpy(&known, bytes.data() + reinterpret_cast<size_t>(parts.target_rows + slot), sizeof known);
  return known;
}

// The CPU engine's, of the same row and history; every instruction level has the same bits.
ProcessedRow processed_by_cpu(Twins& twins, int slot) {
  static std::vector<float> copy;
  std::vector<int32_t> counts(twins.sizes.vocab);
  std::vector<uint64_t> histogram(2048);
  copy.resize(twins.sizes.vocab);
  const int32_t history = 0;
  return cpu::avx2::sampling_kernels().process(
      {twins.logits.host() + size_t(slot) * twins.sizes.vocab, twins.sizes.vocab, twins.sizes.vocab_limit, twins.params.host() + slot,
       &history, 1},
      {copy.data(), counts.data(), histogram.data()});
}

SlotParams random_cuts(Random& random, int vocab) {
  SlotParams p = plain_params(random.of({0.3, 0.9, 1.7, 40.0, 1e6}), 1, 16);
  if (random.one_in(2)) p.top_k = random.of({1, 3, 40, vocab / 2, vocab - 1});
  if (!random.one_in(4)) p.top_p = random.of({0.05, 0.5, 0.8, 0.97});
  if (random.one_in(4)) p.min_p = random.of({0.001, 0.05, 0.4, 1.0});
  p.seed = random.engine();
  return p;
}

}  // namespace

// Seldom does the token next to a threshold win, so the thresholds themselves are compared.
TEST(thresholds_of_cuts_equal_the_cpu_engine) {
  unsigned seed = 1;
  for_each_order([&](const std::string& order) {
    for (int vocab : {7, 97, 97, 97, 1000, 1000, 4000, 4000, 4103})
      for (int kind : {0, 1, 4}) {
        Random random(++seed);
        Twins twins({4, 0, vocab, vocab - vocab / 50, 64, 16, Acceptance::coupled});
        for (int slot = 0; slot < 4; ++slot) {
          start(twins, slot);
          twins.params[slot] = random_cuts(random, vocab);
        }
        twins.upload();
        twins.cycle(message(order, ", vocabulary ", vocab, ", kind ", kind), kNoDraft, RandomModel(seed, kind, 0, 0));
        for (int slot = 0; slot < 4; ++slot) {
          twins.length[slot] = 1;
          const cuda::RowState got = known_of(twins, slot);
          const ProcessedRow want = processed_by_cpu(twins, slot);
          CHECK(got.threshold == want.threshold && got.l_max == want.l_max && got.argmax == want.argmax && got.fault == want.fault, order,
                ", vocabulary ", vocab, ", kind ", kind, ", slot ", slot, ": threshold ", got.threshold, " instead of ", want.threshold);
        }
      }
  });
}

// The large vocabulary's few cases need not draw all cuts: here all, over blocks of 1024 threads.
TEST(cuts_of_a_long_row_equal_the_cpu_engine) {
  for_each_order([&](const std::string& order) {
    Twins twins({3, 0, 5003, 5000, 64, 16, Acceptance::coupled});
    for (int slot = 0; slot < 3; ++slot) {
      start(twins, slot);
      SlotParams p = plain_params(slot == 1 ? 1.7 : 0.9, 1, 16);
      p.top_k = slot == 1 ? 0 : 300;
      p.top_p = slot == 0 ? 1.0 : 0.8;
      p.min_p = slot == 2 ? 0.01 : 0.0;
      twins.params[slot] = p;
    }
    twins.upload();
    for (int cycle = 0; cycle < 3; ++cycle)
      twins.cycle(message(order, ", cycle ", cycle), kNoDraft, RandomModel(unsigned(cycle + 1), cycle % 2, 0, 0));
  });
}

// So small a top_p is zero in the CPU engine's floating-point mode, and a number on a device.
TEST(a_top_p_below_the_normal_numbers_keeps_the_best_token) {
  constexpr double kTiny[] = {5e-324, 1e-310, 2.2250738585072009e-308, 2.2250738585072014e-308};
  for_each_order([&](const std::string& order) {
    for (int vocab : {97, 5003}) {
      Twins twins({4, 0, vocab, vocab - 3, 64, 16, Acceptance::coupled});
      for (int slot = 0; slot < 4; ++slot) {
        start(twins, slot);
        twins.params[slot] = plain_params(1e6, 1, 16);
        twins.params[slot].top_p = kTiny[slot];
        if (slot % 2) twins.params[slot].top_k = 40;
      }
      twins.upload();
      twins.cycle(message(order, ", vocabulary ", vocab), kNoDraft, RandomModel(3, 0, 0, 0));
      for (int slot = 0; slot < 4; ++slot) {
        const cuda::RowState got = known_of(twins, slot);
        CHECK(got.threshold == got.l_max && twins.emitted[slot] == got.argmax, order, ", vocabulary ", vocab, ", top_p ", kTiny[slot],
              ": threshold ", got.threshold, " under ", got.l_max);
      }
    }
  });
}

// A cut that keeps one token more or less is seen only if that token is drawn: with all tokens alike, or nearly so, any may be.
TEST(every_survivor_of_a_cut_can_be_drawn_and_no_other) {
  for_each_order([&](const std::string& order) {
    Twins twins({4, 0, 97, 90, 64, 16, Acceptance::coupled});
    for (unsigned seed = 0; seed < 8; ++seed) {
      for (int slot = 0; slot < 4; ++slot) {
        start(twins, slot);
        SlotParams p = plain_params(1e6, 1, 16);
        p.seed = seed;
        if (slot % 2) p.top_p = 0.05;
        else p.top_k = 3;
        twins.params[slot] = p;
      }
      twins.upload();
      twins.cycle(message(order, ", seed ", seed), kNoDraft, RandomModel(seed, seed % 2, 0, 0));
    }
  });
}

// The first and last ids of chunks, of the vocabulary and of its padding: as the best token, as a close second and as a NaN.
TEST(the_edges_of_chunks_are_seen) {
  for_each_order([&](const std::string& order) {
    for (int bad : {0, 1}) {
      Twins twins({4, 0, 4103, 4099, 64, 16, Acceptance::coupled});
      for (int edge : {0, 2047, 2048, 4095, 4096, 4098, 4099, 4102}) {
        for (int slot = 0; slot < 4; ++slot) {
          start(twins, slot);
          twins.params[slot] = plain_params(slot < 2 ? 0 : 1, 1, 16);
          if (slot % 2) twins.params[slot].presence_penalty = 0.25f;  // by way of the processed copy
          twins.params[slot].num_logprobs = 1;
        }
        twins.upload();
        twins.cycle(message(order, ", edge ", edge), kNoDraft, [&](int slot, int, int size, float* row) {
          for (int i = 0; i < size; ++i) row[i] = -5.0f - float(i % 7);
          row[edge] = bad ? NAN : slot == 3 ? 2.0f : 9.0f;
        });
        const int finish = bad ? kNumericFault : kRunning;
        for (int slot = 0; slot < 4; ++slot) CHECK(twins.results[slot].finish == finish, order, ", edge ", edge, ", slot ", slot);
      }
    }
  });
}

TEST_MAIN()
