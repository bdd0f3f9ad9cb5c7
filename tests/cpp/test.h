// The C++ test runner: TEST(name) { CHECK(condition, parts to print...); }. Each test file is one program;
// `program [substring...]` runs the tests whose name holds one of the substrings. Exit status 1 if any failed.
#pragma once

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "core/error.h"

namespace paceline::test {

// Cycles that engines of these tests have under way: 0 = what the backend is best with. ctest runs the tests that decode once more
// with 2, as on a device.
inline int cycles_in_flight() {
  const char* given = std::getenv("PACELINE_TEST_IN_FLIGHT");
  return given ? std::atoi(given) : 0;
}

// Statistics draw their noise from here on. By default always the same; `make nightly` gives a fresh one, and it is printed.
inline uint64_t statistics_seed() {
  const char* given = std::getenv("PACELINE_TEST_SEED");
  return given ? std::strtoull(given, nullptr, 10) : 0;
}

// How many draws a statistic takes: PACELINE_LAW_N where it is set (mutants and sanitizers need fewer), else PACELINE_TEST_SCALE times
// what the test was sized for.
inline long statistics_size(long by_default) {
  if (const char* chosen = std::getenv("PACELINE_LAW_N")) return std::atol(chosen);
  const char* scale = std::getenv("PACELINE_TEST_SCALE");
  return scale ? long(double(by_default) * std::atof(scale)) : by_default;
}

// Ends the program where what follows takes longer: a loop inside a call cannot be stopped otherwise.
class Watchdog {
 public:
  explicit Watchdog(unsigned seconds) {
    std::signal(SIGALRM, [](int) {
      constexpr char kSaid[] = "FAIL  stuck: the watchdog's time is over\n";
      if (write(1, kSaid, sizeof kSaid - 1) < 0) _exit(2);
      _exit(1);
    });
    alarm(seconds);
  }
  ~Watchdog() { alarm(0); }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
};

struct Test {
  const char* name;
  std::function<void()> body;
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Failure : std::exception {
  std::string text;
  explicit Failure(std::string t) : text(std::move(t)) {}
  const char* what() const noexcept override { return text.c_str(); }
};

struct Registration {
  Registration(const char* name, std::function<void()> body) { tests().push_back({name, std::move(body)}); }
};

inline bool is_asked_for(const Test& test, int argc, char** argv) {
  for (int i = 1; i < argc; ++i)
    if (std::strstr(test.name, argv[i])) return true;
  return argc < 2;
}

inline int run(int argc, char** argv) {
  int failed = 0, passed = 0;
  if (statistics_seed()) std::printf("seed  %llu\n", static_cast<unsigned long long>(statistics_seed()));
  for (const Test& test : tests()) {
    if (!is_asked_for(test, argc, argv)) continue;
    try {
      test.body();
      ++passed;
      std::printf("ok    %s\n", test.name);
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAIL  %s: %s\n", test.name, error.what());
    }
    std::fflush(stdout);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed || !passed;
}

}  // namespace paceline::test

#define TEST(name)                                                           \
  static void test_##name();                                                 \
  static ::paceline::test::Registration registration_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition, ...)                                                                                    \
  do {                                                                                                           \
    if (!(condition))                                                                                            \
      throw ::paceline::test::Failure(::paceline::message(__FILE__, ":", __LINE__, ": ", #condition, "  ", ##__VA_ARGS__)); \
  } while (0)

// Passes iff `statement` throws Type with `part` in its message.
#define CHECK_THROWS(statement, Type, part)                                                                      \
  do {                                                                                                           \
    std::string said = "nothing thrown";                                                                         \
    try {                                                                                                        \
      statement;                                                                                                 \
    } catch (const Type& error) {                                                                                \
      said = error.what();                                                                                       \
    }                                                                                                            \
    CHECK(said.find(part) != std::string::npos, "expected \"", part, "\", got: ", said);                         \
  } while (0)

#define TEST_MAIN() \
  int main(int argc, char** argv) { return ::paceline::test::run(argc, argv); }
