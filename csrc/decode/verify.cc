// Engine.verify: one sequence fed beside the running ones, for its rows of the target and nothing else.
#include <algorithm>

#include "decode/scheduler.h"

namespace paceline {
namespace {

// Pages go back however the call ends.
class PagesScope {
 public:
  PagesScope(KvCache& cache, int slot) : cache_(cache), slot_(slot) {}
  ~PagesScope() { cache_.truncate(slot_, 0); }
  PagesScope(const PagesScope&) = delete;
  PagesScope& operator=(const PagesScope&) = delete;

 private:
  KvCache& cache_;
  int slot_;
};

}  // namespace

std::vector<float> Scheduler::verify(const std::vector<int32_t>& prefix, const std::vector<int32_t>& drafts) {
  std::vector<int32_t> tokens = prefix;
  tokens.insert(tokens.end(), drafts.begin(), drafts.end());
  require(!prefix.empty(), "[verify] prefix_ids must have at least 1 token, got 0");
  for (int32_t id : tokens) require(id >= 0 && id < target_.vocab_size(), "[verify] token ids must be in [0, ", target_.vocab_size(), "), got ", id);
  require(int(tokens.size()) <= options_.max_model_len, "[verify] prefix_ids and draft_ids must be at most max_model_len = ",
          options_.max_model_len, " tokens, got ", tokens.size());
  const int total = int(tokens.size()), first = int(prefix.size()) - 1, v = target_.vocab_size(), slot = options_.max_num_seqs;
  KvCache& cache = target_.cache();
  std::vector<float> logprobs(size_t(total - first) * v);
  if (promised_.target_pages + cache.pages().pages_for(total) > cache.pages().num_pages() || !reserve(false, slot, total))
    throw CapacityError(message("[verify] ", total, " tokens do not fit beside the running requests: raise kv_cache_tokens in Engine(...)"));
  const PagesScope pages(cache, slot);
  cache.publish();

  const auto pass = [&](RowsBuffer& rows, int begin, int end, float* logits) {
    std::vector<int32_t> positions;
    for (int position = begin; position < end; ++position) positions.push_back(position);
    rows.fill(std::vector<int32_t>(end - begin, slot), positions, {tokens.begin() + begin, tokens.begin() + end});
    target_.forward(rows.rows(), logits);
    backend_.synchronize();
  };
  for (int begin = 0; begin < first; begin += prefill_rows_.capacity())
    pass(prefill_rows_, begin, std::min(first, begin + prefill_rows_.capacity()), nullptr);
  for (int begin = first; begin < total; begin += verify_rows_.capacity()) {
    const int end = std::min(total, begin + verify_rows_.capacity());
    pass(verify_rows_, begin, end, verify_logits_.as<float>());
    backend_.log_softmax(verify_rows_.rows(), verify_logits_.as<float>(), v, verify_logprobs_.as<float>());
    backend_.download(logprobs.data() + size_t(begin - first) * v, verify_logprobs_.as<float>(), size_t(end - begin) * v * sizeof(float));
  }
  return logprobs;
}

}  // namespace paceline
