// The forward kernels of one instruction level, as plain functions over raw pointers. cpu_backend.cc splits the work and
// calls them; each level has its own table, chosen once at run time.
//
// Weights   blocks of sixteen outputs, in lines of 64 bytes, padded with zeros:
//             fp32  [K][16]                       bf16  [K/2][16][2]
//             int8  16 fp32 scales, then [K/4][16][4], values + 128
//             int4  for each two groups of G: [2][16] bf16 scales, then [2 G/8][16][4] bytes; byte j of an output holds values
//                   j (low half) and 4 + j of eight along K, + 8
// Inputs    rows packed for the matrix, in lines along K: [lines][rows][line], so that one pointer serves all rows of a tile. A line
//           is 64 bytes of fp32 values, or of values rounded to bf16 (stored as bf16 where the level multiplies it, else as
//           fp32); for integer weights it is the bytes of a group, and [groups][rows] RowGroup follow behind all lines.
// KV page   of one KV head: keys transposed, [Dh][64] fp32 or [Dh/2][64][2] bf16, so that sixteen positions are one vector and
//           scores need no horizontal sums; values [64][Dh] fp32 or [32][Dh][2] bf16, pairs of positions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace paceline::cpu {

// Groups of integer weights along K, padded to an even number.
constexpr int groups_of(int k, int group) { return (k + 2 * group - 1) / (2 * group) * 2; }

struct Matrix {
  const void* data;
  int num_blocks, k;  // outputs / 16, inputs
  DType dtype;
  size_t block_bytes() const {
    switch (dtype) {
      case DType::bf16: return size_t(k + 1) / 2 * 64;
      case DType::int8: return (1 + size_t(groups_of(k, group_of(dtype))) * group_of(dtype) / 4) * 64;
      case DType::int4: case DType::int4_g32: return size_t(groups_of(k, group_of(dtype))) / 2 * (1 + group_of(dtype) / 4) * 64;
      default: return size_t(k) * 64;
    }
  }
};

struct RowGroup {
  float scale;         // for int4 that of the row
  int32_t correction;  // the sum of its values, times minus the weights' offset
};

// Where packed rows are, from one of them on: its first line and its first group; the next ones of the same row are `rows` further.
struct PackedRows {
  const char* line;
  const RowGroup* group;
  int rows;
};

// What happens to the sixteen sums of (row, block) when K is done.
struct Epilogue {
  enum Kind { write, add, gate } kind;
  float* out;         // [rows of the pass, stride]
  int stride, n;      // n columns exist
  const float* bias;  // [padded columns] or nullptr; not for gate
};

constexpr int kLongestHead = 256;  // largest head_dim
constexpr int kGroupPages = 8;     // pages per inner node of the attention tree
constexpr int kTaskQueries = 32;   // queries that share one sweep over pages

// Query rows of one sequence against its pages, for heads that share one KV head: rows * heads <= kTaskQueries.
struct AttentionTask {
  const float* q;          // first row's first head: [rows][stride], heads of Dh each
  float* out;              // likewise
  int stride, out_stride;  // floats between rows
  int rows, heads, head_dim;
  const int32_t* position; // [rows]
  const int32_t* pages;    // the slot's page table
  const char *keys, *values;  // layer planes, offset to this KV head
  size_t page_bytes;       // from page to page, of keys and of values
  DType dtype;
};

// Softmax over some positions: maximum score, sum of 2^(score - maximum), and the values weighted by the same. sum == 0: empty.
struct AttentionState {
  float maximum, sum;
  float out[kLongestHead];
};

struct Kernels {
  const char* name;
  // Bytes that one of the packed rows takes.
  size_t (*packed_row_bytes)(int k, DType dtype);
  // Pack x [k] as row `row` of `rows` for a matrix; norm != nullptr: RMSNorm(x) * norm first.
  void (*pack)(const float* x, int k, const float* norm, float eps, DType dtype, char* packed, int row, int rows);
  // Blocks [begin, end) of the product with all packed rows. For gate, begin and end are even.
  void (*linear)(const Matrix& w, const char* packed, int rows, int begin, int end, const Epilogue& to);
  void (*embed)(const Matrix& table, int token, int d, float* out);
  // RMSNorm over a head when norm != nullptr, then rotate pairs (i, i + Dh/2). In place.
  void (*norm_rope)(float* head, int head_dim, const float* norm, float eps, const float* cosines, const float* sines);
  void (*write_kv)(const float* k, const float* v, int head_dim, int offset, DType dtype, char* keys, char* values);
  // The whole of a task; or, where there are fewer tasks than threads, its page groups one by one into states [rows * heads],
  // merged in ascending order into totals (which start empty), and finished. The same bits either way.
  void (*attention)(const AttentionTask& task);
  void (*attention_group)(const AttentionTask& task, int group, AttentionState* states);
  void (*attention_merge)(const AttentionTask& task, const AttentionState* states, AttentionState* totals);
  void (*attention_finish)(const AttentionTask& task, const AttentionState* totals);
};

namespace avx2 { const Kernels& kernels(); }
namespace avx512 { const Kernels& kernels(); }
namespace avx512_bf16 { const Kernels& kernels(); }

}  // namespace paceline::cpu

#ifdef PACELINE_ISA
// The functions of the level being compiled; table.cc puts them in its table.
namespace paceline::cpu::PACELINE_ISA {
float inverse_rms(const float* x, int n, float eps);  // 1 / sqrt(mean(x^2) + eps)
size_t packed_row_bytes(int k, DType dtype);
void pack(const float* x, int k, const float* norm, float eps, DType dtype, char* packed, int row, int rows);
int packed_lines(int k, DType dtype);
void linear(const Matrix& w, const char* packed, int rows, int begin, int end, const Epilogue& to);
void embed(const Matrix& table, int token, int d, float* out);
void norm_rope(float* head, int head_dim, const float* norm, float eps, const float* cosines, const float* sines);
void write_kv(const float* k, const float* v, int head_dim, int offset, DType dtype, char* keys, char* values);
void attention(const AttentionTask& task);
void attention_group(const AttentionTask& task, int group, AttentionState* states);
void attention_merge(const AttentionTask& task, const AttentionState* states, AttentionState* totals);
void attention_finish(const AttentionTask& task, const AttentionState* totals);
}  // namespace paceline::cpu::PACELINE_ISA
#endif
