// The boundary to a backend that comes as a library of its own (CUDA's): a table of C functions with a version number. No exception and
// no type of the standard library crosses it; what crosses are the plain structs of backend.h and opaque pointers.
//
// Functions that can fail return a PluginStatus; last_error() then says what happened, to the thread that asked.
#pragma once

#include <initializer_list>

#include "backend/backend.h"

namespace paceline {

// What both sides must agree on: sizes, so that a changed table or struct shows by itself, and a number for changes that no size shows.
constexpr uint32_t abi_of(uint32_t number, std::initializer_list<size_t> sizes) {
  for (size_t size : sizes) number = number * 31 + uint32_t(size);
  return number;
}
constexpr const char* kPluginEntry = "paceline_backend_plugin";

enum PluginStatus : int32_t { kPluginOk = 0, kPluginInvalid = 1, kPluginCapacity = 2, kPluginDevice = 3 };

struct BackendPlugin {
  using Status = int32_t;
  const char* (*last_error)();

  Status (*create)(int32_t device, void** backend);
  void (*destroy)(void* backend);
  const char* (*description)(void* backend);

  Status (*allocate)(void* backend, int32_t shared, size_t bytes, void** buffer, void** data);
  void (*release)(void* buffer);
  Status (*upload)(void* backend, void* device, const void* host, size_t bytes);
  Status (*download)(void* backend, void* host, const void* device, size_t bytes);
  Status (*synchronize)(void* backend);
  int32_t (*cycles_in_flight)(void* backend);
  Status (*free_bytes)(void* backend, size_t* bytes);
  size_t (*scratch_bytes)(void* backend);
  Status (*dry)(void* backend, void** dry);
  // line returns something else than 0 when it failed; the capture is then dropped.
  Status (*capture)(void* backend, int32_t (*line)(void* context), void* context, void** graph);
  Status (*launch)(void* graph);
  void (*drop_graph)(void* graph);

  Status (*matrix_bytes)(void* backend, int32_t num_blocks, int32_t k, DType dtype, size_t* bytes);
  Status (*matrix_in)(void* backend, void* data, size_t bytes, int32_t num_blocks, int32_t k, DType dtype, void** matrix);
  void (*drop_matrix)(void* matrix);
  Status (*pack_weights)(void* backend, void* matrix, const char* name, DType dtype, int64_t n, int64_t k, const void* data,
                         int32_t first_block, int32_t block_stride);

  Status (*embed)(void* backend, const Rows*, const void* table, int32_t d, float* x);
  Status (*norm_qkv_rope_write)(void* backend, const Rows*, const float* x, int32_t d, const QkvWeights* /* its matrix: of matrix_in */,
                                const AttentionShape*, const KvLayer*, float* qkv);
  Status (*attention)(void* backend, const Rows*, const float* qkv, const AttentionShape*, const KvLayer*, float* out);
  Status (*linear_residual)(void* backend, const Rows*, const float* in, int32_t k, const void* matrix, const float* bias, float* x, int32_t d);
  Status (*norm_gate_up)(void* backend, const Rows*, const float* x, int32_t d, const float* norm, float eps, const void* matrix, int32_t f,
                         float* out);
  Status (*norm_head)(void* backend, const Rows*, const float* x, int32_t d, const float* norm, float eps, const void* matrix, int32_t v,
                      float* logits);
  Status (*log_softmax)(void* backend, const Rows*, const float* logits, int32_t v, float* out);

  Status (*prepare_attention)(void* backend, int32_t rows, int32_t pages_per_slot, const AttentionShape*);
  Status (*prepare_sampling)(void* backend, int32_t num_slots, int32_t tau_max, Acceptance, int32_t vocab_size);
  Status (*begin_cycle)(void* backend, const CycleState*);
  Status (*plan_draft)(void* backend, const CycleState*, int32_t step, const Rows*);
  Status (*sample_draft)(void* backend, const CycleState*, int32_t step);
  Status (*plan_verify)(void* backend, const CycleState*, const Rows*);
  Status (*accept)(void* backend, const CycleState*, const float* logits, int32_t vocab_size, const CycleResults*);
  Status (*record_catch_up)(void* backend, const CycleState*, const CycleEvidence*);
  Status (*record_cycle)(void* backend, const CycleState*, const Rows*, const float* logits, int32_t vocab_size, const CycleResults*,
                         const CycleEvidence*);
  Status (*timestamp)(void* backend, int64_t* nanoseconds);
  Status (*count_up)(void* backend, int64_t* counter);
  Status (*wait_for)(void* backend, const int64_t* counter, int64_t value);
  Status (*copy_pages)(void* backend, const KvLayer*, const AttentionShape*, const int32_t* from, const int32_t* to, int32_t count);
  void (*begin_span)(void* backend, Span, int64_t payload);
  void (*end_span)(void* backend);
  void (*mark)(void* backend, Span, int64_t payload);
  Status (*profile)(void* backend, int32_t on);
  Status (*hash_kv)(void* backend, const KvLayer*, const AttentionShape*, int32_t slot, int32_t position, uint64_t* hash);
};

constexpr uint32_t kPluginAbi = abi_of(5, {sizeof(BackendPlugin), sizeof(Rows), sizeof(KvLayer), sizeof(AttentionShape), sizeof(QkvWeights),
                                           sizeof(CycleState), sizeof(CycleResult), sizeof(CycleResults), sizeof(CycleEvidence),
                                           sizeof(SlotParams)});

// What a library exports under kPluginEntry: its table, or nullptr when it was made for another abi.
using BackendPluginEntry = const BackendPlugin* (*)(uint32_t abi);

// The backend behind a table that is there for good.
std::unique_ptr<Backend> make_plugin_backend(const BackendPlugin& plugin, int device);

}  // namespace paceline
