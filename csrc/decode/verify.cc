// Verification: the rows of one sequence that the target is asked for.
#include <algorithm>

#include "decode/scheduler.h"
#include "decode/verification.h"

namespace paceline {
namespace {

std::vector<int32_t> joined(std::vector<int32_t> prefix, const std::vector<int32_t>& drafts) {
  prefix.insert(prefix.end(), drafts.begin(), drafts.end());
  return prefix;
}

}  // namespace

Verification::Verification(Scheduler& scheduler, const std::vector<int32_t>& prefix, const std::vector<int32_t>& drafts)
    : scheduler_(scheduler), tokens_(joined(prefix, drafts)), first_(int(prefix.size()) - 1) {
  const int vocab_size = scheduler.target_.vocab_size(), limit = scheduler.options_.max_model_len;
  require(!prefix.empty(), "[verify] prefix_ids must have at least 1 token, got 0");
  for (int32_t id : tokens_) require(id >= 0 && id < vocab_size, "[verify] token ids must be in [0, ", vocab_size, "), got ", id);
  require(tokens_.size() <= size_t(limit), "[verify] prefix_ids and draft_ids must be at most max_model_len = ", limit, " tokens, got ",
          tokens_.size());
  logprobs_.reserve(size_t(total() - first_) * vocab_size);  // filled as it comes: gigabytes of zeros would hold everybody up
  KvCache& cache = scheduler.target_.cache();
  const int slot = scheduler.options_.max_num_seqs;
  if (cache.pages().held(slot)) throw std::logic_error("[verify] another one is under way");
  const int pages = cache.pages().pages_for(total());
  if (scheduler.promised_.target_pages + pages > cache.pages().num_pages() || !scheduler.reserve(false, slot, total()))
    throw CapacityError(message("[verify] ", total(), " tokens do not fit beside the running requests: raise kv_cache_tokens in Engine(...)"));
  scheduler.promised_.target_pages += pages_ = pages;  // nobody is admitted to them before it ends
}

Verification::~Verification() {
  if (!pages_) return;
  scheduler_.promised_.target_pages -= pages_;
  scheduler_.target_.cache().truncate(scheduler_.options_.max_num_seqs, 0);
}

// Whoever decodes waits for one such pass at most between two of its cycles, as for a piece of a prompt, and as long.
bool Verification::advance() {
  Scheduler& s = scheduler_;
  if (s.prompt_is_next_ && !s.active_.empty()) return false;
  const bool reads = fed_ < first_;  // only: no logits
  RowsBuffer& rows = reads ? s.prefill_rows_ : s.verify_rows_;
  const int end = std::min(reads ? first_ : total(), fed_ + std::min(rows.capacity(), s.prefill_rows(false)));
  std::vector<int32_t> positions;
  for (int position = fed_; position < end; ++position) positions.push_back(position);
  s.target_.cache().publish();
  rows.fill(std::vector<int32_t>(end - fed_, s.options_.max_num_seqs), positions, {tokens_.begin() + fed_, tokens_.begin() + end});
  int64_t* stamps = s.prefill_stamps_.as<int64_t>();
  s.backend_.timestamp(stamps);  // not before: a cycle may be under way
  s.target_.forward(rows.rows(), reads ? nullptr : s.verify_logits_.as<float>());
  s.backend_.timestamp(stamps + 1);
  s.backend_.synchronize();
  s.last_read_ = {};
  if (!reads) {
    const size_t v = s.target_.vocab_size();
    logprobs_.resize(size_t(end - first_) * v);
    s.backend_.log_softmax(rows.rows(), s.verify_logits_.as<float>(), int(v), s.verify_logprobs_.as<float>());
    s.backend_.download(logprobs_.data() + (fed_ - first_) * v, s.verify_logprobs_.as<float>(), (end - fed_) * v * sizeof(float));
  }
  if (s.somebody_decodes()) s.controller_->observe_piece(1e-9 * double(stamps[1] - stamps[0]));
  s.verification_passed_ = true;
  fed_ = end;
  return fed_ == total();
}

}  // namespace paceline
