// mbarriers: phases, parity, arrivals, transaction bytes.
#include "simt/entry.h"
#include "toys.h"

namespace {

using namespace toys;

enum class Bug {
  kNone,
  kCountTooHigh,
  kCountTooLow,
  kNoInit,
  kInitTwice,
  kOverwritten,
  kWrongParity,
  kBytesMissing,
  kNotShared
};

struct RingArgs {
  const int* in;
  int* out;
  int items;
  Bug bug;
};

// Warp 0 hands numbers to warp 1 through two slots: `full` of a slot is completed by the 32 lanes
// of warp 0 and 8 transaction bytes, `empty` by warp 1's.
RNNFAST_KERNEL(64) ring(RNNFAST_ARGS RingArgs args) {
  RNNFAST_SHARED_ARRAY(uint64_t, barriers, 4);
  RNNFAST_SHARED_ARRAY(int, slots, 2 * 32);
  uint64_t *full = barriers, *empty = barriers + 2;
  if (thread_index() == 0 && args.bug != Bug::kNoInit) {
    const int count = args.bug == Bug::kCountTooHigh ? 33 : args.bug == Bug::kCountTooLow ? 16 : 32;
    for (int s = 0; s < 2; ++s) {
      mbarrier_init(full + s, count);
      mbarrier_init(empty + s, 32);
    }
    if (args.bug == Bug::kInitTwice) mbarrier_init(full, 32);
    if (args.bug == Bug::kOverwritten) barriers[1] = 0;
    if (args.bug == Bug::kNotShared)
      mbarrier_init(const_cast<uint64_t*>(reinterpret_cast<const uint64_t*>(args.in)), 1);
  }
  sync_block();
  for (int item = 0; item < args.items; ++item) {
    const int slot = item % 2, parity = item / 2 % 2;
    if (warp() == 0) {
      mbarrier_wait(empty + slot, args.bug == Bug::kWrongParity ? parity : parity ^ 1);
      slots[32 * slot + lane()] = load(args.in + 32 * item + lane());
      if (lane() == 0) {
        mbarrier_arrive_expect(full + slot, 8);
        ::simt::mbarrier_complete(full + slot, args.bug == Bug::kBytesMissing ? 4 : 8,
                                  simt::Site::here());
      } else {
        mbarrier_arrive(full + slot);
      }
    } else {
      mbarrier_wait(full + slot, parity);
      store(args.out + 32 * item + lane(), slots[32 * slot + 31 - lane()]);
      mbarrier_arrive(empty + slot);
    }
  }
  sync_block();
  if (thread_index() == 0) {
    for (int b = 0; b < 4; ++b) mbarrier_invalidate(barriers + b);
    mbarrier_init(full, 1);
  }
}

bool ring_is_right(Bug bug) {
  constexpr int kItems = 7;
  std::vector<int> in(32 * kItems), out(32 * kItems);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<int>(i);
  launch<RingArgs>({"ring", 1, 1, 64, 0, false}, ring, {in.data(), out.data(), kItems, bug},
                   nullptr);
  for (int i = 0; i < 32 * kItems; ++i) {
    if (out[i] != i / 32 * 32 + 31 - i % 32) return false;
  }
  return true;
}

TEST(a_ring_of_two_slots) {
  under_schedules([] { CHECK(ring_is_right(Bug::kNone)); });
}

FAULT_TEST(a_wrong_count_ends_in_a_deadlock_or_in_wrong_numbers) {
  CHECK_FAILS([] { ring_is_right(Bug::kCountTooHigh); },
              "phase 0 of the mbarrier lacks 1 of 33 arrivals");
  int seen = 0;
  for (int seed = 1; seed <= kSchedules; ++seed) {
    simt::set_seed(seed);
    const std::string failure = failure_of([&] { seen += !ring_is_right(Bug::kCountTooLow); });
    seen += failure != "";
  }
  CHECK(seen > kSchedules / 2);
}

FAULT_TEST(missing_bytes_end_in_a_deadlock) {
  CHECK_FAILS([] { ring_is_right(Bug::kBytesMissing); }, "arrivals and 4 bytes");
  CHECK_FAILS([] { ring_is_right(Bug::kBytesMissing); }, "mbarrier_wait at ");
}

FAULT_TEST(a_wait_with_the_wrong_parity_ends_in_a_deadlock) {
  CHECK_FAILS([] { ring_is_right(Bug::kWrongParity); }, "deadlock: every thread waits");
}

FAULT_TEST(an_mbarrier_is_initialised_once_and_left_alone) {
  CHECK_FAILS([] { ring_is_right(Bug::kNoInit); }, "not an initialised mbarrier");
  CHECK_FAILS([] { ring_is_right(Bug::kInitTwice); }, "mbarrier_init: already initialised");
  CHECK_FAILS([] { ring_is_right(Bug::kOverwritten); }, "the mbarrier was overwritten");
  CHECK_FAILS([] { ring_is_right(Bug::kNotShared); },
              "mbarrier_init: the address is not in shared memory");
}

}  // namespace
