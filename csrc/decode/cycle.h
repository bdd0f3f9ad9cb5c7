// The speculative cycle: draft, verify, accept, commit, as one straight line of backend operations over device-resident state.
#pragma once

#include <memory>
#include <vector>

#include "decode/rows.h"
#include "model/model.h"

namespace paceline {

class Cycle {
 public:
  struct Limits {
    int num_slots;     // sequences decoding at once
    int tau_max;       // drafts per cycle at most; 0 without a draft
    int max_len;       // tokens of the longest sequence
    int vocab_limit;   // ids that exist (the target's tokenizer decides)
    Acceptance acceptance;
    bool hash_logits;  // debug
  };
  // draft may be null.
  Cycle(Backend& backend, Model& target, Model* draft, const Limits& limits);

  // Host side, between cycles only. A slot starts with its committed tokens; nothing is cached yet.
  void start(int slot, const SlotParams& params, const std::vector<int32_t>& tokens);
  void set_target_cached(int slot, int positions);
  void set_draft_cached(int slot, int positions);
  void set_running(int slot, bool running);
  void set_wanted_tau(int slot, int tau);

  // One cycle for all running slots, tau drafts at most: one launch. The host then reads the results where the device has put them.
  void run(int tau);

  // Results of the last cycle.
  const CycleResult& result(int slot) const { return results_.slot[slot]; }
  const int32_t* tokens(int slot) const { return results_.tokens + size_t(slot) * width_; }
  const float* logprobs(int slot) const { return results_.logprobs + size_t(slot) * width_; }
  const int32_t* top_ids(int slot, int i) const { return results_.top_ids + (size_t(slot) * width_ + i) * kMaxTopLogprobs; }
  const float* top_logprobs(int slot, int i) const { return results_.top_logprobs + (size_t(slot) * width_ + i) * kMaxTopLogprobs; }
  const uint64_t* row_hashes(int slot) const { return results_.row_hashes + size_t(slot) * width_; }  // debug only
  double draft_seconds() const { return 1e-9 * double(stamps_[1] - stamps_[0]); }
  double verify_seconds() const { return 1e-9 * double(stamps_[2] - stamps_[1]); }
  double sample_seconds() const { return 1e-9 * double(stamps_[3] - stamps_[2]); }

  const Limits& limits() const { return limits_; }
  size_t workspace_bytes() const;

 private:
  void enqueue(int tau);
  template <class T>
  T* make(size_t count);
  template <class T>
  T* share(size_t count);

  Backend& backend_;
  Model& target_;
  Model* draft_;
  Limits limits_;
  int width_;  // tau_max + 1: tokens a cycle can emit
  std::vector<Buffer> buffers_;
  CycleState state_;
  RowsBuffer draft_rows_, verify_rows_;
  float* target_logits_;
  CycleResults results_;   // in shared memory, as what follows
  int64_t* stamps_;        // [4]
  int64_t* finished_;      // cycles
  int64_t launched_ = 0;
  std::vector<std::unique_ptr<Graph>> graphs_;  // one per tau 0..tau_max
};

}  // namespace paceline
