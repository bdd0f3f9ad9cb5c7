// Who proposes the drafts of a sequence's next cycle: the draft model, on the device, or the host, from the text alone. What is proposed
// never changes the law of what comes out, nor, under `coupled`, a bit of it; so a drafter may go by whatever it has seen.
//
// It is asked between cycles, when all tokens are known: an engine whose drafter is on the host has one cycle under way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>

#include "backend/backend.h"

namespace paceline {

enum class DraftSource : uint8_t { model = 0, ngram = 1 };
constexpr const char* kDraftSources[] = {"model", "ngram"};

// model: the draft model, if there is one. ngram: the longest suffix of the text that it has seen before, and what came after it.
// chain: ngram where it has a match that promises more than the draft model does, else the model, else plain decoding.
enum class DrafterKind { model, ngram, chain };
const char* name_of(DrafterKind kind);

constexpr int kMatchClasses = 4;  // of what the text repeats: 2 tokens, 3 to 4, 5 to 8, more

// For a slot's next cycle. source: who is to draft. length: tokens the host has, at most; with DraftSource::model they are for a draft model that
// cannot draft yet, because its cache is behind. match: the class of their match; those of one class are right about as often.
struct Proposal {
  DraftSource source = DraftSource::model;
  int length = 0;
  int match = 0;
};

// How many of a run's first tokens came out.
inline int right_of(std::span<const int32_t> run, std::span<const int32_t> emitted) {
  const auto [wrong, _] = std::mismatch(run.begin(), run.end(), emitted.begin(), emitted.end());
  return int(wrong - run.begin());
}

class Drafter {
 public:
  struct Limits {
    int num_slots, tau_max, max_len;
    double draft_cost;  // of a pass of the draft, in passes of the target, until it is told of another; 0 = nobody knows
  };

  virtual ~Drafter() = default;
  virtual bool on_host() const { return false; }
  virtual void set_draft_cost(double /*draft_cost*/) {}
  // A sequence begins in the slot.
  virtual void start(int /*slot*/) {}
  // For a cycle of at most `most` drafts after `text`, which continues what was shown of the slot before; the tokens go to run[0, most).
  virtual Proposal propose(int /*slot*/, std::span<const int32_t> /*text*/, int /*most*/, int32_t* /*run*/) { return {}; }
  // A cycle of `source` verified tau drafts and emitted `emitted`, the first `accepted` of them drafts.
  virtual void learn(int /*slot*/, DraftSource /*source*/, int /*tau*/, int /*accepted*/, std::span<const int32_t> /*emitted*/) {}
  virtual size_t bytes() const { return 0; }
};

// All memory is taken now, from the backend's shared memory.
std::unique_ptr<Drafter> make_drafter(DrafterKind kind, Backend& backend, const Drafter::Limits& limits);

}  // namespace paceline
