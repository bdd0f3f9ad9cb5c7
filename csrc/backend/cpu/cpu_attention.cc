// Attention on the CPU: what is cut into tasks, and which thread does which.
#include <algorithm>

#include "backend/cpu/cpu_backend.h"

namespace paceline::cpu {

template <class Body>
void AttentionWork::for_each_task(Body body) const {
  const int group = shape.num_heads / shape.num_kv_heads, dh = shape.head_dim, q_size = shape.num_heads * dh;
  const int stride = padded(q_size) + 2 * padded(shape.num_kv_heads * dh);
  const int most_heads = std::min(group, kTaskQueries), most_rows = kTaskQueries / most_heads;
  int index = 0;
  for (int row = 0, count; row < *rows.live; row += count) {
    for (count = 1; count < most_rows && row + count < *rows.live && rows.slot[row + count] == rows.slot[row];) ++count;
    for (int head = 0; head < shape.num_heads;) {
      const int kv_head = head / group, heads = std::min(most_heads, (kv_head + 1) * group - head);
      const size_t plane = kv_head * head_bytes(shape, kv.dtype), column = size_t(head) * dh;
      body(AttentionTask{qkv + size_t(row) * stride + column, out + size_t(row) * q_size + column, stride, q_size, count, heads, dh,
                         rows.position + row, kv.page_table + size_t(rows.slot[row]) * kv.pages_per_slot,
                         static_cast<const char*>(kv.keys) + plane, static_cast<const char*>(kv.values) + plane,
                         page_bytes(shape, kv.dtype), kv.dtype},
           index++);
      head += heads;
    }
  }
}

void CpuBackend::attention(const Rows& rows, const float* qkv, const AttentionShape& shape, const KvLayer& kv, float* out) {
  if (*rows.live == 0) return;
  const AttentionWork work{rows, qkv, shape, kv, out};
  int num_tasks = 0, last_position = 0;
  work.for_each_task([&](const AttentionTask&, int) { ++num_tasks; });
  for (int row = 0; row < *rows.live; ++row) last_position = std::max(last_position, rows.position[row]);
  const bool is_long = last_position >= kGroupPages * kPagePositions;
  pool_->run([&](int thread, int num_threads) {
    if (is_long && num_threads > 1 && num_tasks < 2 * num_threads) return attention_by_groups(work, num_tasks, thread, num_threads);
    work.for_each_task([&](const AttentionTask& task, int index) {
      if (index % num_threads == thread) kernels_->attention(task);
    });
  });
}

// Few tasks with long contexts: threads share out page groups, some groups of every task at a time, and one of them merges
// each task's states in ascending order. They share by positions: in turns, one thread would get all that is full and another the beginnings
// of last groups, and a cycle of two threads took 1.27 times as long from position 512 on. Scratch: 2 num_threads totals, then 8 num_threads states.
void CpuBackend::attention_by_groups(const AttentionWork& work, int num_tasks, int thread, int num_threads) {
  const int at_once = 8 * num_threads / num_tasks;
  constexpr int kGroup = kGroupPages * kPagePositions;
  const auto length = [](const AttentionTask& task) { return *std::max_element(task.position, task.position + task.rows) + 1; };
  const auto num_groups = [&](const AttentionTask& task) { return (length(task) + kGroup - 1) / kGroup; };
  const auto each_group = [&](int first, auto body) {  // body(task, index, group, positions): of one round
    work.for_each_task([&](const AttentionTask& task, int index) {
      for (int group = first; group < std::min(first + at_once, num_groups(task)); ++group)
        body(task, index, group, int64_t(std::min(kGroup, length(task) - group * kGroup)));
    });
  };
  const auto totals_of = [&](int task) { return attention_states_.as<AttentionState>() + size_t(task) * kTaskQueries; };
  const auto states_of = [&](int task, int i) { return totals_of(2 * num_threads + task * at_once + i); };
  int most_groups = 0;
  work.for_each_task([&](const AttentionTask& task, int) { most_groups = std::max(most_groups, num_groups(task)); });
  for (int first = 0; first < most_groups; first += at_once) {
    int64_t total = 0, before = 0;
    each_group(first, [&](const AttentionTask&, int, int, int64_t positions) { total += positions; });
    each_group(first, [&](const AttentionTask& task, int index, int group, int64_t positions) {
      if ((before + positions / 2) * num_threads / total == thread) kernels_->attention_group(task, group, states_of(index, group - first));
      before += positions;
    });
    pool_->barrier();
    work.for_each_task([&](const AttentionTask& task, int index) {
      if (index % num_threads != thread || first >= num_groups(task)) return;
      AttentionState* totals = totals_of(index);
      for (int i = 0; first == 0 && i < kTaskQueries; ++i) totals[i].sum = 0;
      const int end = std::min(first + at_once, num_groups(task));
      for (int group = first; group < end; ++group) kernels_->attention_merge(task, states_of(index, group - first), totals);
      if (end == num_groups(task)) kernels_->attention_finish(task, totals);
    });
    pool_->barrier();
  }
}

}  // namespace paceline::cpu
