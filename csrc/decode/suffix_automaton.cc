#include "decode/suffix_automaton.h"

#include <algorithm>
#include <bit>

namespace paceline {
namespace {

constexpr int kNone = -1;  // the root's link

// Of a text of n tokens there are at most 2 n - 1 states (2 for one token) and 3 n - 1 edges.
size_t states_of(int capacity) { return 2 * size_t(capacity) + 1; }
size_t edges_of(int capacity) { return 3 * size_t(capacity) + 1; }
size_t buckets_of(int capacity) { return std::bit_ceil(2 * size_t(capacity)); }

}  // namespace

size_t SuffixAutomaton::bytes(int capacity) {
  return states_of(capacity) * sizeof(State) + edges_of(capacity) * sizeof(Edge) + buckets_of(capacity) * sizeof(int32_t);
}

SuffixAutomaton::SuffixAutomaton(void* memory, int capacity)
    : states_(static_cast<State*>(memory)), edges_(reinterpret_cast<Edge*>(states_ + states_of(capacity))),
      buckets_(reinterpret_cast<int32_t*>(edges_ + edges_of(capacity))), mask_(uint32_t(buckets_of(capacity) - 1)) {
  if (memory) states_[0] = {0, kNone, 0, 0};
}

// After a short text only what it used.
void SuffixAutomaton::clear() {
  if (num_edges_ > int(mask_) / 8) std::fill_n(buckets_, size_t(mask_) + 1, 0);
  else for (int i = 1; i < num_edges_; ++i) bucket(edges_[i].state, edges_[i].token) = 0;
  states_[0] = {0, kNone, 0, 0};
  size_ = last_ = 0;
  num_states_ = num_edges_ = 1;
  match_ = {0, 0};
}

int32_t& SuffixAutomaton::bucket(int state, int32_t token) {
  const uint64_t key = (uint64_t(uint32_t(state)) << 32 | uint32_t(token)) * 0x9E3779B97F4A7C15u;
  return buckets_[uint32_t(key >> 32) & mask_];
}

SuffixAutomaton::Edge* SuffixAutomaton::find(int state, int32_t token) {
  for (int i = bucket(state, token); i; i = edges_[i].next_in_bucket)
    if (edges_[i].state == state && edges_[i].token == token) return &edges_[i];
  return nullptr;
}

void SuffixAutomaton::add_edge(int state, int32_t token, int to) {
  int32_t& first = bucket(state, token);
  edges_[num_edges_] = {state, token, to, states_[state].edges, first};
  first = states_[state].edges = num_edges_++;
}

int SuffixAutomaton::add_state(int length, int link, int end) {
  states_[num_states_] = {length, link, end, 0};
  return num_states_++;
}

// The strings of `state` up to those that `from` leads to by `token` end in one more place than the longer ones: a state of their own.
int SuffixAutomaton::split(int from, int state, int32_t token) {
  const int own = add_state(states_[from].length + 1, states_[state].link, states_[state].end);
  for (int i = states_[state].edges; i; i = edges_[i].next_of_state) add_edge(own, edges_[i].token, edges_[i].to);
  for (; from != kNone; from = states_[from].link) {
    Edge* edge = find(from, token);
    if (!edge || edge->to != state) break;
    edge->to = own;
  }
  return states_[state].link = own;
}

void SuffixAutomaton::append(int32_t token) {
  ++size_;
  const int newest = add_state(size_, 0, size_);
  int from = last_;
  Edge* edge = nullptr;
  for (; from != kNone && !(edge = find(from, token)); from = states_[from].link) add_edge(from, token, newest);
  if (edge) states_[newest].link = states_[edge->to].length == states_[from].length + 1 ? edge->to : split(from, edge->to, token);
  last_ = newest;

  int suffix = states_[newest].link;
  match_ = {states_[suffix].length, states_[suffix].end};
  for (int i = 0; i < kUpdatedLinks && suffix > 0; ++i, suffix = states_[suffix].link) states_[suffix].end = size_;
}

}  // namespace paceline
