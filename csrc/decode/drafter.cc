#include "decode/drafter.h"

#include "decode/chain_drafter.h"

namespace paceline {

const char* name_of(DrafterKind kind) {
  switch (kind) {
    case DrafterKind::model: return "model";
    case DrafterKind::ngram: return "ngram";
    case DrafterKind::chain: return "chain";
  }
  return "?";
}

std::unique_ptr<Drafter> make_drafter(DrafterKind kind, Backend& backend, const Drafter::Limits& limits) {
  switch (kind) {
    case DrafterKind::ngram: return std::make_unique<NgramDrafter>(backend, limits);
    case DrafterKind::chain: return std::make_unique<ChainDrafter>(backend, limits);
    case DrafterKind::model: break;
  }
  return std::make_unique<Drafter>();
}

}  // namespace paceline
