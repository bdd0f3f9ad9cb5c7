// What the blocks of attention work on, and how a page comes into a block's memory.
//
// A block has up to 32 queries (16 where Dh > 128) of one tile: up to 16 rows of one slot, all heads of a KV head to a row. It takes
// every gridDim.x-th node, page by page.
// Banks     rows of q, K and V, and of scores, lie an odd number of 16-byte lines apart: eight lanes that read the same line of eight rows,
//           one access of the memory, meet all 32 banks.
#pragma once

#include <climits>

#include "backend/cuda/device.cuh"
#include "backend/cuda/exp.cuh"
#include "backend/cuda/kernels/attention_state.cuh"
#include "backend/cuda/values.cuh"

namespace paceline::cuda {

constexpr int kPageThreads = 128, kPageWarps = kPageThreads / kWarp;
constexpr int kTileRows = 16;
constexpr int kScoreStride = kPagePositions + 4;
constexpr int kInFlight = 4;  // lines of 16 bytes that a thread has under way, of keys and of values each
static_assert(kTileRows < kWarp);

// Where the block's memory holds what. Offsets and strides in bytes; q lies at 0.
struct PageRoom {
  int width;  // values of a row of q, K or V, zeros behind Dh included
  int q_stride, kv_stride, keys, values, scores, positions, maximum, sum, bytes;
  bool apart;  // values have their own room; where the head is too long for that, they take the keys' when the scores are done
};

struct PageMemory {
  unsigned char* base;
  PageRoom room;
  __device__ unsigned char* q(int query) const { return base + query * room.q_stride; }
  __device__ unsigned char* key(int position) const { return base + room.keys + position * room.kv_stride; }
  __device__ unsigned char* value(int position) const { return base + room.values + position * room.kv_stride; }
  __device__ float* scores(int query) const { return reinterpret_cast<float*>(base + room.scores) + query * kScoreStride; }
  __device__ int* position() const { return reinterpret_cast<int*>(base + room.positions); }
  __device__ float* maximum() const { return reinterpret_cast<float*>(base + room.maximum); }
  __device__ float* sum() const { return reinterpret_cast<float*>(base + room.sum); }
};

__host__ __device__ constexpr int lines_of(int bytes) { return (bytes + 15) / 16; }
// Positions of the page from `first` on that a row at `position` sees.
__device__ __forceinline__ int visible_of(int position, int first) {
  const int count = position + 1 - first;
  return count < 0 ? 0 : count < kPagePositions ? count : kPagePositions;
}

struct AttentionTask {
  Rows rows;
  const float* qkv;
  KvLayer kv;
  AttentionNodes nodes;
  PageRoom room;
  int num_heads, num_kv_heads, head_dim, qkv_stride;
  int queries, cuts;  // at most, of a block; of the queries of a tile
  float scale;        // scores are exponents of 2
};

// What a block works on: queries [first_query, + queries) of a tile, counted row by row, all heads of the KV head to a row.
struct Tile {
  int first_row, kv_head, first_query, queries;
  int least, last;  // of their positions
};

// A tile begins at every 16th row of the pass and where the slot changes. No queries: none begins here, or this cut of it is empty.
__device__ __forceinline__ Tile tile_of(const AttentionTask& task) {
  const Rows& rows = task.rows;
  const int first = int(blockIdx.z), live = *rows.live, heads = task.num_heads / task.num_kv_heads;
  Tile tile{first, int(blockIdx.y) / task.cuts, int(blockIdx.y) % task.cuts * task.queries, 0, 0, -1};
  if (first >= live || (first % kTileRows && rows.slot[first - 1] == rows.slot[first])) return tile;
  const int lane = lane_of(), row = first + lane;
  const bool belongs = lane < kTileRows - first % kTileRows && row < live && rows.slot[row] == rows.slot[first];
  const int count = __ffs(int(~__ballot_sync(kWholeWarp, belongs))) - 1, end = tile.first_query + task.queries;
  tile.queries = (end < count * heads ? end : count * heads) - tile.first_query;
  const bool asks = lane < count && lane * heads < end && (lane + 1) * heads > tile.first_query;
  tile.least = reduce_warp(asks ? rows.position[row] : INT_MAX, [](int a, int b) { return a < b ? a : b; });
  tile.last = reduce_warp(asks ? rows.position[row] : -1, [](int a, int b) { return a > b ? a : b; });
  return tile;
}

struct Query {
  int row, head;
};
__device__ __forceinline__ Query query_of(const AttentionTask& task, const Tile& tile, int query) {
  const int heads = task.num_heads / task.num_kv_heads, at = tile.first_query + query;
  return {tile.first_row + at / heads, tile.kv_head * heads + at % heads};
}

// Queries, as T, and their positions into the block's memory, zeros up to the end of a row. One warp per query.
template <class T>
__device__ __forceinline__ void gather_queries(const AttentionTask& task, const Tile& tile, const PageMemory& memory) {
  for (int query = warp_of(); query < tile.queries; query += kPageWarps) {
    const Query from = query_of(task, tile, query);
    const float* q = task.qkv + size_t(from.row) * task.qkv_stride + size_t(from.head) * task.head_dim;
    T* to = reinterpret_cast<T*>(memory.q(query));
    for (int i = lane_of(); i < task.room.width; i += kWarp) put(to + i, i < task.head_dim ? q[i] : 0.0f);
    if (lane_of() == 0) memory.position()[query] = task.rows.position[from.row];
  }
}

// `rows` rows of P planes of a page, from memory to the block's. All loads of a turn are under way before the first is stored.
template <int P>
__device__ __forceinline__ void load_lines(const uint4* const (&from)[P], unsigned char* const (&to)[P], int rows, int lines,
                                           int stride) {
  const int row_step = kPageThreads / lines, line_step = kPageThreads % lines;
  int row = int(threadIdx.x) / lines, line = int(threadIdx.x) % lines;
  for (int first = int(threadIdx.x); first < rows * lines; first += kInFlight * kPageThreads) {
    uint4 held[P][kInFlight] = {};
    PACELINE_UNROLL
    for (int p = 0; p < P; ++p) {
      PACELINE_UNROLL
      for (int i = 0; i < kInFlight; ++i)
        if (first + i * kPageThreads < rows * lines) held[p][i] = from[p][first + i * kPageThreads];
    }
    PACELINE_UNROLL
    for (int i = 0; i < kInFlight; ++i) {
      PACELINE_UNROLL
      for (int p = 0; p < P; ++p)
        if (row < rows) *reinterpret_cast<uint4*>(to[p] + row * stride + line * 16) = held[p][i];
      row += row_step, line += line_step;
      if (line >= lines) line -= lines, ++row;
    }
  }
}

// The same for rows that are not whole lines: element by element, and zeros up to `width`, which scores run over.
template <int P, class T>
__device__ __forceinline__ void load_elements(const T* const (&from)[P], unsigned char* const (&to)[P], int rows, int head_dim, int width,
                                              int stride) {
  for (int p = 0; p < P; ++p)
    for (int at = int(threadIdx.x); at < rows * width; at += kPageThreads) {
      const int row = at / width, i = at % width;
      reinterpret_cast<T*>(to[p] + row * stride)[i] = i < head_dim ? from[p][row * head_dim + i] : T(0);
    }
}

template <int P, class T>
__device__ __forceinline__ void load_rows(const T* const (&from)[P], unsigned char* const (&to)[P], int rows, int head_dim,
                                          const PageRoom& room) {
  if (head_dim != room.width || head_dim * int(sizeof(T)) % 16) return load_elements(from, to, rows, head_dim, room.width, room.kv_stride);
  const uint4* lines[P];
  for (int p = 0; p < P; ++p) lines[p] = reinterpret_cast<const uint4*>(from[p]);
  load_lines<P>(lines, to, rows, lines_of(head_dim * int(sizeof(T))), room.kv_stride);
}

// Where a page of the tile's slot and KV head begins in the planes.
__device__ __forceinline__ size_t offset_of(const AttentionTask& task, const Tile& tile, int page) {
  const int slot = task.rows.slot[tile.first_row], at = task.kv.page_table[size_t(slot) * task.kv.pages_per_slot + page];
  return (size_t(at) * task.num_kv_heads + tile.kv_head) * kPagePositions * task.head_dim;
}

// Every gridDim.x-th node: work.take(page, ...) makes the state of a page, work.merge(...) adds it to its node's.
template <class Work>
__device__ __forceinline__ void walk(const AttentionTask& task, const Tile& tile, const Work& work) {
  const int pages = task.nodes.pages;
  for (int node = int(blockIdx.x); node * pages * kPagePositions <= tile.last; node += int(gridDim.x)) {
    typename Work::States total{};
    for (int page = node * pages; page < (node + 1) * pages && page * kPagePositions <= tile.last; ++page) {
      typename Work::States leaf{};
      work.take(page, visible_of(tile.last, page * kPagePositions), leaf);
      work.merge(page, page == node * pages, leaf, total);  // whoever sees anything of a node sees its first page
    }
    work.store(node, total);
  }
}

}  // namespace paceline::cuda
