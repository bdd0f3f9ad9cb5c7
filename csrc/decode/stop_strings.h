// Stop strings, matched on bytes as tokens arrive.
#pragma once

#include <string>
#include <vector>

namespace paceline {

class StopStrings {
 public:
  StopStrings() = default;
  explicit StopStrings(std::vector<std::string> stops);

  // Take in one token's bytes. Returns the stop string that is complete now (the one that ends first, the longest among
  // those), or nullptr.
  const std::string* feed(const std::string& bytes);

 private:
  std::vector<std::string> stops_;
  size_t longest_ = 0;
  std::string tail_;  // the last longest - 1 bytes seen: no match can start before them
};

}  // namespace paceline
