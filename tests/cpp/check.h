// The C++ tests' own few macros. A failed check prints file, line and values and the test goes on;
// the process then exits with 1. `rnnfast_tests [file stem]...` runs the tests of these files, or
// all.
#pragma once

#include <cmath>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char *file, *name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Registration {
  Registration(const char* file, const char* name, void (*run)()) {
    tests().push_back({file, name, run});
  }
};

// At most this many failures of a run are printed in full: a broken formula fails at thousands of
// points.
constexpr int kPrinted = 20;

inline void fail(const char* file, int line, const std::string& message) {
  if (++failures() <= kPrinted) std::cerr << file << ":" << line << ": " << message << "\n";
}

inline void that(bool ok, const char* file, int line, const char* text,
                 const std::string& context = "") {
  if (!ok)
    fail(file, line,
         std::string("CHECK(") + text + ") failed" + (context.empty() ? "" : ": " + context));
}

inline std::string show(double value) {
  std::ostringstream out;
  out.precision(17);
  out << value;
  return out.str();
}

// |a - b| <= tolerance · max(1, |b|). NaN is near nothing, an infinity only itself.
inline void near(double a, double b, double tolerance, const char* file, int line,
                 const std::string& text) {
  const double distance = std::fabs(a - b), allowed = tolerance * std::fmax(1.0, std::fabs(b));
  if (a == b || (std::isfinite(b) && distance <= allowed)) return;
  fail(file, line,
       text + ": " + show(a) + " against " + show(b) + ", off by " + show(distance) + ", allowed " +
           show(allowed));
}

}  // namespace check

#define TEST(name)                                                              \
  static void name();                                                           \
  static const check::Registration registration_##name(__FILE__, #name, &name); \
  static void name()

#define CHECK(condition) check::that((condition), __FILE__, __LINE__, #condition)
#define CHECK_IN(condition, context) \
  check::that((condition), __FILE__, __LINE__, #condition, (context))
#define CHECK_NEAR(a, b, tolerance) \
  check::near((a), (b), (tolerance), __FILE__, __LINE__, #a " near " #b)
#define CHECK_NEAR_IN(a, b, tolerance, context) \
  check::near((a), (b), (tolerance), __FILE__, __LINE__, (context))
