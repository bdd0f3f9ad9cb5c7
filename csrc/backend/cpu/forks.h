// Which process this is, as a number of forks: threads and held locks of another one are not here. Far cheaper than asking for its id.
#pragma once

#include <cstdint>

namespace paceline::cpu {

// Counts from the first call of watch_forks on.
uint32_t num_forks();
// Throws std::bad_alloc where it cannot.
void watch_forks();

}  // namespace paceline::cpu
