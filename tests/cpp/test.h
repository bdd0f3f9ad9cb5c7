// The C++ test runner: TEST(name) { CHECK(condition, parts to print...); }. Each test file is one program;
// `program [substring]` runs the tests whose name holds the substring. Exit status 1 if any failed.
#pragma once

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

inline int run(int argc, char** argv) {
  int failed = 0, passed = 0;
  for (const Test& test : tests()) {
    if (argc > 1 && !std::strstr(test.name, argv[1])) continue;
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
