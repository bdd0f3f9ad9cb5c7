// What speculation did and what it cost: counted per request, added up per engine.
#pragma once

#include <cstdint>
#include <vector>

namespace paceline {

struct RequestStats {
  int64_t num_requests = 0;  // that have finished
  int64_t num_cached_prompt_tokens = 0;  // that the target did not read, since an earlier request had
  int64_t num_cycles = 0, num_draft_tokens = 0, num_accepted_draft_tokens = 0, num_emitted_tokens = 0;
  int64_t num_draft_faults = 0;  // cycles that drafted less because a row of the draft held NaN or infinity, or left no token
  std::vector<int64_t> drafted_per_position, accepted_per_position;  // index = place in the cycle
  int64_t num_prefill_passes = 0;  // that fed it
  double prefill_time = 0, time_to_first_token = 0, draft_time = 0, verify_time = 0, sample_time = 0, decode_time = 0;  // seconds, summed

  void count_cycle(int tau, int accepted, int emitted) {
    ++num_cycles;
    num_draft_tokens += tau;
    num_accepted_draft_tokens += accepted;
    num_emitted_tokens += emitted;
    make_room(tau);
    for (int i = 0; i < tau; ++i) ++drafted_per_position[i];
    for (int i = 0; i < accepted; ++i) ++accepted_per_position[i];
  }

  void operator+=(const RequestStats& other) {
    num_requests += other.num_requests;
    num_cached_prompt_tokens += other.num_cached_prompt_tokens;
    num_cycles += other.num_cycles;
    num_draft_tokens += other.num_draft_tokens;
    num_accepted_draft_tokens += other.num_accepted_draft_tokens;
    num_emitted_tokens += other.num_emitted_tokens;
    num_draft_faults += other.num_draft_faults;
    make_room(other.drafted_per_position.size());
    for (size_t i = 0; i < other.drafted_per_position.size(); ++i) {
      drafted_per_position[i] += other.drafted_per_position[i];
      accepted_per_position[i] += other.accepted_per_position[i];
    }
    num_prefill_passes += other.num_prefill_passes;
    prefill_time += other.prefill_time;
    time_to_first_token += other.time_to_first_token;
    draft_time += other.draft_time;
    verify_time += other.verify_time;
    sample_time += other.sample_time;
    decode_time += other.decode_time;
  }

 private:
  void make_room(size_t positions) {
    if (positions <= drafted_per_position.size()) return;
    drafted_per_position.resize(positions);
    accepted_per_position.resize(positions);
  }
};

}  // namespace paceline
