// The plan, the walk and the commit of a cycle, the CPU engine and the CUDA kernels side by side.
#include "simt/cycle_twins.h"

using namespace paceline;
using namespace paceline::test;

namespace {

// Certain of one token.
struct Certain {
  std::vector<int> token_at;  // by position
  int bad_at = -1;            // position whose row holds a NaN
  void operator()(int, int position, int size, float* row) const {
    for (int i = 0; i < size; ++i) row[i] = i == token_at[position] ? 10.0f : float(-i);
    if (position == bad_at) row[0] = NAN;
  }
};

// One slot of `length` tokens 0 that wants to draft `tau`.
struct OneSlot : Twins {
  OneSlot(int tau, Acceptance acceptance, double temperature, int length, int end_length) : Twins({1, tau, 16, 16, 16, 40, acceptance}) {
    for (int i = 0; i < stride; ++i) tokens[i] = 0;
    this->length[0] = length, running[0] = 1, wanted_tau[0] = tau, target_cached[0] = draft_cached[0] = length - 1;
    params[0] = plain_params(temperature, 1, end_length);
    params[0].num_logprobs = 2;
  }
};

const std::vector<int> kCounting{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

template <class Body>
void for_each_rule(Body body) {
  for_each_order([&](const std::string& order) {
    for (Acceptance acceptance : {Acceptance::coupled, Acceptance::rejection})
      for (double temperature : {0.0, 0.01})
        body(message(order, acceptance == Acceptance::coupled ? ", coupled" : ", rejection", ", T ", temperature), acceptance, temperature);
  });
}

}  // namespace

TEST(plans_number_rows_in_the_order_of_slots) {
  unsigned seed = 1;
  for_each_order([&](const std::string& order) {
    for (int slots : {1, 31, 300}) {  // 300: more than one tile
      std::mt19937 random(seed++);
      Twins twins({slots, 3, 20, 20, 10, 30, Acceptance::coupled});
      for (int slot = 0; slot < slots; ++slot) {
        const int length = 1 + int(random() % 20);
        for (int i = 0; i < twins.stride; ++i) twins.tokens[size_t(slot) * twins.stride + i] = int(random() % 20);
        twins.length[slot] = length, twins.running[slot] = random() % 4 != 0, twins.wanted_tau[slot] = int(random() % 4);
        twins.target_cached[slot] = length - 1, twins.draft_cached[slot] = std::max(0, length - 1 - int(random() % 3));
        twins.params[slot] = plain_params(0, 1, length + 1 + int(random() % 6));
      }
      twins.upload();
      const std::string where = message(order, ", ", slots, " slots");
      twins.begin(where);
      for (int step = 0; step < 3; ++step) twins.plan_draft(message(where, ", step ", step), step);
      twins.plan_verify(where);
    }
  });
}

TEST(a_stop_ends_the_cycle_at_every_place) {
  for_each_rule([](const std::string& rule, Acceptance acceptance, double temperature) {
    for (int stop = 1; stop <= 5; ++stop) {
      OneSlot twins(3, acceptance, temperature, 1, 20);
      twins.params[0].num_stop = 1, twins.params[0].stop_id[0] = stop;
      twins.upload();
      twins.cycle(message(rule, ", stop ", stop), Certain{kCounting}, Certain{kCounting});
      CHECK(twins.results[0].finish == (stop <= 4 ? kStopToken : kRunning) && twins.results[0].emitted == std::min(stop, 4), rule, stop);
    }
  });
}

TEST(the_length_limit_ends_the_cycle) {
  for_each_rule([](const std::string& rule, Acceptance acceptance, double temperature) {
    for (int end = 2; end <= 7; ++end) {
      OneSlot twins(3, acceptance, temperature, 1, end);
      twins.upload();
      twins.cycle(message(rule, ", end ", end), Certain{kCounting}, Certain{kCounting});
      CHECK(twins.results[0].finish == (end <= 5 ? kLengthLimit : kRunning) && twins.length[0] == std::min(end, 5), rule, end);
    }
  });
}

TEST(a_fault_counts_only_when_its_row_is_reached) {
  for_each_rule([](const std::string& rule, Acceptance acceptance, double temperature) {
    for (int differs = 1; differs <= 5; ++differs)
      for (int bad = 1; bad <= 4; ++bad) {
        Certain draft{kCounting}, target{kCounting, bad};
        draft.token_at[differs] = 15;  // this draft is rejected
        OneSlot twins(3, acceptance, temperature, 1, 20);
        twins.upload();
        twins.cycle(message(rule, ", bad row ", bad, ", rejection at ", differs), draft, target);
        const bool reached = bad <= differs;
        CHECK(twins.results[0].finish == (reached ? kNumericFault : kRunning), rule, ", bad ", bad, ", differs ", differs);
        CHECK(twins.results[0].emitted == (reached ? bad - 1 : std::min(differs, 4)), rule, ", bad ", bad, ", differs ", differs);
      }
  });
}

TEST(an_unusable_draft_row_cuts_the_draft_short) {
  for_each_rule([](const std::string& rule, Acceptance acceptance, double temperature) {
    for (int bad = 1; bad <= 4; ++bad) {
      OneSlot twins(3, acceptance, temperature, 1, 20);
      twins.upload();
      twins.cycle(message(rule, ", bad draft row ", bad), Certain{kCounting, bad}, Certain{kCounting});
      CHECK(twins.results[0].tau == bad - 1 && twins.results[0].finish == kRunning && twins.results[0].emitted == bad, rule, bad);
    }
  });
}

TEST(timestamps_grow) {
  Device<int64_t> stamps(2);
  cuda::timestamp(stream(), stamps.data());
  cuda::timestamp(stream(), stamps.data() + 1);
  const auto got = stamps.read();
  CHECK(got[0] <= got[1], got[0], " ", got[1]);
}

TEST_MAIN()
