// What a warp's lanes do together: shuffles, ballots, sync_warp, ldmatrix; and lanes that fail to
// meet.
#include <array>
#include <cstring>

#include "toys.h"

namespace {

using namespace toys;

struct ShuffleArgs {
  double* doubles;  // [32], in and out
  int64_t* wide;    // [32]
  unsigned* votes;  // [32]
};

RNNFAST_KERNEL(32) shuffles(RNNFAST_ARGS ShuffleArgs args) {
  const int l = lane();
  double value = load(args.doubles + l);
  value = shuffle(kAll, value, (l + 5) % 32);
  if (l < 16) value = -shuffle_xor(0xFFFFu, value, 3);
  store(args.doubles + l, value);
  const auto wide = static_cast<uint64_t>(load(args.wide + l));
  store(args.wide + l, static_cast<int64_t>(shuffle(kAll, wide, 31 - l)));
  store(args.votes + l, ballot(kAll, l % 3 == 0));
}

TEST(shuffles_and_ballots) {
  under_schedules([] {
    std::vector<double> doubles(32);
    std::vector<int64_t> wide(32);
    std::vector<unsigned> votes(32);
    for (int l = 0; l < 32; ++l) doubles[l] = l, wide[l] = int64_t{1} << (l + 20);
    launch<ShuffleArgs>({"shuffles", 1, 1, 32, 0, false}, shuffles,
                        {doubles.data(), wide.data(), votes.data()}, nullptr);
    for (int l = 0; l < 32; ++l) {
      CHECK(doubles[l] == (l < 16 ? -((l ^ 3) + 5) : (l + 5) % 32));
      CHECK(wide[l] == int64_t{1} << (31 - l + 20));
      CHECK(votes[l] == 0x49249249u);
    }
  });
}

// ---- sync_warp orders memory

enum class WarpBug { kNone, kNoSync };

struct RotateArgs {
  int* out;  // [64]
  WarpBug bug;
};

RNNFAST_KERNEL(64) rotate(RNNFAST_ARGS RotateArgs args) {
  RNNFAST_SHARED_ARRAY(int, slots, 64);
  slots[thread_index()] = thread_index();
  if (args.bug != WarpBug::kNoSync) sync_warp(kAll);
  store(args.out + thread_index(), slots[warp() * 32 + (lane() + 1) % 32]);
}

bool rotates(WarpBug bug) {
  std::vector<int> out(64);
  launch<RotateArgs>({"rotate", 1, 1, 64, 0, false}, rotate, {out.data(), bug}, nullptr);
  for (int t = 0; t < 64; ++t) {
    if (out[t] != t / 32 * 32 + (t % 32 + 1) % 32) return false;
  }
  return true;
}

TEST(sync_warp_orders_shared_memory) {
  under_schedules([] { CHECK(rotates(WarpBug::kNone)); });
}

FAULT_TEST(a_missing_sync_warp_shows_as_wrong_numbers) {
  CHECK(wrong_schedules([] { return rotates(WarpBug::kNoSync); }) == kSchedules);
}

// ---- lanes that do not meet

enum class Divergence {
  kMask,
  kOperation,
  kSite,
  kNotInMask,
  kSourceOutside,
  kNoSuchLane,
  kExited,
  kBranch
};

struct DivergeArgs {
  Divergence bug;
};

RNNFAST_KERNEL(48) diverge(RNNFAST_ARGS DivergeArgs args) {
  const bool odd = lane() % 2 == 1;
  switch (args.bug) {
    case Divergence::kMask:
      shuffle(odd ? kAll : 0x7FFFFFFFu, 1, 0);
      break;
    case Divergence::kOperation:
      if (odd) {
        shuffle(kAll, 1, 0);
      } else {
        ballot(kAll, true);
      }
      break;
    case Divergence::kSite:
      if (odd) {
        shuffle(kAll, 1, 0);
      } else {
        shuffle(kAll, 1, 0);
      }
      break;
    case Divergence::kNotInMask:
      shuffle(0x55555555u, 1, 0);
      break;
    case Divergence::kSourceOutside:
      if (!odd) shuffle(0x55555555u, 1, 7);
      break;
    case Divergence::kNoSuchLane:
      if (warp() == 1) sync_warp(kAll);  // half of whose lanes do not exist
      break;
    case Divergence::kExited:
      if (lane() == 9) return;
      sync_warp(kAll);
      break;
    case Divergence::kBranch:
      if (warp() == 0 && lane() != 9) sync_warp(kAll);
      if (warp() == 0 && lane() == 9) sync_block();
      break;
  }
}

void run_diverge(Divergence bug, int threads = 32) {
  launch<DivergeArgs>({"diverge", 1, 1, threads, 0, false}, diverge, {bug}, nullptr);
}

FAULT_TEST(lanes_must_agree_on_mask_operation_and_place) {
  CHECK_FAILS([] { run_diverge(Divergence::kMask); }, "wait for this one in shuffle of lanes 0x");
  CHECK_FAILS([] { run_diverge(Divergence::kOperation); }, "where other lanes of the mask wait in");
  CHECK_FAILS([] { run_diverge(Divergence::kSite); },
              "where other lanes of the mask wait in shuffle at");
}

FAULT_TEST(a_mask_must_be_right) {
  CHECK_FAILS([] { run_diverge(Divergence::kNotInMask); }, "is not in its own mask 0x55555555");
  CHECK_FAILS([] { run_diverge(Divergence::kSourceOutside); },
              "shuffle from lane 7, which is not in mask 0x55555555");
  CHECK_FAILS([] { run_diverge(Divergence::kNoSuchLane, 48); },
              "lanes 0xffff0000 of the mask do not exist");
}

FAULT_TEST(lanes_that_never_come_are_missed) {
  for (int seed = 1; seed <= kSchedules; ++seed) {
    simt::set_seed(seed);
    const std::string failure = failure_of([] { run_diverge(Divergence::kExited); });
    CHECK_IN(contains(failure, "exits while lanes") ||
                 contains(failure, "lane 9 of the mask has exited"),
             failure);
  }
  CHECK_FAILS([] { run_diverge(Divergence::kBranch); }, "of lanes 0xffffffff there are 0xfffffdff");
}

// ---- ldmatrix

enum class RowBug { kNone, kMisaligned, kOutside, kGlobal };

struct LoadMatrixArgs {
  uint32_t* out;  // [32, 4]
  const void* global;
  RowBug bug;
};

// Four 8 × 8 matrices of 16-bit elements; element (row, column) of matrix m is 64·m + 8·row +
// column.
RNNFAST_KERNEL(32) load_matrices(RNNFAST_ARGS LoadMatrixArgs args) {
  RNNFAST_SHARED_DYNAMIC(shared);
  auto* elements = reinterpret_cast<uint16_t*>(shared);
  for (int i = lane(); i < 256; i += 32) elements[i] = static_cast<uint16_t>(i);
  sync_warp(kAll);
  const void* row = elements + 8 * lane();
  if (args.bug == RowBug::kMisaligned && lane() == 5) row = elements + 8 * lane() + 4;
  if (args.bug == RowBug::kOutside && lane() == 31) row = elements + 256;
  if (args.bug == RowBug::kGlobal) row = args.global;
  uint32_t r[4];
  load_matrix_x4(r, row);
  for (int m = 0; m < 4; ++m) store(args.out + 4 * lane() + m, r[m]);
}

std::vector<uint32_t> run_load_matrices(RowBug bug) {
  std::vector<uint32_t> out(128);
  alignas(16) static const char global[16] = {};
  launch<LoadMatrixArgs>({"load_matrices", 1, 1, 32, 512, false}, load_matrices,
                         {out.data(), global, bug}, nullptr);
  return out;
}

TEST(ldmatrix_gives_each_lane_two_neighbours_of_a_row) {
  under_schedules([] {
    const std::vector<uint32_t> out = run_load_matrices(RowBug::kNone);
    for (int l = 0; l < 32; ++l) {
      for (int m = 0; m < 4; ++m) {
        const uint32_t first = 64 * m + 8 * (l / 4) + 2 * (l % 4);
        CHECK(out[4 * l + m] == (first | (first + 1) << 16));
      }
    }
  });
}

FAULT_TEST(rows_of_ldmatrix_are_aligned_and_in_shared_memory) {
  CHECK_FAILS([] { run_load_matrices(RowBug::kMisaligned); }, "thread 5: misaligned");
  CHECK_FAILS([] { run_load_matrices(RowBug::kOutside); },
              "thread 31: load_matrix_x4: the address is not in shared memory of this block");
  CHECK_FAILS([] { run_load_matrices(RowBug::kGlobal); }, "not in shared memory of this block");
}

}  // namespace
