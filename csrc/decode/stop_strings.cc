#include "decode/stop_strings.h"

#include <algorithm>

namespace paceline {

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) longest_ = std::max(longest_, stop.size());
  tail_.reserve(longest_ + 64);
}

const std::string* StopStrings::feed(const std::string& bytes) {
  if (stops_.empty()) return nullptr;
  tail_ += bytes;
  const std::string* found = nullptr;
  size_t found_end = 0;
  for (const std::string& stop : stops_) {
    const size_t at = tail_.find(stop);
    if (at == std::string::npos) continue;
    const size_t end = at + stop.size();
    if (!found || end < found_end || (end == found_end && stop.size() > found->size())) found = &stop, found_end = end;
  }
  if (tail_.size() >= longest_) tail_.erase(0, tail_.size() - (longest_ - 1));
  return found;
}

}  // namespace paceline
