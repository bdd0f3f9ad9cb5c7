// Whole cycles of random requests, the CPU engine and the CUDA kernels side by side: processors, draws, acceptance, reports.
#include <functional>

#include "math/noise.h"
#include "simt/cycle_twins.h"

using namespace paceline;
using namespace paceline::test;

namespace {

struct Random {
  std::mt19937 engine;
  explicit Random(unsigned seed) : engine(seed) {}
  int below(int n) { return int(engine() % unsigned(n)); }
  bool one_in(int n) { return below(n) == 0; }
  template <class T>
  T of(std::initializer_list<T> values) { return values.begin()[below(int(values.size()))]; }
};

// Of a position of a slot always the same, so that draft and target agree as far as `apart` lets them.
class RandomModel {
 public:
  RandomModel(unsigned seed, int kind, float apart, int one_bad_in) : seed_(seed), kind_(kind), apart_(apart), one_bad_in_(one_bad_in) {}
  void operator()(int slot, int position, int size, float* row) const {
    Random shared(seed_ * 7919 + slot * 104729 + position), own(unsigned(shared.engine() + std::hash<float>{}(apart_)));
    std::normal_distribution<float> normal(0, 3), noise(0, 1);
    for (int i = 0; i < size; ++i) {
      row[i] = normal(shared.engine);
      if (apart_ > 0) row[i] += apart_ * noise(own.engine);
      if (kind_ == 1) row[i] = std::round(row[i]) / 2;               // ties
      if (kind_ == 2) row[i] = i % 3 ? -0.0f : 0.0f;                 // all one value, of two signs
      if (kind_ == 3 && i % 4) row[i] = -INFINITY;                   // masked by the model
      if (kind_ == 4) row[i] *= 30;                                  // sharp
      if (kind_ == 5) row[i] = i % 2 ? row[i] * 1e-39f : row[i] * 1e-20f;  // tiny, some below the normal numbers
    }
    if (one_bad_in_ && own.one_in(one_bad_in_)) spoil(row, size, own);
  }

 private:
  static void spoil(float* row, int size, Random& random) {
    const int how = random.below(3), at = random.below(size);
    if (how == 2) std::fill(row, row + size, -INFINITY);
    else row[at] = how == 0 ? NAN : INFINITY;
  }
  unsigned seed_;
  int kind_;
  float apart_;
  int one_bad_in_;
};

SlotParams random_params(Random& random, const Sizes& sizes, int length) {
  SlotParams p = plain_params(random.of({0.0, 1e-30, 0.3, 1.0, 1.0, 1.7, 1e6}), random.below(length) + 1, 0);
  p.end_length = std::min(sizes.max_len, length + 1 + random.below(2 * sizes.tau_max + 3));
  p.seed = random.engine() * 0x123456789abull + random.engine();
  p.sample_index = random.one_in(2) ? 0 : 3;
  if (random.one_in(3)) p.top_k = random.of({1, 2, 5, 40, sizes.vocab - 1, sizes.vocab, 1 << 30});
  if (random.one_in(3)) p.top_p = random.of({1e-300, 0.01, 0.5, 0.9, 0.999999999});
  if (random.one_in(3)) p.min_p = random.of({1e-307, 2.4e-308, 0.001, 0.3, 1.0});
  if (random.one_in(4)) p.repetition_penalty = random.of({0.5f, 1.3f, 2.0f});
  if (random.one_in(4)) p.frequency_penalty = random.of({-0.7f, 0.4f, 1.9f});
  if (random.one_in(4)) p.presence_penalty = random.of({-1.1f, 0.3f});
  if (random.one_in(3)) {
    p.num_bias = std::min(sizes.vocab_limit, 1 + random.below(9));
    for (int i = 0; i < p.num_bias; ++i) {
      p.bias_id[i] = int(int64_t(i) * sizes.vocab_limit / p.num_bias);
      p.bias[i] = random.of({-100.0f, -1.5f, 0.25f, 5.0f});
    }
  }
  if (random.one_in(2)) {
    p.num_stop = 1 + random.below(3);
    for (int i = 0; i < p.num_stop; ++i) p.stop_id[i] = random.below(std::min(sizes.vocab_limit, 12));
    if (random.one_in(2)) p.min_length = length + random.below(sizes.tau_max + 2);
  }
  p.num_logprobs = random.of({-1, -1, 0, 5, 32});
  return p;
}

void set_slot(Twins& twins, Random& random, int slot) {
  const Sizes& s = twins.sizes;
  const int length = 1 + random.below(20);
  for (int i = 0; i < twins.stride; ++i) twins.tokens[size_t(slot) * twins.stride + i] = random.below(std::min(s.vocab_limit, random.one_in(3) ? s.vocab_limit : 6));
  twins.length[slot] = length;
  twins.running[slot] = !random.one_in(5);
  twins.wanted_tau[slot] = random.below(s.tau_max + 1) ? s.tau_max : random.below(s.tau_max + 1);
  twins.target_cached[slot] = length - 1;
  twins.draft_cached[slot] = std::max(0, length - 1 - random.below(3));
  twins.params[slot] = random_params(random, s, length);
}

// Two cycles of one batch. `most_vocab` bounds what a case may cost.
void run_case(const std::string& order, unsigned seed, std::initializer_list<int> vocabs) {
  Random random(seed);
  const int vocab = random.of(vocabs), limit = random.one_in(2) ? vocab : std::max(1, vocab - 1 - random.below(vocab / 3 + 1));
  const int tau = random.below(6), most_slots = vocab > 4000 ? 2 : 4;
  Twins twins({1 + random.below(most_slots), tau, vocab, limit, random.one_in(3) ? std::max(1, vocab / 2) : vocab, 48,
               random.one_in(2) ? Acceptance::rejection : Acceptance::coupled});
  for (int slot = 0; slot < twins.sizes.slots; ++slot) set_slot(twins, random, slot);
  twins.hashes_wanted = random.one_in(2);
  twins.upload();
  const int kind = random.below(6), one_bad_in = random.one_in(3) ? 6 : 0;
  const float apart = random.of({0.0f, 0.3f, 2.0f});
  for (int cycle = 0; cycle < 2; ++cycle)
    twins.cycle(message(order, ", case ", seed, ", vocabulary ", vocab, ", cycle ", cycle), RandomModel(seed, kind, apart, one_bad_in),
                RandomModel(seed, kind, 0, one_bad_in));
}

int case_count(int usual) {
  const char* more = std::getenv("PACELINE_SIMT_CASES");
  return more ? usual * std::atoi(more) : usual;
}

}  // namespace

TEST(cycles_over_small_vocabularies_equal_the_cpu_engine) {
  unsigned seed = 1;
  for_each_order([&](const std::string& order) {
    for (int i = 0; i < case_count(60); ++i) run_case(order, seed++, {1, 7, 7, 64, 97});
  });
}

TEST(cycles_over_several_chunks_equal_the_cpu_engine) {
  unsigned seed = 100001;
  for_each_order([&](const std::string& order) {
    for (int i = 0; i < case_count(8); ++i) run_case(order, seed++, {1000, 2048, 2049, 4097});
  });
}

TEST(cycles_over_a_large_vocabulary_equal_the_cpu_engine) {
  unsigned seed = 200001;
  for_each_order([&](const std::string& order) {
    for (int i = 0; i < case_count(1); ++i) run_case(order, seed++, {50001});
  });
}

TEST_MAIN()
