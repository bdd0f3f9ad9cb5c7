// The speculative cycle: draft, verify, accept, commit, as one straight line of backend operations over device-resident state.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "decode/rows.h"
#include "model/model.h"

namespace paceline {

class Cycle {
 public:
  struct Limits {
    int num_slots;     // sequences decoding at once
    int tau_max;       // drafts per cycle at most; 0 where nobody drafts
    int max_len;       // tokens of the longest sequence
    int vocab_limit;   // ids that exist (the target's tokenizer decides)
    Acceptance acceptance;
    bool hash_logits;  // debug
    bool records;      // fills evidence for the trace
    int in_flight;     // cycles launched before the first one's results are read, at most
    bool may_stop_early = false;  // drafts may end before the wanted tau: set_stop_below, set_verify_budget
    bool host_drafts = false;  // there may be offers; then in_flight is 1
  };
  // draft may be null.
  Cycle(Backend& backend, Model& target, Model* draft, const Limits& limits);
  ~Cycle();

  // Host side, between cycles only. A slot starts with its committed tokens; nothing is cached yet.
  void start(int slot, const SlotParams& params, const std::vector<int32_t>& tokens);
  void set_target_cached(int slot, int positions);
  void set_draft_cached(int slot, int positions);
  void set_running(int slot, bool running);
  void set_wanted_tau(int slot, int tau);
  void set_stop_below(int slot, float confidence);
  void set_verify_budget(int rows);
  // Drafts that the host has for the slot's next cycle, behind its committed tokens: `count` of offers(slot); 0 = the draft proposes.
  int32_t* offers(int slot) { return state_.offers + size_t(slot) * limits_.tau_max; }
  void set_offered(int slot, int count) { state_.offered[slot] = count; }

  // One cycle for the running slots, `sequences` at most: tau drafts at most, all positions below `positions`; draft_runs = some slot
  // drafts without an offer. One launch, no waiting; fewer than in_flight may be under way.
  void launch(int tau, int sequences, int positions, bool draft_runs = true);
  // Until the oldest cycle under way has left its results, where the host reads them.
  void wait();
  int in_flight() const { return int(launched_ - read_); }

  // Results of the cycle last waited for.
  const CycleResult& result(int slot) const { return last().device.slot[slot]; }
  const int32_t* tokens(int slot) const { return last().device.tokens + size_t(slot) * width_; }
  const float* logprobs(int slot) const { return last().device.logprobs + size_t(slot) * width_; }
  const int32_t* top_ids(int slot, int i) const { return last().device.top_ids + (size_t(slot) * width_ + i) * kMaxTopLogprobs; }
  const float* top_logprobs(int slot, int i) const { return last().device.top_logprobs + (size_t(slot) * width_ + i) * kMaxTopLogprobs; }
  std::span<const float> confidence(int slot) const { return result(slot).looked ? std::span<const float>(last().device.confidence + size_t(slot) * limits_.tau_max, size_t(result(slot).looked)) : std::span<const float>(); }
  const uint64_t* row_hashes(int slot) const { return last().device.row_hashes + size_t(slot) * width_; }  // debug only
  const CycleEvidence& evidence() const { return last().evidence; }  // where limits().records
  double draft_seconds() const { return 1e-9 * double(last().stamps[1] - last().stamps[0]); }
  double verify_seconds() const { return 1e-9 * double(last().stamps[2] - last().stamps[1]); }
  double sample_seconds() const { return 1e-9 * double(last().stamps[3] - last().stamps[2]); }

  const Limits& limits() const { return limits_; }
  size_t workspace_bytes() const;

 private:
  // What the host knows of a cycle when it launches it. There is a line for each tau, with the draft or without, and for a few numbers of
  // sequences and positions.
  struct Shape {
    int tau, sequences, positions;
    bool draft_runs;
    Rows bound(Rows rows, int per_sequence) const;
  };
  // Of one cycle, in shared memory; and the lines that write there, one per shape.
  struct Results {
    CycleResults device;
    CycleEvidence evidence;
    int64_t* stamps;  // [4]
    std::vector<std::unique_ptr<Graph>> graphs;
  };
  void enqueue(const Shape& shape, const Results& to);
  const Results& last() const { return ring_[(read_ - 1) % ring_.size()]; }
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
  std::vector<Shape> shapes_;  // in the order in which the first that fits is the smallest
  std::vector<Results> ring_;  // [in_flight]
  int64_t* finished_;          // cycles, in shared memory
  int64_t launched_ = 0, read_ = 0;
};

}  // namespace paceline
