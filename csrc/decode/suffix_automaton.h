// Where the end of a text has stood before in it: the suffix automaton of Blumer et al. 1985 (doi:10.1016/0304-3975(85)90157-4), built
// token by token. A state is a set of substrings that end in the same places; its link leads to the longest of their suffixes that also
// ends elsewhere. So the longest suffix of the text that occurred earlier is what the newest state's link stands for.
//
// A token costs O(1) amortised, whatever the text; the memory for `capacity` tokens is given at construction, about 110 bytes each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace paceline {

class SuffixAutomaton {
 public:
  // Zeroed memory of bytes(capacity); nullptr: there will never be a text.
  SuffixAutomaton(void* memory, int capacity);
  static size_t bytes(int capacity);

  void clear();
  // One more token; size() < capacity.
  void append(int32_t token);
  int size() const { return size_; }

  struct Match {
    int length;  // of the longest suffix that also ends earlier; 0: there is none
    int end;     // text[end - length, end) is such an earlier place: of all, the latest, as far as kUpdatedLinks reach
  };
  Match match() const { return match_; }

 private:
  // Of the places where a state's strings end only the latest is kept, and after each token only the longest kUpdatedLinks suffixes of the
  // text are told: a text that repeats itself throughout has as many as tokens.
  static constexpr int kUpdatedLinks = 16;
  struct State {
    int32_t length, link, end, edges;  // of the longest of its strings; a state; one past the place; the first of its edges, 0 = none
  };
  struct Edge {
    int32_t state, token, to;
    int32_t next_of_state, next_in_bucket;  // 0 = none
  };

  int add_state(int length, int link, int end);
  void add_edge(int state, int32_t token, int to);
  Edge* find(int state, int32_t token);
  int32_t& bucket(int state, int32_t token);
  int split(int from, int state, int32_t token);

  State* states_;      // [2 capacity + 1]; 0 is the root, the empty string
  Edge* edges_;        // [3 capacity + 1]; 0 is none
  int32_t* buckets_;   // [a power of two]
  uint32_t mask_;
  int size_ = 0, num_states_ = 1, num_edges_ = 1, last_ = 0;
  Match match_{0, 0};
};

}  // namespace paceline
