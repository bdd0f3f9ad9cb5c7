// Attention of the rows of a pass over the pages of their sequences.
//
//   out[t, h] = softmax(q[t, h] . K[0 .. position_t] / sqrt(Dh)) . V[0 .. position_t]
//
// Two kernels: the states of nodes, pages or whole groups of pages (attention_state.cuh), then what they make together.
//
// Shapes   q rows of qkv, out [T, H Dh] fp32; K, V pages [Hkv, 64, Dh] fp32 or bf16; Dh even, up to 256
// Traffic  2 Dh (position + 1) values per KV head and tile: up to 16 rows of one slot with all heads of the KV head, cut where that is
//          more than 32 queries (16 where Dh > 128); and 4 (Dh + 2) bytes per node, row and head, written and read once
// FLOPs    4 Dh (position + 1) per row and head
// Grid     (nodes, Hkv x cuts, rows), 128 threads: a block whose row begins a tile takes every gridDim.x-th node; (H, rows), 256 threads
// Split    single pages while their states fit the scratch, which is meant to hold 32 rows of them: a single row of a long sequence then
//          keeps the whole device busy. Else groups: an eighth of the states. Both give the same bits.
// Exact    queries and weights stay fp32. The bits of a row depend on its own query, position and the values that it sees.
// Oracle: tests/reference/attention.h, in tests/simt/attention_test.cc. Not measured.
#include <algorithm>
#include <climits>
#include <cmath>

#include "backend/cuda/kernels/attention_page.cuh"
#include "backend/cuda/kernels/attention_state.cuh"

namespace paceline::cuda {
namespace {

constexpr int kTileRows = 16;
constexpr int kPagedRows = 32;     // rows up to which the scratch has room for the states of single pages
constexpr int kMostBlocks = 8192;  // beyond, a block takes several nodes: most blocks of a large grid have no row, and each has its price
constexpr int kFewQueries = 8;     // blocks of no more are compiled apart: fewer registers, so that more pages are on their way at once
static_assert(kTileRows < kWarp);

constexpr int most_queries(int head_dim) { return head_dim <= 128 ? 32 : 16; }

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
__device__ Tile tile_of(const AttentionTask& task) {
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

// Queries and their positions into the block's memory, zeros up to the end of a line of keys. One warp per query.
template <class T>
__device__ void gather_queries(const AttentionTask& task, const Tile& tile, const PageMemory& memory) {
  const int width = lines_of(task.head_dim * int(sizeof(T))) * 16 / int(sizeof(T));
  for (int query = warp_of(); query < tile.queries; query += kPageThreads / kWarp) {
    const Query from = query_of(task, tile, query);
    const float* q = task.qkv + size_t(from.row) * task.qkv_stride + size_t(from.head) * task.head_dim;
    for (int i = lane_of(); i < width; i += kWarp) memory.q(query)[i] = i < task.head_dim ? q[i] : 0.0f;
    if (lane_of() == 0) memory.position()[query] = task.rows.position[from.row];
  }
}

// One page from memory to the weights of all queries. The caller may read weights, values, maxima and sums until the next call.
template <class T, bool IsFew>
__device__ __forceinline__ void weights_of_page(const AttentionTask& task, const Tile& tile, const PageMemory& memory, int page,
                                                int longest) {
  const int slot = task.rows.slot[tile.first_row], at = task.kv.page_table[size_t(slot) * task.kv.pages_per_slot + page];
  const size_t offset = (size_t(at) * task.num_kv_heads + tile.kv_head) * kPagePositions * task.head_dim;
  const T *keys = static_cast<const T*>(task.kv.keys) + offset, *values = static_cast<const T*>(task.kv.values) + offset;
  __syncthreads();  // the page before is no longer read
  if (task.room.apart) load_rows<2>({keys, values}, {memory.key(0), memory.value(0)}, longest, task.head_dim, task.room.kv_stride);
  else load_rows<1>({keys}, {memory.key(0)}, longest, task.head_dim, task.room.kv_stride);
  __syncthreads();
  score<T, IsFew>(memory, tile.queries, longest, task.head_dim);
  __syncthreads();
  if (!task.room.apart) load_rows<1>({values}, {memory.value(0)}, longest, task.head_dim, task.room.kv_stride);
  soften(memory, tile.queries, page * kPagePositions, task.scale);
  __syncthreads();
}

// Four columns of N queries, as one thread holds them.
template <int N>
struct States {
  float out[N][4] = {}, maximum[N] = {}, sum[N] = {};
};

template <int N>
__device__ __forceinline__ void store_states(const AttentionTask& task, const Tile& tile, const States<N>& states, const int (&query)[N],
                                             const int (&position)[N], int column, int node) {
  const AttentionNodes& nodes = task.nodes;
  for (int i = 0; i < N; ++i) {
    if (position[i] < node * nodes.pages * kPagePositions) continue;
    const Query to = query_of(task, tile, query[i]);
    const size_t at = (size_t(to.row) * task.num_heads + to.head) * nodes.count + node;
    float* out = nodes.out + at * task.head_dim + column;
    const float(&from)[4] = states.out[i];
    if (task.head_dim % 4 == 0) *reinterpret_cast<float4*>(out) = make_float4(from[0], from[1], from[2], from[3]);
    else
      for (int c = 0; c < 4; ++c)
        if (column + c < task.head_dim) out[c] = from[c];
    if (column == 0) nodes.maximum[at] = states.maximum[i], nodes.sum[at] = states.sum[i];
  }
}

// Every gridDim.x-th node. A thread holds four columns of N queries: threads side by side have the columns of one query.
template <class T, bool IsFew, int N>
__device__ __forceinline__ void walk(const AttentionTask& task, const Tile& tile, const PageMemory& memory) {
  const int column_lanes = (task.head_dim + 3) / 4, query_lanes = kPageThreads / column_lanes;
  const int column = int(threadIdx.x) % column_lanes * 4, lane = int(threadIdx.x) / column_lanes;
  int query[N], position[N];  // one that is not there sees nothing, and reads what query 0 has
  for (int i = 0; i < N; ++i) {
    const bool exists = lane < query_lanes && lane + i * query_lanes < tile.queries;
    query[i] = exists ? lane + i * query_lanes : 0;
    position[i] = exists ? memory.position()[query[i]] : -1;
  }
  const int pages = task.nodes.pages;
  for (int node = int(blockIdx.x); node * pages * kPagePositions <= tile.last; node += int(gridDim.x)) {
    States<N> total;
    for (int page = node * pages; page < (node + 1) * pages && page * kPagePositions <= tile.last; ++page) {
      const int first = page * kPagePositions, longest = visible_of(tile.last, first);
      weights_of_page<T, IsFew>(task, tile, memory, page, longest);
      States<N> leaf;
      int visible[N];
      for (int i = 0; i < N; ++i) visible[i] = visible_of(position[i], first);
      weigh<T, N>(memory, query, visible, column, visible_of(tile.least, first), longest, leaf.out);
      PACELINE_UNROLL
      for (int i = 0; i < N; ++i) {
        if (visible[i] == 0) continue;
        const float maximum = memory.maximum()[query[i]], sum = memory.sum()[query[i]];
        const bool begins = page == node * pages;  // and whoever sees anything of a node sees its first page
        const Merge by = merge_of(total.maximum[i], maximum);
        total.maximum[i] = begins ? maximum : by.maximum;
        total.sum[i] = begins ? sum : merged(total.sum[i], sum, by);
        for (int c = 0; c < 4; ++c) total.out[i][c] = begins ? leaf.out[i][c] : merged(total.out[i][c], leaf.out[i][c], by);
      }
    }
    store_states<N>(task, tile, total, query, position, column, node);
  }
}

// As many blocks to a multiprocessor as registers hold without spilling: code for anything but compute capability 9.0 takes some more of
// them. Shared memory is what keeps the number down there anyway (8.6, 8.9, 12.0), and wherever queries are fp32 and many.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
constexpr int kSparedBlocks = 1;
#else
constexpr int kSparedBlocks = 0;
#endif
template <class T, bool IsFew>
constexpr int kNodeBlocks = sizeof(T) == 2 ? (IsFew ? 4 : 3 - kSparedBlocks) : (IsFew ? 4 - kSparedBlocks : 2);

template <class T, bool IsFew>
__global__ void __launch_bounds__(kPageThreads, (kNodeBlocks<T, IsFew>)) nodes_kernel(AttentionTask task) {
  take_turn();
  const Tile tile = tile_of(task);
  if (tile.queries <= 0 || int(blockIdx.x) * task.nodes.pages * kPagePositions > tile.last) return;
  const PageMemory memory{shared_memory<unsigned char>(), task.room};
  gather_queries<T>(task, tile, memory);
  __syncthreads();
  const int query_lanes = kPageThreads / ((task.head_dim + 3) / 4), held = (tile.queries + query_lanes - 1) / query_lanes;
  if (held <= 1) walk<T, IsFew, 1>(task, tile, memory);
  else if (held <= 2) walk<T, IsFew, 2>(task, tile, memory);
  else if (IsFew || held <= 4) walk<T, IsFew, 4>(task, tile, memory);
  else if constexpr (!IsFew) {
    if (held <= 6) walk<T, IsFew, 6>(task, tile, memory);
    else walk<T, IsFew, 8>(task, tile, memory);
  }
}

// ------------------------------------------------------------------------------------------------ launcher

PageRoom room_of(int head_dim, int queries, DType dtype) {
  const auto odd = [](int bytes) { return (lines_of(bytes) | 1) * 16; };
  const int row_bytes = head_dim * int(size_of(dtype)), page_lines = lines_of(row_bytes);
  PageRoom room{};
  room.q_stride = odd(page_lines * 16 / int(size_of(dtype)) * int(sizeof(float)));
  room.kv_stride = odd(row_bytes);
  room.apart = row_bytes <= 512;
  room.keys = queries * room.q_stride;
  room.values = room.keys + (room.apart ? kPagePositions * room.kv_stride : 0);
  room.scores = room.values + kPagePositions * room.kv_stride;
  room.positions = room.scores + queries * kScoreStride * int(sizeof(float));
  room.maximum = room.positions + queries * int(sizeof(int));
  room.sum = room.maximum + queries * int(sizeof(float));
  room.bytes = room.sum + queries * int(sizeof(float));
  return room;
}

}  // namespace

size_t attention_scratch_bytes(int rows, int pages_per_slot, const AttentionShape& shape) {
  const size_t pages = size_t(std::min(rows, kPagedRows)) * nodes_of(pages_per_slot, 1);
  const size_t groups = size_t(rows) * nodes_of(pages_per_slot, kPageGroup);
  return std::max(pages, groups) * shape.num_heads * node_bytes(shape.head_dim);
}

void attention(cudaStream_t stream, const Rows& rows, const float* qkv, const AttentionShape& shape, const KvLayer& kv, void* scratch,
               size_t scratch_bytes, float* out) {
  const int dh = shape.head_dim, heads = shape.num_heads / shape.num_kv_heads;
  const size_t queries = size_t(rows.capacity) * shape.num_heads;
  const int most_pages = std::min(kv.pages_per_slot, nodes_of(rows.positions, kPagePositions));
  const auto bytes_of = [&](int pages) { return queries * nodes_of(most_pages, pages) * node_bytes(dh); };
  require(bytes_of(kPageGroup) <= scratch_bytes, "[attention] ", rows.capacity, " rows need ", bytes_of(kPageGroup),
          " bytes of scratch, got ", scratch_bytes);
  AttentionTask task{rows, qkv, kv, {}, {}, shape.num_heads, shape.num_kv_heads, dh, 0, 0, 0, 1.44269504f / std::sqrt(float(dh))};
  task.nodes.pages = bytes_of(1) <= scratch_bytes ? 1 : kPageGroup;
  task.nodes.count = nodes_of(most_pages, task.nodes.pages);
  task.nodes.out = static_cast<float*>(scratch);
  task.nodes.maximum = task.nodes.out + queries * task.nodes.count * dh;
  task.nodes.sum = task.nodes.maximum + queries * task.nodes.count;
  task.qkv_stride = padded_columns(shape.num_heads * dh) + 2 * padded_columns(shape.num_kv_heads * dh);
  const int of_tile = std::min(rows.capacity, kTileRows) * heads;
  task.cuts = (of_tile + most_queries(dh) - 1) / most_queries(dh);
  task.queries = (of_tile + task.cuts - 1) / task.cuts;
  task.room = room_of(dh, task.queries, kv.dtype);

  const int lanes = shape.num_kv_heads * task.cuts, nodes = std::clamp(kMostBlocks / (lanes * rows.capacity), 1, task.nodes.count);
  const bool is_few = task.queries <= kFewQueries;
  const auto kernel = kv.dtype == DType::fp32 ? (is_few ? nodes_kernel<float, true> : nodes_kernel<float, false>)
                                              : (is_few ? nodes_kernel<bf16, true> : nodes_kernel<bf16, false>);
  launch(kernel, dim3(unsigned(nodes), unsigned(lanes), unsigned(rows.capacity)), kPageThreads, size_t(task.room.bytes), stream, task);
  launch(combine_kernel, dim3(unsigned(shape.num_heads), unsigned(rows.capacity)), kCombineThreads, kCombineWarps * node_bytes(dh), stream,
         rows, task.nodes, shape.num_heads, dh, out);
}

}  // namespace paceline::cuda
