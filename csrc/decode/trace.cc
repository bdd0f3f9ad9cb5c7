#include "decode/trace.h"

#include <algorithm>

namespace paceline {
namespace {

constexpr float kUnknown = std::numeric_limits<float>::quiet_NaN();

// Its place in the ring; what is missing up to tau_max is filled.
template <class T>
std::span<const T> keep(std::span<const T> values, std::span<T> ring, size_t at, int tau_max, T none) {
  T* place = ring.data() + at * tau_max;
  std::fill(std::copy(values.begin(), values.end(), place), place + tau_max, none);
  return {place, values.size()};
}

}  // namespace

Trace::Trace(Backend& backend, int capacity, int tau_max) : tau_max_(tau_max) {
  if (capacity == 0) return;
  const size_t drafts = size_t(capacity) * tau_max;
  memory_ = backend.allocate_shared(capacity * sizeof(CycleRecord) + drafts * (sizeof(int32_t) + 3 * sizeof(float)));
  records_ = {memory_.as<CycleRecord>(), size_t(capacity)};
  float* values = reinterpret_cast<float*>(records_.data() + capacity);
  draft_logprob_ = {values, drafts}, target_logprob_ = {values + drafts, drafts}, agreement_ = {values + 2 * drafts, drafts};
  drafted_ = {reinterpret_cast<int32_t*>(values + 3 * drafts), drafts};
}

void Trace::add(const CycleRecord& record) {
  if (!on()) return;
  const size_t at = size_t(added_++ % int64_t(records_.size()));
  CycleRecord& kept = records_[at] = record;
  kept.drafted = keep(record.drafted, drafted_, at, tau_max_, -1);
  kept.draft_logprob = keep(record.draft_logprob, draft_logprob_, at, tau_max_, kUnknown);
  kept.target_logprob = keep(record.target_logprob, target_logprob_, at, tau_max_, kUnknown);
  kept.agreement = keep(record.agreement, agreement_, at, tau_max_, kUnknown);
}

TraceColumns Trace::columns() const {
  TraceColumns c;
  c.tau_max = tau_max_;
  const int64_t size = int64_t(records_.size());
  for (int64_t i = std::max<int64_t>(0, added_ - size); i < added_; ++i) {
    const size_t at = size_t(i % size), drafts = at * tau_max_;
    const CycleRecord& r = records_[at];
    c.cycle.push_back(r.cycle), c.request.push_back(r.request), c.position.push_back(r.position);
    c.wanted_tau.push_back(r.wanted_tau), c.reason.push_back(uint8_t(r.reason)), c.tau.push_back(r.tau);
    c.accepted.push_back(r.accepted), c.emitted.push_back(r.emitted), c.extra_token.push_back(r.extra_token);
    c.extra_kind.push_back(uint8_t(r.extra_kind)), c.rows.push_back(r.rows), c.sequences.push_back(r.sequences);
    c.source.push_back(uint8_t(r.source)), c.start.push_back(r.start), c.draft_time.push_back(r.draft_time);
    c.verify_time.push_back(r.verify_time), c.sample_time.push_back(r.sample_time), c.host_time.push_back(r.host_time);
    c.catch_up_agreement.push_back(r.catch_up_agreement);
    c.drafted.insert(c.drafted.end(), drafted_.begin() + drafts, drafted_.begin() + drafts + tau_max_);
    c.draft_logprob.insert(c.draft_logprob.end(), draft_logprob_.begin() + drafts, draft_logprob_.begin() + drafts + tau_max_);
    c.target_logprob.insert(c.target_logprob.end(), target_logprob_.begin() + drafts, target_logprob_.begin() + drafts + tau_max_);
    c.agreement.insert(c.agreement.end(), agreement_.begin() + drafts, agreement_.begin() + drafts + tau_max_);
  }
  return c;
}

}  // namespace paceline
