#include "backend/cuda/nvtx.h"

namespace paceline::cuda {

Nvtx::Nvtx() : domain_(nvtxDomainCreateA("paceline")) {
  for (int span = 0; span < kNumSpans; ++span) names_[span] = nvtxDomainRegisterStringA(domain_, name_of(Span(span)));
}

Nvtx::~Nvtx() { nvtxDomainDestroy(domain_); }

nvtxEventAttributes_t Nvtx::event(Span span, int64_t payload) const {
  nvtxEventAttributes_t attributes{};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.messageType = NVTX_MESSAGE_TYPE_REGISTERED;
  attributes.message.registered = names_[int(span)];
  attributes.payloadType = NVTX_PAYLOAD_TYPE_INT64;
  attributes.payload.llValue = payload;
  return attributes;
}

void Nvtx::begin(Span span, int64_t payload) {
  const nvtxEventAttributes_t attributes = event(span, payload);
  nvtxDomainRangePushEx(domain_, &attributes);
}

void Nvtx::end() { nvtxDomainRangePop(domain_); }

void Nvtx::mark(Span span, int64_t payload) {
  const nvtxEventAttributes_t attributes = event(span, payload);
  nvtxDomainMarkEx(domain_, &attributes);
}

}  // namespace paceline::cuda
