// Sequences in and out between cycles: admission by pages, prefill in chunks, one cycle per step for all that run.
#pragma once

#include <deque>
#include <map>
#include <memory>

#include "decode/controller.h"
#include "decode/cycle.h"
#include "decode/drafter.h"
#include "decode/prefill_cost.h"
#include "decode/prefix_cache.h"
#include "decode/sequence.h"
#include "decode/trace.h"

namespace paceline {

struct EngineOptions {
  int num_speculative_tokens = 0;      // tau of a cycle at most, and by default; 0 where nobody drafts
  Acceptance acceptance = Acceptance::coupled;
  int max_model_len = 0;               // tokens of a sequence at most
  int max_num_seqs = 1;                // sequences decoding at once
  DType kv_dtype = DType::bf16;        // fp32 or bf16, both models
  int kv_cache_tokens = 0;             // positions per model, over all sequences
  int prefill_chunk = 256;             // rows of a prefill pass at most
  int vocab_limit = 0;                 // ids that exist; 0 = the target's vocab_size
  std::vector<std::string> token_bytes;  // bytes of each id, for stop strings; empty = stop strings are refused
  bool debug_hash = false;             // fill the hashes of Output
  int64_t profile_first = 0, profile_last = 0;  // cycles that a profiler captures, counted from 1; 0 = none
  int cycles_in_flight = 0;            // launched before results are read, at most; 0 = what the backend is best with
  int prefill_chunk_beside = 0;        // rows of a prefill pass while others decode; 0 = what costs four plain passes, learned
  int trace_cycles = 4096;             // records of the trace at most, one per request and cycle; 0 = none
  int64_t prefix_cache_bytes = -1;     // KV that ended requests leave for later ones; -1 = all that nobody needs, 0 = none
  Policy policy = Policy::fixed;       // who chooses each cycle's tau
  int verify_budget = 0;               // under Policy::budget: rows that a pass of the target verifies at most, one per sequence at least
  double latency_target = 0;           // under Policy::latency: seconds between two chunks of a request at most, at the 99th percentile
  float min_draft_confidence = 0;      // a draft run ends before a position at which the draft's largest probability is less; 0 = never
  DrafterKind drafter = DrafterKind::model;  // ngram: without a draft; chain: with one
  double draft_cost = 0;               // of a pass of the draft, in passes of the target, for the chain; 0 = by the bytes of their weights
};

class Scheduler {
 public:
  // draft may be null. Both models have max_num_seqs + 1 slots: the last one belongs to `verify`.
  Scheduler(Backend& backend, Model& target, Model* draft, const EngineOptions& options);

  // Throws what add would: std::invalid_argument, or CapacityError when it can never fit.
  void check(const std::vector<int32_t>& prompt, const RequestParams& params) const;
  // Queue a request; its id.
  int64_t add(std::vector<int32_t> prompt, RequestParams params);
  // Of a request that `check` let pass: the most it can ever hold.
  Demand demand(int prompt_length, const RequestParams& params) const;
  Demand capacity() const;
  // The request ends at the next step, with what it has. Unknown or finished ids are ignored.
  void cancel(int64_t id);
  // One cycle for the present set. Every request that got tokens or ended has an entry.
  std::vector<Output> step();
  // Of all requests that have finished.
  const RequestStats& stats() const { return stats_; }
  // In the place of the policy's own, before the first request: tests plant what cycles cost.
  void set_controller(std::unique_ptr<Controller> controller) { controller_ = std::move(controller); }
  // What cycles cost in another engine of the same models on the same machine, as if they had run here.
  void learn(const std::vector<CycleCost>& cycles);
  bool idle() const { return waiting_.empty() && active_.empty(); }
  int waiting() const { return int(waiting_.size()); }  // not admitted yet
  const Trace& trace() const { return trace_; }
  const PrefixCache& prefix_cache() const { return prefix_cache_; }

  size_t workspace_bytes() const;

 private:
  friend class Verification;  // has a slot of its own beside the sequences
  struct Flight {
    struct Part {
      int64_t request;
      int most;  // tokens it emits at most
      int wanted_tau;
      TauReason reason;
      DraftSource source;
      int run, match;  // what the host had, and the class of its match
    };
    std::vector<Part> parts;
    int64_t cycle = 0;        // its number, from 1
    int steps = 0;            // passes of the draft
    Clock::time_point start;  // when it was launched
  };

  int vocab_limit() const { return cycle_.limits().vocab_limit; }
  bool may_propose() const { return draft_ || drafter_->on_host(); }
  int end_length(int prompt_length, const RequestParams& params) const;
  void choose_taus();
  bool can_draft(const Sequence& sequence) const;
  void propose();
  void admit();
  void enter(Sequence& sequence, int slot);
  void leave(Sequence& sequence, bool keep_pages);
  bool reserve(bool draft, int slot, int positions);
  void prefill();
  void prefill(bool draft);
  int prefill_rows(bool draft) const;
  int chunk_rows(bool draft) const;
  bool lacks_prompt(const Sequence& sequence) const;
  bool somebody_decodes() const;
  bool catch_up_due(const Sequence& sequence) const;
  bool may_catch_up(const Sequence& sequence) const;
  bool may_run_ahead() const;
  bool launch();
  void profile_cycle();
  void collect(std::vector<Output>& outputs);
  void measure_host();
  CycleCost cost_of_collected() const;
  void commit(Sequence& sequence, const Flight::Part& part, std::vector<Output>& outputs);
  void record(const Sequence& sequence, const Flight::Part& part, const Output& output);
  void finish(Sequence& sequence, Output& output, FinishReason reason);
  void drop_cancelled(std::vector<Output>& outputs);

  Backend& backend_;
  Model& target_;
  Model* draft_;
  EngineOptions options_;
  Cycle cycle_;
  std::unique_ptr<Drafter> drafter_;
  PrefixCache prefix_cache_;
  RowsBuffer prefill_rows_, verify_rows_;
  Buffer verify_logits_, verify_logprobs_;          // [verify rows, V]
  Buffer prefill_stamps_;                           // [2] int64, shared: when the last prefill pass began and ended
  Recent target_row_seconds_, draft_row_seconds_;  // of prefill passes
  Recent plain_pass_seconds_;                // of the target's passes in cycles: few more rows than one cost little more
  bool draft_is_next_ = true;                       // where both models have prompts to read
  bool verification_passed_ = false;                // since the last step
  bool prompt_is_next_ = false;                     // a piece was put off for that pass
  std::deque<std::unique_ptr<Sequence>> waiting_;   // in order of arrival
  std::vector<std::unique_ptr<Sequence>> active_;   // in order of admission
  std::vector<bool> slot_taken_;
  std::unique_ptr<Controller> controller_;
  std::vector<Candidate> candidates_;               // for the controller, and its answer: of those who take part in the next cycle
  std::vector<TauChoice> choices_;
  std::vector<Judged> judged_;                      // what it is told of the cycle that is read now
  std::vector<int64_t> cancelled_;
  std::deque<Flight> flights_;                      // cycles under way, oldest first
  Flight collected_;                                // whose results are read now
  double host_seconds_ = 0;                         // that the host took for it
  Clock::time_point began_ = Clock::now(), last_read_;  // last_read_: results of the cycle before; none if something else ran since
  Trace trace_;
  RequestStats stats_;
  Demand promised_;                                 // to all that are active
  int64_t next_id_ = 1, cycles_launched_ = 0;
};

}  // namespace paceline
