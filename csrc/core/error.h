// The errors the engine throws, and how their messages are put together.
//
// A caller's mistake is std::invalid_argument with the public name first: "[generate] top_p must be in (0, 1], got 1.5".
// Everything else is one of the types below (RuntimeError in Python). Nothing aborts, exits or prints.
#pragma once

#include <charconv>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace paceline {

// A checkpoint that cannot be loaded. Names the tensor, what was expected and what was found.
struct ModelFileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// No room now: fewer or shorter requests, or a larger cache, would fit. Names the parameter to raise.
struct CapacityError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A reached row of logits holds NaN or infinity, or has no token left to choose. Ends one sequence.
struct NumericError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The device, its driver or a library of its maker refused or failed. Names the call and its answer.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The engine cannot go on. Carries the first cause.
struct EngineDead : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class Part>
void say(std::ostringstream& text, const Part& part) {
  if constexpr (std::is_floating_point_v<Part>) {
    char digits[32];  // as many as tell it from every other: 1.0000001 is not 1
    text << std::string_view(digits, size_t(std::to_chars(digits, digits + sizeof digits, part).ptr - digits));
  } else {
    text << part;
  }
}

// message("[generate] top_p must be in (0, 1], got ", p)
template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream text;
  (say(text, parts), ...);
  return text.str();
}

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw std::invalid_argument(message(parts...));
}

}  // namespace paceline
