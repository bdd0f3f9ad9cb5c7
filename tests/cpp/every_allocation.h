// The loop of SQLite's tests: a scenario runs again and again, and the n-th allocation in it fails, n = 1, 2, ... to the end, once alone
// and once with all that follow. Whatever drives an engine can be a scenario. PACELINE_ALLOCATION_STRIDE=1 takes every n; by default a
// few, other ones for each of the two ways.
#pragma once

#include <cstdlib>
#include <functional>

#include "cpp/allocations.h"
#include "cpp/test.h"

namespace paceline::test {

struct FailureRun {
  long n;
  bool for_good;     // all after the n-th fail as well
  std::string said;  // what the scenario threw; "" where it came through
};

// scenario(run) builds, uses and drops what is tested. It must throw nothing but std::bad_alloc, CapacityError and EngineDead, and leave
// no allocation behind. afterwards(run) is called with all memory back. Returns the number of runs in which something failed.
inline long fail_every_allocation(const std::function<void(const FailureRun&)>& scenario, const std::function<void(const FailureRun&)>& afterwards) {
  const char* given = std::getenv("PACELINE_ALLOCATION_STRIDE");
  const long stride = given ? std::max(1, std::atoi(given)) : 11;
  for (long n : {-1, 0}) scenario({n, false, ""});  // what is made once for the process
  long runs = 0;
  for (bool for_good : {false, true}) {
    for (long n = for_good ? 1 + stride / 2 : 1;; n += stride) {
      FailureRun run{n, for_good, ""};
      run.said.reserve(500);
      const long before = Allocations::live();
      Allocations::arm(n, for_good);
      try {
        scenario(run);
        Allocations::disarm();
      } catch (const std::bad_alloc& error) {
        Allocations::disarm();
        run.said = error.what();
      } catch (const CapacityError& error) {
        Allocations::disarm();
        run.said = error.what();
      } catch (const EngineDead& error) {
        Allocations::disarm();
        run.said = error.what();
      } catch (const std::exception& error) {
        Allocations::disarm();
        CHECK(false, "allocation ", n, for_good ? " and all after it" : "", ": ", typeid(error).name(), ": ", error.what());
      }
      CHECK(Allocations::live() == before, "allocation ", n, for_good ? " and all after it" : "", ": ", Allocations::live() - before, " left behind; ", run.said);
      if (Allocations::disarm() == 0) break;  // the scenario has fewer
      ++runs;
      afterwards(run);
    }
  }
  return runs;
}

}  // namespace paceline::test
