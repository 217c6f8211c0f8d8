// What the executor's tests share: running a toy kernel under many schedules, and what it fails
// with.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/device/device.h"
#include "simt/executor.h"

namespace toys {

using namespace rnnfast::cuda;  // NOLINT: a kernel's own namespace

inline constexpr unsigned kAll = 0xFFFFFFFFu;
inline constexpr int kSchedules = simt::kTsan || simt::kAsan ? 10 : 50;

// Calls run() in order, in reverse and under kSchedules random schedules.
template <class F>
void under_schedules(F run) {
  simt::set_seed(0);
  for (const auto schedule : {simt::Schedule::kInOrder, simt::Schedule::kReverse}) {
    simt::set_schedule(schedule);
    run();
  }
  simt::set_schedule(simt::Schedule::kRandom);
  for (int seed = 1; seed <= kSchedules; ++seed) {
    simt::set_seed(seed);
    run();
  }
}

// The message of what run() throws; empty if it throws nothing.
template <class F>
std::string failure_of(F run) {
  try {
    run();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

// In how many of kSchedules random schedules right() is false or fails.
template <class F>
int wrong_schedules(F right) {
  int wrong = 0;
  for (int seed = 1; seed <= kSchedules; ++seed) {
    simt::set_seed(seed);
    bool fine = false;
    const std::string failure = failure_of([&] { fine = right(); });
    wrong += fine && failure.empty() ? 0 : 1;
  }
  return wrong;
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace toys

// A test of kernels that are wrong. ThreadSanitizer would report them in its own way: simt_faults
// has them for it.
#if defined(SIMT_TSAN)
#define FAULT_TEST(name) [[maybe_unused]] static void name()
#else
#define FAULT_TEST(name) TEST(name)
#endif

// run() must fail with a message that has this part, in each of kSchedules random schedules.
#define CHECK_FAILS(run, part)                                      \
  for (int seed = 1; seed <= toys::kSchedules; ++seed) {            \
    simt::set_seed(seed);                                           \
    const std::string failure = toys::failure_of(run);              \
    CHECK_IN(toys::contains(failure, part), "it says: " + failure); \
  }
