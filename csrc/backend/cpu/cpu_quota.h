// What control groups leave this process of the machine's cores.
#pragma once

#include <string>

namespace paceline::cpu {

// Cores, rounded up, by the least quota of this process's groups and those that they are in, of both versions; 0 = there is none. The
// roots are other directories in tests.
int cpu_quota(const std::string& process = "/proc/self", const std::string& groups = "/sys/fs/cgroup");

}  // namespace paceline::cpu
