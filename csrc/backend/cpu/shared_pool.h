// One pool for all engines of a process that compute with as many threads: pools of their own would fight for the same cores.
#pragma once

#include <memory>

#include "backend/cpu/thread_pool.h"

namespace paceline::cpu {

// The pool of that many threads; 0 = as many as this process may use. It goes with the last who has it.
std::shared_ptr<ThreadPool> shared_pool(int num_threads);

}  // namespace paceline::cpu
