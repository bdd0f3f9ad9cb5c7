// A model that reads its lines from a script, for tests of limits, stops and the cache: as cheap as a model can be, and as
// strict. Its KV rows are tags (position, token), and a row's logits depend on every tag it reads through the page table:
//   it reads exactly the script's text   the target chooses the script's next token, the draft the script's next draft
//   it reads anything else               both choose one and the same token, a function of all tags read (or hold NaN)
// So the drafts of a cycle are right or wrong where the script says (the dial), rows after a wrong draft still agree with
// each other (whoever goes on after a mismatch finds plausible tokens there), and one stale, missing or foreign KV row changes
// tokens, logprobs and acceptance.
#pragma once

#include <functional>
#include <limits>
#include <memory>

#include "engine.h"

namespace paceline::test {

struct Script {
  std::vector<int32_t> tokens;  // the whole text, prompt first; tokens[0] is the script's number
  std::vector<int32_t> drafts;  // what the draft proposes at each position
  int target_broken = -1;       // the row that chooses this position holds NaN
  int draft_broken = -1;
  bool nonsense_is_nan = false; // so do rows that read anything but this text
};
using Scripts = std::vector<Script>;

class ScriptedModel final : public Model {
 public:
  enum class Role { target, draft };
  struct FedRow {
    int pass, slot, position;
    int32_t token;
  };

  ScriptedModel(Backend& backend, Role role, std::shared_ptr<const Scripts> scripts, int vocab_size,
                const Engine::ModelLimits& limits)
      : role_(role), scripts_(std::move(scripts)), vocab_size_(vocab_size), limits_(limits),
        cache_(backend, {1, 1, 2, DType::fp32}, limits.num_pages, limits.num_slots, limits.max_len),
        generation_(limits.num_slots, 0), fed_(limits.num_slots, 0), writer_(size_t(limits.num_pages) * kPagePositions) {}

  int vocab_size() const override { return vocab_size_; }
  int max_len() const override { return limits_.max_len; }
  KvCache& cache() override { return cache_; }
  const AttentionShape& shape() const override { return shape_; }
  size_t workspace_bytes() const override { return 0; }

  void forward(const Rows& rows, float* logits) override {
    if (before_forward) before_forward();
    if (before_rows) before_rows(*rows.live);
    require(*rows.live >= 0 && *rows.live <= rows.capacity && *rows.live <= limits_.max_rows, "rows of a pass: ", *rows.live);
    for (int row = 0; row < *rows.live; ++row) write(rows.slot[row], rows.position[row], rows.token[row]);
    // A slot drafts with one row, or two after full acceptance: results of the first pass have no room for a third.
    if (logits && role_ == Role::draft)
      for (int row = 2; row < *rows.live; ++row)
        require(rows.slot[row] != rows.slot[row - 2], "three rows of slot ", rows.slot[row], " in a draft pass");
    if (logits)
      for (int row = 0; row < *rows.live; ++row)
        choose(rows.slot[row], rows.position[row], logits + size_t(row) * vocab_size_);
    ++passes_;
    if (!logits) prefills_.push_back(*rows.live);
  }

  // For tests.
  struct Tag {
    int position;
    int32_t token;
    int slot, generation;  // of the writer
  };
  Tag tag(int slot, int position) const {
    const size_t at = index(slot, position);
    const int32_t* row = values() + 2 * at;
    return {row[0], row[1], writer_[at].slot, writer_[at].generation};
  }
  // The number of the script whose pages the slot holds. The device's table may not know yet: a draft is given pages before it needs them.
  int script_of(int slot) const { return values()[2 * size_t(cache_.pages().table(slot)[0]) * kPagePositions + 1]; }
  int num_slots() const { return limits_.num_slots; }
  int generation(int slot) const { return generation_[slot]; }
  int fed(int slot) const { return fed_[slot]; }  // one past the row written last
  const std::vector<FedRow>& trace() const { return trace_; }
  int passes() const { return passes_; }
  const std::vector<int>& prefills() const { return prefills_; }  // rows of each pass without logits
  void forget_trace() { trace_.clear(), prefills_.clear(), passes_ = 0; }
  std::function<void()> before_forward;
  std::function<void(int)> before_rows;  // how many

 private:
  struct Writer {
    int slot = -1, generation = 0;
  };

  int32_t* values() const { return static_cast<int32_t*>(cache_.layer(0).values); }
  size_t index(int slot, int position) const {
    const KvLayer layer = cache_.layer(0);
    const int page = layer.page_table[size_t(slot) * layer.pages_per_slot + position / kPagePositions];
    return size_t(page) * kPagePositions + position % kPagePositions;
  }

  bool is_shared(size_t at) const { return cache_.pages().references(int(at / kPagePositions)) > 1; }

  // A row is the next one of its slot, or rewrites one: never beyond a hole, outside the slot's pages or in a page of two. A slot begins at
  // position 0, or behind the pages that it has from others.
  void write(int slot, int position, int32_t token) {
    require(slot >= 0 && slot < limits_.num_slots, "slot ", slot);
    require(position >= 0 && position < limits_.max_len, "KV write at position ", position, ", max_len ", limits_.max_len);
    require(token >= 0 && token < vocab_size_, "token ", token, " fed at position ", position);
    if (position == 0 || (position % kPagePositions == 0 && is_shared(index(slot, position - 1)))) ++generation_[slot], fed_[slot] = position;
    require(position <= fed_[slot], "KV write at position ", position, " behind a hole: slot ", slot, " was fed up to ",
            fed_[slot]);
    require(position < cache_.pages().held(slot) * kPagePositions, "KV write at position ", position, " outside the slot's pages");
    const size_t at = index(slot, position);
    require(int(at / kPagePositions) == cache_.pages().table(slot)[position / kPagePositions], "page table not published");
    require(!is_shared(at), "KV write into a page of several slots, position ", position);
    values()[2 * at] = position;
    values()[2 * at + 1] = token;
    writer_[at] = {slot, generation_[slot]};
    fed_[slot] = position + 1;
    trace_.push_back({passes_, slot, position, token});
  }

  void choose(int slot, int position, float* row) const {
    uint64_t read = 0x9E3779B97F4A7C15u;
    const Script& script = scripts_->at(tag(slot, 0).token);
    bool as_written = true;
    for (int i = 0; i <= position; ++i) {
      const Tag each = tag(slot, i);
      require((each.slot == slot && each.generation == generation_[slot]) || is_shared(index(slot, i)), "slot ", slot, " reads position ", i,
              " of slot ", each.slot, ", generation ", each.generation);
      require(each.position == i, "slot ", slot, " reads position ", each.position, " at ", i);
      as_written = as_written && each.token == script.tokens.at(i);
      read = (read ^ uint64_t(each.token + 1)) * 0xD1342543DE82EF95u;
      read ^= read >> 32;
    }
    const bool target = role_ == Role::target;
    const int line = target ? script.tokens.at(position + 1) : script.drafts.at(position + 1);
    const int next = as_written ? line : int(read % uint64_t(vocab_size_));
    for (int id = 0; id < vocab_size_; ++id)
      row[id] = float(uint32_t((read ^ uint64_t(id)) * 0xD1342543DE82EF95u >> 40)) * 0x1p-24f;  // [0, 1)
    row[next] += 3;
    const bool broken = as_written ? position + 1 == (target ? script.target_broken : script.draft_broken) : script.nonsense_is_nan;
    if (broken) row[position % vocab_size_] = std::numeric_limits<float>::quiet_NaN();
  }

  Role role_;
  std::shared_ptr<const Scripts> scripts_;
  int vocab_size_;
  Engine::ModelLimits limits_;
  KvCache cache_;
  AttentionShape shape_{1, 1, 2, nullptr, nullptr};
  std::vector<int> generation_, fed_;  // [slots]
  std::vector<Writer> writer_;         // [pages, positions]
  std::vector<FedRow> trace_;
  std::vector<int> prefills_;
  int passes_ = 0;
};

}  // namespace paceline::test
