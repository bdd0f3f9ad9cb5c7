// The plugin's side of the boundary: the table of plugin.h over a CudaBackend. Exceptions become a status and a text; whatever touches
// the device runs with its context current, and leaves the caller's.
#include "backend/plugin.h"

#include <cstring>
#include <new>

#include "backend/cuda/context.h"
#include "backend/cuda/cuda_backend.h"

namespace paceline::cuda {
namespace {

using Status = BackendPlugin::Status;

// A place that is there already: a failure may be one of memory.
thread_local char last_error[1024];

Status failed(Status status, const char* what) {
  std::strncpy(last_error, what, sizeof last_error - 1);
  return status;
}

template <class Body>
Status guarded(Body body) noexcept {
  try {
    body();
    return kPluginOk;
  } catch (const std::invalid_argument& error) {
    return failed(kPluginInvalid, error.what());
  } catch (const CapacityError& error) {
    return failed(kPluginCapacity, error.what());
  } catch (const std::bad_alloc& error) {
    return failed(kPluginCapacity, error.what());
  } catch (const std::exception& error) {
    return failed(kPluginDevice, error.what());
  } catch (...) {
    return failed(kPluginDevice, "[cuda] an unknown exception");
  }
}

// What the core holds by a handle, and the context it lives in.
template <class T>
struct Held {
  Context context;
  std::unique_ptr<T> object;
};
template <class T>
Held<T>& held(void* handle) { return *static_cast<Held<T>*>(handle); }
template <class T>
void drop(void* handle) {
  guarded([&] {
    const std::unique_ptr<Held<T>> dropped(&held<T>(handle));
    const ContextScope scope(dropped->context);
    dropped->object.reset();
  });
}

CudaBackend& at(void* backend) { return *held<CudaBackend>(backend).object; }
// body(the backend), on its device.
template <class Body>
Status on_device(void* backend, Body body) noexcept {
  return guarded([&] {
    const ContextScope scope(held<CudaBackend>(backend).context);
    body(at(backend));
  });
}

PackedMatrix& matrix(void* handle) { return *static_cast<PackedMatrix*>(handle); }
const PackedMatrix& matrix(const void* handle) { return *static_cast<const PackedMatrix*>(handle); }

// A member of CudaBackend as a function of the table: arguments that are structs come by pointer.
template <class T>
struct Crossing {
  using Type = T;
  static T back(T value) { return value; }
};
template <class T>
struct Crossing<const T&> {
  using Type = const T*;
  static const T& back(const T* value) { return *value; }
};
template <>
struct Crossing<const PackedMatrix&> {
  using Type = const void*;
  static const PackedMatrix& back(const void* value) { return matrix(value); }
};

template <auto Member>
struct Forward;
template <class... Parameters, void (CudaBackend::*Member)(Parameters...)>
struct Forward<Member> {
  static Status call(void* backend, typename Crossing<Parameters>::Type... arguments) {
    return on_device(backend, [&](CudaBackend& self) { (self.*Member)(Crossing<Parameters>::back(arguments)...); });
  }
};
template <auto Member>
constexpr auto forward = &Forward<Member>::call;

Status create(int32_t device, void** backend) {
  return guarded([&] {
    const ContextScope before(current_context());  // the backend makes its own current
    auto made = std::make_unique<CudaBackend>(device);
    *backend = new Held<CudaBackend>{current_context(), std::move(made)};
  });
}
Status allocate(void* backend, int32_t shared, size_t bytes, void** buffer, void** data) {
  return on_device(backend, [&](CudaBackend& self) {
    auto made = std::make_unique<Buffer>(shared ? self.allocate_shared(bytes) : self.allocate(bytes));
    *data = made->as<void>();
    *buffer = new Held<Buffer>{current_context(), std::move(made)};
  });
}
Status capture(void* backend, int32_t (*line)(void*), void* context, void** graph) {
  return on_device(backend, [&](CudaBackend& self) {
    auto made = self.capture([&] {
      if (line(context) != 0) throw DeviceError("[cuda] the line that was being captured failed");
    });
    *graph = new Held<Graph>{current_context(), std::move(made)};
  });
}
Status launch(void* graph) {
  return guarded([&] {
    const ContextScope scope(held<Graph>(graph).context);
    held<Graph>(graph).object->launch();
  });
}
Status free_bytes(void* backend, size_t* bytes) {
  return on_device(backend, [&](CudaBackend& self) { *bytes = self.free_bytes(); });
}
Status dry(void* backend, void** handle) {
  return guarded([&] { *handle = new Held<CudaBackend>{held<CudaBackend>(backend).context, at(backend).dry_backend()}; });
}
Status matrix_bytes(void* backend, int32_t num_blocks, int32_t k, DType dtype, size_t* bytes) {
  return guarded([&] { *bytes = at(backend).matrix_bytes(num_blocks, k, dtype); });
}
Status matrix_in(void* backend, void* data, size_t bytes, int32_t num_blocks, int32_t k, DType dtype, void** handle) {
  return on_device(backend, [&](CudaBackend& self) {
    *handle = self.matrix_in(Buffer(data, bytes, [](void*) {}), num_blocks, k, dtype).release();
  });
}
Status pack_weights(void* backend, void* handle, const char* name, DType dtype, int64_t n, int64_t k, const void* data, int32_t first_block,
                    int32_t block_stride) {
  return on_device(backend, [&](CudaBackend& self) {
    self.pack_weights(matrix(handle), {name, dtype, {n, k}, data}, first_block, block_stride);
  });
}
Status hash_kv(void* backend, const KvLayer* kv, const AttentionShape* shape, int32_t slot, int32_t position, uint64_t* hash) {
  return on_device(backend, [&](CudaBackend& self) { *hash = self.hash_kv(*kv, *shape, slot, position); });
}

const BackendPlugin kTable{
    .last_error = []() -> const char* { return last_error; },
    .create = create,
    .destroy = drop<CudaBackend>,
    .description = [](void* backend) {
      static thread_local std::string text;
      return (text = at(backend).description()).c_str();
    },
    .allocate = allocate,
    .release = drop<Buffer>,
    .upload = forward<&CudaBackend::upload>,
    .download = forward<&CudaBackend::download>,
    .synchronize = forward<&CudaBackend::synchronize>,
    .cycles_in_flight = [](void* backend) { return int32_t(at(backend).cycles_in_flight()); },
    .free_bytes = free_bytes,
    .scratch_bytes = [](void* backend) { return at(backend).scratch_bytes(); },
    .dry = dry,
    .capture = capture,
    .launch = launch,
    .drop_graph = drop<Graph>,
    .matrix_bytes = matrix_bytes,
    .matrix_in = matrix_in,
    .drop_matrix = [](void* handle) { delete &matrix(handle); },
    .pack_weights = pack_weights,
    .embed = forward<&CudaBackend::embed>,
    .norm_qkv_rope_write = forward<&CudaBackend::norm_qkv_rope_write>,
    .attention = forward<&CudaBackend::attention>,
    .linear_residual = forward<&CudaBackend::linear_residual>,
    .norm_gate_up = forward<&CudaBackend::norm_gate_up>,
    .norm_head = forward<&CudaBackend::norm_head>,
    .log_softmax = forward<&CudaBackend::log_softmax>,
    .prepare_attention = forward<&CudaBackend::prepare_attention>,
    .prepare_sampling = forward<&CudaBackend::prepare_sampling>,
    .begin_cycle = forward<&CudaBackend::begin_cycle>,
    .plan_draft = forward<&CudaBackend::plan_draft>,
    .sample_draft = forward<&CudaBackend::sample_draft>,
    .plan_verify = forward<&CudaBackend::plan_verify>,
    .accept = forward<&CudaBackend::accept>,
    .record_catch_up = forward<&CudaBackend::record_catch_up>,
    .record_cycle = forward<&CudaBackend::record_cycle>,
    .timestamp = forward<&CudaBackend::timestamp>,
    .count_up = forward<&CudaBackend::count_up>,
    .wait_for = forward<&CudaBackend::wait_for>,
    .copy_pages = forward<&CudaBackend::copy_pages>,
    .begin_span = [](void* backend, Span span, int64_t payload) { at(backend).begin_span(span, payload); },
    .end_span = [](void* backend) { at(backend).end_span(); },
    .mark = [](void* backend, Span span, int64_t payload) { at(backend).mark(span, payload); },
    .profile = [](void* backend, int32_t on) { return on_device(backend, [&](CudaBackend& self) { self.profile(on); }); },
    .hash_kv = hash_kv,
};

}  // namespace
}  // namespace paceline::cuda

extern "C" __attribute__((visibility("default"))) const paceline::BackendPlugin* paceline_backend_plugin(uint32_t abi) {
  return abi == paceline::kPluginAbi ? &paceline::cuda::kTable : nullptr;
}
