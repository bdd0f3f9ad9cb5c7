#include "backend/cpu/shared_pool.h"

#include <map>
#include <mutex>

#include "backend/cpu/forks.h"

namespace paceline::cpu {
namespace {

struct Registry {
  uint32_t born = num_forks();
  std::mutex mutex;
  std::map<int, std::weak_ptr<ThreadPool>> pools;  // by number of threads; some have gone
};

// Never destroyed: engines may outlive every static object. A forked child starts with one of its own: the workers of the parent's pools
// are not there, and its mutex may be held by a thread that is not there either.
Registry& registry() {
  static std::atomic<Registry*> current{nullptr};
  Registry* found = current.load(std::memory_order_acquire);
  if (found && found->born == num_forks()) return *found;
  auto* fresh = new Registry;
  if (current.compare_exchange_strong(found, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;
  return *found;
}

}  // namespace

std::shared_ptr<ThreadPool> shared_pool(int num_threads) {
  watch_forks();
  const int count = num_threads > 0 ? num_threads : ThreadPool::usable_threads();
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  std::weak_ptr<ThreadPool>& known = all.pools[count];
  if (auto pool = known.lock()) return pool;
  std::shared_ptr<ThreadPool> pool(new ThreadPool(count));  // apart from its counts, which `known` keeps
  known = pool;
  return pool;
}

}  // namespace paceline::cpu
