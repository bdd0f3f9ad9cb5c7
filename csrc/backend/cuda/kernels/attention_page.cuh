// The leaf of attention: some queries against one page, which the block holds in shared memory.
//
//   score[i, j] = q[i] . K[j] scale,   weight[i, j] = 2^(score - maximum[i]),   out[i] = sum_j weight[i, j] V[j]
//
// Order     a score is one sum over the head from element 0 up, a column of out one sum over the positions from the page's first up, the
//           sum of the weights a tree over 64. How many queries a thread holds never touches it.
// Masking   positions behind the last that any of the queries sees are not fetched; those that a query does not see are dropped before
//           they are used: their weight is 0, and their value is not multiplied with it.
// Banks     rows of q, K and V lie an odd number of 16-byte lines apart: eight lanes that read the same line of eight rows, one access
//           of the memory, meet all 32 banks. Scores lie 80 floats apart: two queries of a warp meet different halves of the banks.
// Room      at most 93 KiB (fp32, Dh = 128); bf16 with Dh = 128 takes 35 to 61 KiB, by the number of queries
#pragma once

#include "backend/cuda/device.cuh"
#include "backend/cuda/exp.cuh"
#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/values.cuh"

namespace paceline::cuda {

constexpr int kPageThreads = 128;
constexpr int kScoreStride = kPagePositions + 16;
constexpr int kInFlight = 4;  // lines of 16 bytes that a thread has under way, of keys and of values each

// Where the block's memory holds what. Offsets and strides in bytes; q lies at 0.
struct PageRoom {
  int q_stride, kv_stride, keys, values, scores, positions, maximum, sum, bytes;
  bool apart;  // values have their own room; where the head is too long for that, they take the keys' when the scores are done
};

struct PageMemory {
  unsigned char* base;
  PageRoom room;
  __device__ float* q(int query) const { return reinterpret_cast<float*>(base + query * room.q_stride); }
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

__device__ __forceinline__ void unpack(const float*, uint4 line, float (&to)[4]) {
  to[0] = float_from_bits(line.x), to[1] = float_from_bits(line.y), to[2] = float_from_bits(line.z), to[3] = float_from_bits(line.w);
}
__device__ __forceinline__ void unpack_pair(uint32_t pair, float& low, float& high) {
  low = float_from_bits(pair << 16), high = float_from_bits(pair & 0xffff0000u);
}
__device__ __forceinline__ void unpack(const bf16*, uint4 line, float (&to)[8]) {
  unpack_pair(line.x, to[0], to[1]), unpack_pair(line.y, to[2], to[3]);
  unpack_pair(line.z, to[4], to[5]), unpack_pair(line.w, to[6], to[7]);
}
__device__ __forceinline__ void load_four(const float* at, float (&to)[4]) { unpack(at, *reinterpret_cast<const uint4*>(at), to); }
__device__ __forceinline__ void load_four(const bf16* at, float (&to)[4]) {
  const uint2 pairs = *reinterpret_cast<const uint2*>(at);
  unpack_pair(pairs.x, to[0], to[1]), unpack_pair(pairs.y, to[2], to[3]);
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

// The same for rows that are not whole lines: element by element, and zeros up to the line's end, which scores run over.
template <int P, class T>
__device__ __forceinline__ void load_elements(const T* const (&from)[P], unsigned char* const (&to)[P], int rows, int head_dim,
                                              int stride) {
  const int width = lines_of(head_dim * int(sizeof(T))) * 16 / int(sizeof(T));
  for (int p = 0; p < P; ++p)
    for (int at = int(threadIdx.x); at < rows * width; at += kPageThreads) {
      const int row = at / width, i = at % width;
      reinterpret_cast<T*>(to[p] + row * stride)[i] = i < head_dim ? from[p][row * head_dim + i] : T(0);
    }
}

template <int P, class T>
__device__ __forceinline__ void load_rows(const T* const (&from)[P], unsigned char* const (&to)[P], int rows, int head_dim, int stride) {
  if (head_dim * int(sizeof(T)) % 16) return load_elements(from, to, rows, head_dim, stride);
  const uint4* lines[P];
  for (int p = 0; p < P; ++p) lines[p] = reinterpret_cast<const uint4*>(from[p]);
  load_lines<P>(lines, to, rows, lines_of(head_dim * int(sizeof(T))), stride);
}

// Scores, not scaled yet. A thread holds Q queries, 2 P apart, times P positions, 64 / P apart: up to 2 P Q queries in all.
template <class T, int Q, int P>
__device__ __forceinline__ void score_tile(const PageMemory& memory, int queries, int longest, int lines) {
  constexpr int kPositionLanes = kPagePositions / P, kQueryLanes = kPageThreads / kPositionLanes, kPerLine = 16 / int(sizeof(T));
  const int place = int(threadIdx.x) % kPositionLanes, first = int(threadIdx.x) / kPositionLanes;
  if (first >= queries || place >= longest) return;
  const float* q[Q];
  const unsigned char* keys[P];
  float sum[Q][P] = {};
  for (int i = 0; i < Q; ++i) q[i] = memory.q(first + i * kQueryLanes < queries ? first + i * kQueryLanes : first);
  for (int p = 0; p < P; ++p) keys[p] = memory.key(place + p * kPositionLanes);
  for (int line = 0; line < lines; ++line) {
    float key[P][kPerLine];
    for (int p = 0; p < P; ++p) unpack(static_cast<const T*>(nullptr), reinterpret_cast<const uint4*>(keys[p])[line], key[p]);
    PACELINE_UNROLL
    for (int i = 0; i < Q; ++i) {
      PACELINE_UNROLL
      for (int four = 0; four < kPerLine; four += 4) {
        const float4 part = *reinterpret_cast<const float4*>(q[i] + line * kPerLine + four);
        for (int p = 0; p < P; ++p) {
          sum[i][p] = fmaf(part.x, key[p][four], sum[i][p]);
          sum[i][p] = fmaf(part.y, key[p][four + 1], sum[i][p]);
          sum[i][p] = fmaf(part.z, key[p][four + 2], sum[i][p]);
          sum[i][p] = fmaf(part.w, key[p][four + 3], sum[i][p]);
        }
      }
    }
  }
  for (int i = 0; i < Q; ++i)
    for (int p = 0; p < P; ++p)
      if (first + i * kQueryLanes < queries) memory.scores(first + i * kQueryLanes)[place + p * kPositionLanes] = sum[i][p];
}

template <class T, bool IsFew>
__device__ __forceinline__ void score(const PageMemory& memory, int queries, int longest, int head_dim) {
  const int lines = lines_of(head_dim * int(sizeof(T)));
  if (queries <= 2) score_tile<T, 1, 1>(memory, queries, longest, lines);
  else if (queries <= 4) score_tile<T, 2, 1>(memory, queries, longest, lines);
  else if (IsFew || queries <= 8) score_tile<T, 4, 1>(memory, queries, longest, lines);
  else if constexpr (!IsFew) {
    if (queries <= 16) score_tile<T, 2, 4>(memory, queries, longest, lines);
    else if (queries <= 24) score_tile<T, 3, 4>(memory, queries, longest, lines);
    else score_tile<T, 4, 4>(memory, queries, longest, lines);
  }
}

// Scores become weights, in place; maximum and sum of each query that sees something of the page. One warp per query.
__device__ __forceinline__ void soften(const PageMemory& memory, int queries, int first_position, float scale) {
  for (int query = warp_of(); query < queries; query += kPageThreads / kWarp) {
    const int visible = visible_of(memory.position()[query], first_position), low = lane_of(), high = lane_of() + kWarp;
    if (visible == 0) continue;
    float* scores = memory.scores(query);
    const float a = low < visible ? scores[low] * scale : -INFINITY, b = high < visible ? scores[high] * scale : -INFINITY;
    const float maximum = reduce_warp(fmaxf(a, b), [](float x, float y) { return fmaxf(x, y); });
    const float a_weight = low < visible ? exp2_of(a - maximum) : 0.0f, b_weight = high < visible ? exp2_of(b - maximum) : 0.0f;
    const float sum = reduce_warp(a_weight + b_weight, [](float x, float y) { return x + y; });
    scores[low] = a_weight, scores[high] = b_weight;
    if (low == 0) memory.maximum()[query] = maximum, memory.sum()[query] = sum;
  }
}

// Four columns of N queries. Positions below `common` are visible to all queries of the block, those from `longest` on to none.
template <class T, int N>
__device__ __forceinline__ void weigh(const PageMemory& memory, const int (&query)[N], const int (&visible)[N], int column, int common,
                                      int longest, float (&out)[N][4]) {
  float value[4][4];
  int j = 0;
  for (; j + 4 <= common; j += 4) {
    for (int k = 0; k < 4; ++k) load_four(reinterpret_cast<const T*>(memory.value(j + k)) + column, value[k]);
    PACELINE_UNROLL
    for (int i = 0; i < N; ++i) {
      const float4 weight = *reinterpret_cast<const float4*>(memory.scores(query[i]) + j);
      for (int c = 0; c < 4; ++c) {
        out[i][c] = fmaf(weight.x, value[0][c], out[i][c]);
        out[i][c] = fmaf(weight.y, value[1][c], out[i][c]);
        out[i][c] = fmaf(weight.z, value[2][c], out[i][c]);
        out[i][c] = fmaf(weight.w, value[3][c], out[i][c]);
      }
    }
  }
  for (; j < longest; ++j) {
    load_four(reinterpret_cast<const T*>(memory.value(j)) + column, value[0]);
    PACELINE_UNROLL
    for (int i = 0; i < N; ++i) {
      const float weight = memory.scores(query[i])[j];
      for (int c = 0; c < 4; ++c) out[i][c] = j < visible[i] ? fmaf(weight, value[0][c], out[i][c]) : out[i][c];
    }
  }
}

}  // namespace paceline::cuda
