#include "backend/cpu/cpu_quota.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

namespace paceline::cpu {
namespace {

// "QUOTA PERIOD" of version 2, where "max" is none; of version 1 a file for each, where -1 is none.
double cores_of(const std::string& group, bool unified) {
  std::ifstream first(group + (unified ? "/cpu.max" : "/cpu.cfs_quota_us")), second(group + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  if (!(first >> quota) || !((unified ? first : second) >> period) || quota <= 0 || period <= 0) return 0;
  return quota / period;
}

bool names_cpu(const std::string& controllers) {
  std::istringstream all(controllers);
  for (std::string each; std::getline(all, each, ',');)
    if (each == "cpu") return true;
  return false;
}

}  // namespace

// Lines are hierarchy:controllers:path. In a container its own group is often the root of what can be seen, whatever its path says outside.
int cpu_quota(const std::string& process, const std::string& groups) {
  std::ifstream lines(process + "/cgroup");
  double least = 0;
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool unified = controllers.empty();
    if (!unified && !names_cpu(controllers)) continue;
    const std::string root = unified ? groups : groups + "/cpu";
    for (std::string path = line.substr(second + 1);; path.resize(path.find_last_of('/'))) {
      while (!path.empty() && path.back() == '/') path.pop_back();
      const double cores = cores_of(root + path, unified);
      if (cores > 0) least = least > 0 ? std::min(least, cores) : cores;
      if (path.find('/') == std::string::npos) break;
    }
  }
  return int(std::ceil(least));
}

}  // namespace paceline::cpu
