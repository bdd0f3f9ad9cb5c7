// Test-only: what a profiler would hear. NVTX loads this library when $NVTX_INJECTION64_PATH names it; at exit it writes one line per
// range or mark, in order, to $NVTX_RECORD: its kind, domain, name and number.
#include <nvtx3/nvToolsExt.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <string>

namespace {

std::deque<std::string>& texts() {
  static auto* the = new std::deque<std::string>;
  return *the;
}
const char* kept(const char* text) { return texts().emplace_back(text).c_str(); }

std::FILE* record() {
  static std::FILE* file = [] {
    const char* path = std::getenv("NVTX_RECORD");
    return path ? std::fopen(path, "w") : nullptr;
  }();
  return file;
}

void write(const char* kind, nvtxDomainHandle_t domain, const nvtxEventAttributes_t* event) {
  if (!record()) return;
  const bool registered = event->messageType == NVTX_MESSAGE_TYPE_REGISTERED;
  std::fprintf(record(), "%s %s %s %lld\n", kind, reinterpret_cast<const char*>(domain),
               registered ? reinterpret_cast<const char*>(event->message.registered) : "unregistered", static_cast<long long>(event->payload.llValue));
  std::fflush(record());
}

nvtxDomainHandle_t NVTX_API create(const char* name) { return reinterpret_cast<nvtxDomainHandle_t>(const_cast<char*>(kept(name))); }
nvtxStringHandle_t NVTX_API register_string(nvtxDomainHandle_t, const char* text) { return reinterpret_cast<nvtxStringHandle_t>(const_cast<char*>(kept(text))); }
int NVTX_API push(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* event) { return write("begin", domain, event), 0; }
int NVTX_API pop(nvtxDomainHandle_t domain) {
  if (record()) std::fprintf(record(), "end %s\n", reinterpret_cast<const char*>(domain)), std::fflush(record());
  return 0;
}
void NVTX_API mark(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* event) { write("mark", domain, event); }

}  // namespace

extern "C" __attribute__((visibility("default"))) int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table) {
  const auto* callbacks = static_cast<const NvtxExportTableCallbacks*>(get_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned size = 0;
  if (!callbacks || !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size)) return 0;
  const auto set = [&](int id, auto function) { *table[id] = reinterpret_cast<NvtxFunctionPointer>(function); };
  set(NVTX_CBID_CORE2_DomainCreateA, create);
  set(NVTX_CBID_CORE2_DomainRegisterStringA, register_string);
  set(NVTX_CBID_CORE2_DomainRangePushEx, push);
  set(NVTX_CBID_CORE2_DomainRangePop, pop);
  set(NVTX_CBID_CORE2_DomainMarkEx, mark);
  return 1;
}
