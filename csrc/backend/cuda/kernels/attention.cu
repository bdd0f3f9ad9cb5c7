// Attention of the rows of a pass over the pages of their sequences.
//
//   out[t, h] = softmax(q[t, h] . K[0 .. position_t] / sqrt(Dh)) . V[0 .. position_t]
//
// Two kernels: the states of nodes, pages or whole groups of pages (attention_state.cuh), then what they make together. Pages of bf16 are
// met on tensor cores (attention_bf16.cuh), those of fp32 by multiply-adds (attention_fp32.cuh).
//
// Shapes   q rows of qkv, out [T, H Dh] fp32; K, V pages [Hkv, 64, Dh] fp32 or bf16; Dh even, up to 256
// Traffic  2 Dh (position + 1) values per KV head and tile: up to 16 rows of one slot with all heads of the KV head, cut where that is
//          more than 32 queries (16 where Dh > 128); and 4 (Dh + 2) bytes per node, row and head, written and read once
// FLOPs    4 Dh (position + 1) per row and head
// Grid     (nodes, Hkv x cuts, rows), 128 threads: a block whose row begins a tile takes every gridDim.x-th node; (H, rows), 256 threads
// Split    single pages while their states fit the scratch, which is meant to hold 32 rows of them: a single row of a long sequence then
//          keeps the whole device busy. Else groups: an eighth of the states. Both give the same bits.
// Exact    the bits of a row depend on its own query, position and the values that it sees.
// Oracle: tests/reference/attention.h, in tests/simt/attention_test.cc. Not measured.
#include <algorithm>
#include <cmath>

#include "backend/cuda/kernels/attention_bf16.cuh"
#include "backend/cuda/kernels/attention_fp32.cuh"

namespace paceline::cuda {
namespace {

constexpr int kPagedRows = 32;     // rows up to which the scratch has room for the states of single pages
constexpr int kMostBlocks = 8192;  // beyond, a block takes several nodes: most blocks of a large grid have no row, and each has its price
constexpr int kFewQueries = 8;     // fp32 blocks of no more are compiled apart: fewer registers, so that more pages are on their way at once

constexpr int most_queries(int head_dim) { return head_dim <= 128 ? 2 * kMmaRows : kMmaRows; }

// The block's tile with its queries gathered; false: it has none.
template <class T>
__device__ __forceinline__ bool begin(const AttentionTask& task, const PageMemory& memory, Tile& tile) {
  take_turn();
  tile = tile_of(task);
  if (tile.queries <= 0 || int(blockIdx.x) * task.nodes.pages * kPagePositions > tile.last) return false;
  gather_queries<T>(task, tile, memory);
  __syncthreads();
  return true;
}

// Four blocks to a multiprocessor: 128 registers a thread hold the states of the largest, but for what the compiler makes of it for
// compute capability 8.0.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 800
constexpr int kLargeBlocks = 3;
#else
constexpr int kLargeBlocks = 4;
#endif

template <int kTiles, int kColumns>
__global__ void __launch_bounds__(kPageThreads, kTiles * kColumns < 4 ? 4 : kLargeBlocks) bf16_kernel(AttentionTask task) {
  const PageMemory memory{shared_memory<unsigned char>(), task.room};
  Tile tile;
  if (begin<bf16>(task, memory, tile)) walk(task, tile, Bf16Work<kTiles, kColumns>(task, tile, memory));
}

// As many blocks as registers hold without spilling; those of many queries fill the shared memory by twos anyway.
template <bool IsFew>
__global__ void __launch_bounds__(kPageThreads, IsFew ? 3 : 2) fp32_kernel(AttentionTask task) {
  const PageMemory memory{shared_memory<unsigned char>(), task.room};
  Tile tile;
  if (!begin<float>(task, memory, tile)) return;
  const int query_lanes = kPageThreads / ((task.head_dim + 3) / 4), held = (tile.queries + query_lanes - 1) / query_lanes;
  if (held <= 1) walk(task, tile, Fp32Work<IsFew, 1>(task, tile, memory));
  else if (held <= 2) walk(task, tile, Fp32Work<IsFew, 2>(task, tile, memory));
  else if (IsFew || held <= 4) walk(task, tile, Fp32Work<IsFew, 4>(task, tile, memory));
  else if constexpr (!IsFew) {
    if (held <= 6) walk(task, tile, Fp32Work<IsFew, 6>(task, tile, memory));
    else walk(task, tile, Fp32Work<IsFew, 8>(task, tile, memory));
  }
}

// ------------------------------------------------------------------------------------------------ launcher

PageRoom room_of(int head_dim, int queries, DType dtype) {
  const bool is_bf16 = dtype == DType::bf16;
  const auto stride_of = [](int bytes) { return (lines_of(bytes) | 1) * 16; };
  PageRoom room{};
  room.width = is_bf16 ? (head_dim + kMmaDepth - 1) / kMmaDepth * kMmaDepth : (head_dim + 3) / 4 * 4;
  const int row_bytes = room.width * int(size_of(dtype)), rows = is_bf16 ? (queries + kMmaRows - 1) / kMmaRows * kMmaRows : queries;
  room.q_stride = room.kv_stride = stride_of(row_bytes);
  room.apart = row_bytes <= 512;
  room.keys = rows * room.q_stride;
  room.values = room.keys + (room.apart ? kPagePositions * room.kv_stride : 0);
  room.scores = room.values + kPagePositions * room.kv_stride;
  room.positions = room.scores + rows * kScoreStride * int(sizeof(float));
  room.maximum = room.positions + rows * int(sizeof(int));
  room.sum = room.maximum + rows * int(sizeof(float));
  room.bytes = room.sum + rows * int(sizeof(float));
  return room;
}

using NodesKernel = void (*)(AttentionTask);
NodesKernel kernel_of(const AttentionTask& task) {
  if (task.kv.dtype == DType::fp32) return task.queries <= kFewQueries ? fp32_kernel<true> : fp32_kernel<false>;
  const int columns = (task.room.width / 16 + kPageWarps - 1) / kPageWarps;  // of a warp, by sixteens
  if (columns > 2) return bf16_kernel<1, kMaxHeadDim / 16 / kPageWarps>;
  if (task.queries <= kMmaRows) return columns == 1 ? bf16_kernel<1, 1> : bf16_kernel<1, 2>;
  return columns == 1 ? bf16_kernel<2, 1> : bf16_kernel<2, 2>;
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
  launch(kernel_of(task), dim3(unsigned(nodes), unsigned(lanes), unsigned(rows.capacity)), kPageThreads, size_t(task.room.bytes), stream, task);
  launch(combine_kernel, dim3(unsigned(shape.num_heads), unsigned(rows.capacity)), kCombineThreads, kCombineWarps * node_bytes(dh), stream,
         rows, task.nodes, shape.num_heads, dh, out);
}

}  // namespace paceline::cuda
