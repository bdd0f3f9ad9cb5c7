// The kernels of one instruction level.
#include "backend/cpu/kernels/kernels.h"

#define PACELINE_TEXT_OF(name) #name
#define PACELINE_TEXT(name) PACELINE_TEXT_OF(name)

namespace paceline::cpu::PACELINE_ISA {

const Kernels& kernels() {
  static constexpr Kernels table{PACELINE_TEXT(PACELINE_ISA), packed_row_bytes, pack, linear, embed, norm_rope, write_kv,
                                 attention, attention_group, attention_merge, attention_finish};
  return table;
}

}  // namespace paceline::cpu::PACELINE_ISA
