// Engine.verify: one sequence fed beside the running ones, a pass at a time, for its rows of the target and nothing else.
#pragma once

#include <cstdint>
#include <vector>

namespace paceline {

class Scheduler;

// Its pages are its own from the first pass to the end, or until it is dropped. One at a time, there being one slot for it: a second is a std::logic_error. Between two steps
// only, like all that touches the scheduler, its destructor included.
class Verification {
 public:
  // prefix not empty. Throws std::invalid_argument, or CapacityError where it does not fit beside what runs.
  Verification(Scheduler& scheduler, const std::vector<int32_t>& prefix, const std::vector<int32_t>& drafts);
  ~Verification();
  Verification(const Verification&) = delete;
  Verification& operator=(const Verification&) = delete;

  // One pass, over a piece of the prefix or some of the drafts; none where a prompt that gave way to the last one is read first. Whether it was
  // the last.
  bool advance();
  // [drafts + 1, target vocab] log-softmax of the raw logits, row t conditioned on prefix and drafts[0, t).
  std::vector<float>& logprobs() { return logprobs_; }

 private:
  int total() const { return int(tokens_.size()); }

  Scheduler& scheduler_;
  const std::vector<int32_t> tokens_;  // prefix and drafts
  const int first_;                    // the row whose logits are the first to be asked for
  int fed_ = 0, pages_ = 0;
  std::vector<float> logprobs_;
};

}  // namespace paceline
