// Threads that share a scan, and their part of it.
#pragma once

#include <cstdint>

#include "cpu/barrier.h"
#include "cpu/kernels.h"
#include "cpu/range.h"
#include "cpu/threads.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// One thread's place.
struct Place {
  int row = 0, unit = 0;  // which part of either
  mutable Split split;
  Barrier *barrier = nullptr, *everyone = nullptr;
  int64_t worked_before = 0;
  mutable bool gone = false;

  // Whether this thread goes on. Where the team was dissolved one does, for all hidden units: its
  // results are the same bits.
  bool wait() const {
    if (!gone && !barrier->wait(split.units, worked_before)) {
      gone = unit != 0;
      split.units = 1;
    }
    return !gone;
  }
  // For the whole team.
  void wait_for_all() const { everyone->wait(static_cast<int>(threads())); }
  int64_t id() const { return int64_t(row) * split.units + unit; }
  int64_t threads() const { return int64_t(split.rows) * split.units; }
  // This thread's part of what the whole team shares.
  Range share(int64_t size) const { return part(size, 1, id(), threads()); }
};

// body(Place) on split.rows · split.units threads, or on one if there are fewer. Returns whether
// some of them had to leave.
template <class Body>
bool with_team(Split split, const Body& body) {
  constexpr int kMaxRows = 1024, kMaxSharedRows = 64;  // a part of one thread never waits
  const int n = split.rows * split.units;
  Barrier barriers[kMaxSharedRows], everyone;
  const auto alone = [&] { body(Place{0, 0, Split{}, &barriers[0], &everyone}); };
  if (n == 1 || split.rows > kMaxRows || (split.units > 1 && split.rows > kMaxSharedRows)) {
    alone();
    return false;
  }
  const int shared = split.units > 1 ? split.rows : 0;
  for (int row = 0; row < shared; ++row) barriers[row].begin();
  on_threads(n, [&](int id, int threads) {
    const int row = id / split.units;
    if (threads == n) {
      Barrier* const own = &barriers[row % kMaxSharedRows];
      body(Place{row, id % split.units, split, own, &everyone, split.units > 1 ? worked() : 0});
    } else if (id == 0) {
      alone();
    }
  });
  bool dissolved = false;
  for (int row = 0; row < shared; ++row) dissolved |= barriers[row].dissolved();
  return dissolved;
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
