// Clusters: an all-gather among the blocks of a cluster, and each way to get it wrong.
#include "toys.h"

namespace {

using namespace toys;

struct alignas(16) Word {
  unsigned at[4];
};

enum class Bug {
  kNone,
  kNoFirstSync,
  kNoPublish,
  kPublishLate,
  kNoInit,
  kInvalidated,
  kOverwritten,
  kNoLastSync,
  kLastSyncWhileInFlight,
  kPeerExits,
  kBlockWait,
  kNoWait,
  kOneBuffer,
  kTooManyBytes,
  kTooFewBytes,
  kRankTooHigh,
  kRankNegative,
  kPlaceNotShared,
  kPlaceOfPeer,
  kBarrierNotShared,
  kMisaligned,
  kWriteInFlight,
  kStoreTwice,
  kCopyInFlight,
  kThreadExitsFirst,
  kThreadExitsLast,
  kBlockDoesNotCome,
  kAnotherPlace
};

struct GatherArgs {
  unsigned* out;  // [grid_y, grid_x, threads], out
  int steps;
  Bug bug;
  Word** leaked;  // the rows of rank 0
};

// Until all others have done what they can.
RNNFAST_DEVICE void dawdle() {
  for (int i = 0; i < 100; ++i) pause();
}

unsigned start_of(int block, int thread) { return 31 * block + thread + 1; }

// Of a block's number and word in the cluster's state h.
template <class H>
unsigned next_of(H h, int blocks, int threads, int thread) {
  unsigned sum = 1;
  for (int b = 0; b < blocks; ++b) sum = (3 * sum + h(b, (thread + b) % threads)) % 10007;
  return sum;
}

// Every block sends its part of h to every block, its own too, into one of two sets of rows; each
// set has an mbarrier.
RNNFAST_KERNEL(64) gather(RNNFAST_ARGS GatherArgs args) {
  RNNFAST_SHARED_DYNAMIC(shared);
  RNNFAST_SHARED_ARRAY(uint64_t, arrived, 4);
  auto* rows = reinterpret_cast<Word*>(shared);  // [2, blocks, threads]
  const Bug bug = args.bug;
  const int blocks = cluster_blocks(), threads = block_threads(), thread = thread_index();
  const auto row = [&](int e, int rank) { return rows + (e % 2 * blocks + rank) * threads; };
  if (bug == Bug::kPlaceOfPeer && cluster_rank() == 0) *args.leaked = rows;
  if (thread == 0) {
    for (int set = 0; set < 2; ++set) {
      if (bug != Bug::kNoInit || cluster_rank() != 1) mbarrier_init(arrived + set, 1);
    }
    if (bug != Bug::kNoPublish && bug != Bug::kPublishLate) mbarrier_publish();
    mbarrier_init(arrived + 2, 1);
  }
  if (bug == Bug::kNoFirstSync) {
    sync_block();
  } else {
    sync_cluster();
  }
  if (bug == Bug::kPublishLate) {
    if (thread == 0) mbarrier_publish();
    dawdle();
  }
  if (bug == Bug::kPeerExits) {
    if (cluster_rank() == 1) return;
    dawdle();
  }
  if (thread == 0 && cluster_rank() == 1) {
    if (bug == Bug::kInvalidated) mbarrier_invalidate(arrived);
    if (bug == Bug::kOverwritten) arrived[0] = 0;
  }
  if (bug == Bug::kInvalidated || bug == Bug::kOverwritten) dawdle();

  Word mine = {{start_of(block_y() * grid_x() + block_x(), thread), 0, 0, 7}};
  for (int e = 0; e < args.steps; ++e) {
    const int set = bug == Bug::kOneBuffer ? 0 : e % 2;
    const int off = bug == Bug::kTooManyBytes ? 16 : bug == Bug::kTooFewBytes ? -16 : 0;
    if (thread == 0) mbarrier_arrive_expect(arrived + e % 2, 16 * threads * blocks + off);
    for (int to = 0; to < blocks; ++to) {
      Word* place = row(set, cluster_rank()) + thread;
      uint64_t* bar = arrived + e % 2;
      int rank = to;
      if (bug == Bug::kRankTooHigh) rank = to + 1;
      if (bug == Bug::kRankNegative) rank = to - 1;
      if (bug == Bug::kPlaceNotShared) place = &mine;
      if (bug == Bug::kPlaceOfPeer && cluster_rank() == 1) place = *args.leaked;
      if (bug == Bug::kBarrierNotShared) bar = reinterpret_cast<uint64_t*>(&mine);
      if (bug == Bug::kMisaligned) place = reinterpret_cast<Word*>(&place->at[2]);
      store_async(place, mine, bar, rank);
      if (bug == Bug::kWriteInFlight && to == cluster_rank()) place->at[1] = 5;
      if (bug == Bug::kStoreTwice) store_async(place, mine, bar, rank);
      if (bug == Bug::kCopyInFlight && to == cluster_rank()) copy_async_16(place, args.out, 16);
    }
    if (bug == Bug::kLastSyncWhileInFlight) break;
    if (bug == Bug::kBlockWait) {
      mbarrier_wait(arrived + e % 2, e / 2 % 2);
    } else if (bug != Bug::kNoWait) {
      mbarrier_wait_cluster(arrived + e % 2, e / 2 % 2);
    }
    const auto h = [&](int b, int t) { return row(set, b)[t].at[0]; };
    mine.at[0] = next_of(h, blocks, threads, thread);
  }
  store(args.out + (block_y() * grid_x() + block_x()) * threads + thread, mine.at[0]);
  const bool exits = cluster_rank() == 1 && thread == 5;
  if (bug == Bug::kThreadExitsFirst && !exits) dawdle();
  if (bug == Bug::kThreadExitsLast && exits) dawdle();
  if ((bug == Bug::kThreadExitsFirst || bug == Bug::kThreadExitsLast) && exits) return;
  if (bug == Bug::kBlockDoesNotCome && cluster_rank() == 1) mbarrier_wait(arrived + 2, 0);
  if (bug == Bug::kAnotherPlace && cluster_rank() == 1) sync_cluster();
  if (bug != Bug::kNoLastSync) sync_cluster();
}

constexpr int kThreads = simt::kTsan ? 8 : 32;  // it is slow where many stores meet

struct Shape {
  int blocks;  // of a cluster
  int clusters_x = 1, clusters_y = 1;
  int threads = kThreads;
  int steps = 5;
};

std::vector<unsigned> expected(const Shape& shape) {
  const int grid = shape.blocks * shape.clusters_x * shape.clusters_y;
  std::vector<unsigned> h(grid * shape.threads), next(h.size());
  for (int b = 0; b < grid; ++b) {
    for (int t = 0; t < shape.threads; ++t) h[b * shape.threads + t] = start_of(b, t);
  }
  for (int e = 0; e < shape.steps; ++e) {
    for (int b = 0; b < grid; ++b) {
      const unsigned* cluster = h.data() + b / shape.blocks * shape.blocks * shape.threads;
      const auto at = [&](int rank, int t) { return cluster[rank * shape.threads + t]; };
      for (int t = 0; t < shape.threads; ++t) {
        next[b * shape.threads + t] = next_of(at, shape.blocks, shape.threads, t);
      }
    }
    h.swap(next);
  }
  return h;
}

bool gather_is_right(const Shape& shape, Bug bug = Bug::kNone) {
  Launch how{"gather", shape.blocks * shape.clusters_x, shape.clusters_y, shape.threads};
  how.shared_bytes = 2 * shape.blocks * shape.threads * 16;
  how.cluster_blocks = shape.blocks;
  std::vector<unsigned> out(how.grid_x * how.grid_y * shape.threads);
  Word* leaked = nullptr;
  launch<GatherArgs>(how, gather, {out.data(), shape.steps, bug, &leaked}, nullptr);
  return out == expected(shape);
}

bool of_four(Bug bug) { return gather_is_right({4}, bug); }

// ---- right

TEST(an_all_gather_in_clusters_of_two_and_four) {
  under_schedules([] {
    CHECK(gather_is_right({2}));
    CHECK(gather_is_right({4, 2, 2, 2 * kThreads}));
    CHECK(gather_is_right({1, 3}));
  });
}

TEST(an_all_gather_in_clusters_of_sixteen) {
  const Shape shape{16, 2, 1, kThreads / 2, 3};
  simt::set_schedule(simt::Schedule::kInOrder);
  CHECK(gather_is_right(shape));
  simt::set_schedule(simt::Schedule::kReverse);
  CHECK(gather_is_right(shape));
  simt::set_schedule(simt::Schedule::kRandom);
  for (int seed = 1; seed <= 5; ++seed) {
    simt::set_seed(seed);
    CHECK(gather_is_right(shape));
  }
}

TEST(a_cluster_is_alive_as_a_whole_where_few_blocks_are) {
  for (const int resident : {1, 5, 8}) {
    simt::set_resident_threads(resident * kThreads);
    for (int seed = 1; seed <= 5; ++seed) {
      simt::set_seed(seed);
      CHECK(gather_is_right({4, 3, 2}));
    }
  }
  simt::set_resident_threads(32768);
}

TEST(a_seed_says_when_stores_land) {
  simt::clear_log();
  for (const int seed : {7, 7, 8}) {
    simt::set_seed(seed);
    CHECK(gather_is_right({4}));
  }
  const std::vector<simt::LaunchRecord> log = simt::log();
  CHECK(log[0].switches == log[1].switches && log[0].switches != log[2].switches);
}

// ---- mbarriers of other blocks

FAULT_TEST(peers_are_touched_after_a_first_sync_cluster_only) {
  CHECK_FAILS([] { of_four(Bug::kNoFirstSync); },
              "before a first sync_cluster: that block may not have started, at ");
}

FAULT_TEST(mbarriers_are_published_before_that_sync_cluster) {
  CHECK_FAILS([] { of_four(Bug::kNoPublish); },
              "mbarrier_publish is missing after mbarrier_init in block (");
  CHECK_FAILS([] { of_four(Bug::kPublishLate); },
              "store_async: no sync_cluster since mbarrier_publish in block (");
}

FAULT_TEST(the_mbarrier_of_a_peer_must_be_there) {
  CHECK_FAILS([] { of_four(Bug::kNoInit); }, "not an initialised mbarrier");
  CHECK_FAILS([] { of_four(Bug::kInvalidated); }, "not an initialised mbarrier of block (1, 0)");
  CHECK_FAILS([] { of_four(Bug::kOverwritten); }, "the mbarrier of block (1, 0) was overwritten");
}

TEST(what_a_block_sends_itself_needs_no_wait_in_the_scope_of_the_cluster) {
  CHECK(gather_is_right({1}, Bug::kBlockWait));
}

FAULT_TEST(what_a_peer_completes_is_waited_for_in_the_scope_of_the_cluster) {
  CHECK_FAILS([] { of_four(Bug::kBlockWait); },
              "mbarrier_wait of a phase that another block's store_async completed: needs "
              "mbarrier_wait_cluster, at ");
}

FAULT_TEST(bytes_that_nobody_sends_end_in_a_deadlock) {
  CHECK_FAILS([] { of_four(Bug::kTooManyBytes); }, "mbarrier lacks 0 of 1 arrivals and 16 bytes");
  CHECK(wrong_schedules([] { return of_four(Bug::kTooFewBytes); }) == kSchedules);
}

FAULT_TEST(a_missing_wait_shows_as_wrong_numbers_or_as_two_stores_in_flight) {
  CHECK(wrong_schedules([] { return of_four(Bug::kNoWait); }) == kSchedules);
}

// A fast block's h of the next step falls on what a slow one has not read.
FAULT_TEST(one_set_of_rows_is_not_enough) {
  CHECK(wrong_schedules([] { return of_four(Bug::kOneBuffer); }) == kSchedules);
}

// ---- places

FAULT_TEST(the_addresses_of_a_store_are_ones_own) {
  CHECK_FAILS([] { of_four(Bug::kPlaceNotShared); },
              "store_async: the address is not in shared memory of this block");
  CHECK_FAILS([] { of_four(Bug::kPlaceOfPeer); },
              "store_async: the address is not in shared memory of this block");
  CHECK_FAILS([] { of_four(Bug::kBarrierNotShared); },
              "store_async's mbarrier: the address is not in shared memory of this block");
  CHECK_FAILS([] { of_four(Bug::kMisaligned); }, "store_async: the address is no multiple of 16");
}

FAULT_TEST(a_rank_is_one_of_the_cluster) {
  CHECK_FAILS([] { of_four(Bug::kRankTooHigh); }, "store_async to rank 4 of a cluster of 4");
  CHECK_FAILS([] { of_four(Bug::kRankNegative); }, "store_async to rank -1 of a cluster of 4");
}

FAULT_TEST(the_place_is_left_alone_until_the_store_has_landed) {
  CHECK_FAILS([] { of_four(Bug::kWriteInFlight); },
              "was written while the store_async into it was in flight");
  CHECK_FAILS([] { of_four(Bug::kCopyInFlight); }, " into this place is in flight, issued at ");
  int caught = 0;
  for (int seed = 1; seed <= kSchedules; ++seed) {
    simt::set_seed(seed);
    const std::string failure = failure_of([] { of_four(Bug::kStoreTwice); });
    caught += contains(failure, "store_async: a store_async of block (") &&
              contains(failure, " into this place is in flight, issued at ");
  }
  CHECK(caught == kSchedules);
}

// ---- the end of a block

FAULT_TEST(a_block_stays_until_all_have_what_was_sent) {
  for (int seed = 1; seed <= kSchedules; ++seed) {
    simt::set_seed(seed);
    const std::string failure = failure_of([] { of_four(Bug::kNoLastSync); });
    CHECK_IN(contains(failure, "exits without a sync_cluster after the last store_async") ||
                 contains(failure, "exits while the store_async of block ("),
             failure);
  }
  CHECK_FAILS([] { of_four(Bug::kPeerExits); }, "store_async to rank 1, a block that has exited");
}

// A sync_cluster does not wait for what is in flight.
FAULT_TEST(a_block_does_not_exit_while_a_store_is_in_flight) {
  for (const auto schedule : {simt::Schedule::kInOrder, simt::Schedule::kReverse}) {
    simt::set_schedule(schedule);
    CHECK_FAILS([] { gather_is_right({2}, Bug::kLastSyncWhileInFlight); },
                "exits while the store_async of block (");
  }
  simt::set_schedule(simt::Schedule::kRandom);
  CHECK_FAILS([] { of_four(Bug::kLastSyncWhileInFlight); },
              "exits while the store_async of block (");
}

// ---- the barrier

FAULT_TEST(all_threads_of_a_cluster_come_to_its_barrier) {
  const Shape no_steps{4, 1, 1, kThreads, 0};
  CHECK_FAILS([&] { gather_is_right(no_steps, Bug::kThreadExitsFirst); },
              "sync_cluster after 1 threads of the cluster have exited, at ");
  CHECK_FAILS([&] { gather_is_right(no_steps, Bug::kThreadExitsLast); },
              "thread 5: exits while 127 threads of its cluster wait at sync_cluster at ");
  CHECK_FAILS([] { of_four(Bug::kBlockDoesNotCome); }, "deadlock: every thread waits");
  CHECK_FAILS([] { of_four(Bug::kBlockDoesNotCome); },
              ": 32 threads, the first is 0, sync_cluster at ");
  CHECK_FAILS([] { of_four(Bug::kBlockDoesNotCome); }, ", 96 of 128 have arrived");
  CHECK_FAILS([] { of_four(Bug::kAnotherPlace); },
              "sync_cluster while other threads of the cluster wait at another, at ");
}

}  // namespace
