// Launches of clusters: ranks, what is alive at once, the scope, what a device refuses.
#include <utility>

#include "toys.h"

namespace {

using namespace toys;

struct CountArgs {
  unsigned* counts;  // [clusters]
  int* ranks;        // [grid_y, grid_x]
  bool one_for_all;
};

RNNFAST_KERNEL(32) count_up(RNNFAST_ARGS CountArgs args) {
  const int block = block_y() * grid_x() + block_x();
  unsigned* count = args.counts + (args.one_for_all ? 0 : block / cluster_blocks());
  if (thread_index() == 0) store(args.ranks + block, cluster_rank());
  add_release<Scope::kCluster>(count, 1u);
  fence<Scope::kCluster>();
  sync_cluster();
  const unsigned seen = load_acquire<Scope::kCluster>(count);
  if (seen != 32u * static_cast<unsigned>(cluster_blocks())) store(args.ranks + block, -1);
}

std::vector<int> run_count_up(int cluster_blocks, bool one_for_all = false) {
  std::vector<unsigned> counts(12);
  std::vector<int> ranks(12);
  Launch how{"count_up", 6, 2, 32};
  how.cluster_blocks = cluster_blocks;
  launch<CountArgs>(how, count_up, {counts.data(), ranks.data(), one_for_all}, nullptr);
  return ranks;
}

TEST(ranks_count_along_x) {
  under_schedules([] {
    CHECK(run_count_up(1) == std::vector<int>(12, 0));
    CHECK(run_count_up(3) == std::vector<int>({0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2}));
    CHECK(run_count_up(6) == std::vector<int>({0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5}));
  });
}

FAULT_TEST(the_scope_of_a_cluster_ends_with_it) {
  CHECK_FAILS([] { run_count_up(3, true); },
              "blocks of two clusters meet at an atomic of scope cluster");
}

struct StayArgs {
  int* alive;
  int* seen;  // [13] how often so many blocks were
};

RNNFAST_KERNEL(32) stay(RNNFAST_ARGS StayArgs args) {
  if (thread_index() == 0) {
    const int alive = atomic_add<Scope::kDevice>(args.alive, 1) + 1;
    atomic_add<Scope::kDevice>(args.seen + alive, 1);
    for (int i = 0; i < 100; ++i) pause();  // until all have come that may
  }
  sync_cluster();
  if (thread_index() == 0) atomic_add<Scope::kDevice>(args.alive, -1);
}

TEST(no_cluster_starts_that_is_too_many) {
  for (const auto& [resident, most] : {std::pair{1, 4}, {7, 7}, {8, 8}, {100, 12}}) {
    simt::set_resident_threads(resident * 32);
    int alive = 0;
    std::vector<int> seen(13);
    Launch how{"stay", 12, 1, 32};
    how.cluster_blocks = 4;
    launch<StayArgs>(how, stay, {&alive, seen.data()}, nullptr);
    CHECK(alive == 0 && seen[4] > 0);
    for (int blocks = most + 1; blocks <= 12; ++blocks) CHECK(seen[blocks] == 0);
  }
  simt::set_resident_threads(32768);
}

// ---- launches

struct NoArgs {
  int unused;
};
RNNFAST_KERNEL(1024) nothing(RNNFAST_ARGS NoArgs) {}

Launch clusters(int grid, int size, int threads = 1, int shared_bytes = 0) {
  Launch how{"nothing", grid, 1, threads, shared_bytes};
  how.cluster_blocks = size;
  return how;
}

std::string refusal(const Launch& how) {
  return failure_of([&] { launch<NoArgs>(how, nothing, {0}, nullptr); });
}

void check_refused(const Launch& how, const std::string& part) {
  const std::string failure = refusal(how);
  CHECK_IN(contains(failure, part), failure);
}

int resident(const Launch& how) { return resident_blocks<NoArgs>(how, nothing); }

TEST(a_grid_is_of_whole_clusters_of_at_most_sixteen_blocks) {
  CHECK(refusal(clusters(16, 8)) == "");
  CHECK(refusal(clusters(16, 16)) == "");
  check_refused(clusters(12, 8), "12 blocks are not whole clusters");
  check_refused(clusters(12, 8),
                "failed: a kernel launch error has occurred due to cluster misconfiguration "
                "[cudaErrorInvalidClusterSize], grid (12, 1, 1), block (1, 1, 1), shared memory "
                "0, clusters of 8: ");
  check_refused(clusters(17, 17), "a cluster has 1 to 16 blocks");
  check_refused(clusters(8, 0), "a cluster has 1 to 16 blocks");
  simt::Device without;
  without.cluster_limit = 1;
  simt::set_device(without);
  CHECK(refusal(clusters(8, 1)) == "");
  check_refused(clusters(8, 2), "a cluster has 1 to 1 blocks");
  simt::set_device({});
}

TEST(a_cluster_must_fit_a_gpc) {
  simt::Device small;
  small.sm_count = 20;
  small.sms_per_gpc = 10;
  simt::set_device(small);
  const int whole_sm = 200 * 1024;
  CHECK(refusal(clusters(40, 10, 32, whole_sm)) == "");
  check_refused(clusters(48, 12, 32, whole_sm), "no cluster fits the SMs of a GPC at once");
  CHECK(refusal(clusters(48, 12, 32, whole_sm / 2)) == "");
  simt::set_device({});
}

TEST(resident_blocks_are_those_of_whole_clusters) {
  const int whole_sm = 200 * 1024;
  CHECK(resident(clusters(1, 1, 32, whole_sm)) == 132);
  CHECK(resident(clusters(1, 1, 1024)) == 2 * 132);
  CHECK(resident(clusters(8, 8, 32, whole_sm)) == 120);
  CHECK(resident(clusters(1, 8, 32, whole_sm)) == 120);  // whatever the grid
  CHECK(resident(clusters(16, 16, 32, whole_sm)) == 7 * 16);
  CHECK(resident(clusters(16, 16, 1024)) == 16 * (7 * 2 + 1));
  CHECK(resident(clusters(17, 17)) == 0);
  CHECK(resident(clusters(8, 0)) == 0);
  simt::set_registers("nothing", 255);
  CHECK(resident(clusters(1, 1, 256)) == 132);
  simt::set_registers("nothing", 0);
  check_refused(clusters(1, 1, 32, 300 * 1024), "invalid argument");
  CHECK(contains(failure_of([] { resident(clusters(1, 1, 32, 300 * 1024)); }), "invalid argument"));
  simt::Device small;
  small.sm_count = 5;
  small.sms_per_gpc = 10;
  simt::set_device(small);
  CHECK(resident(clusters(8, 8, 32, whole_sm)) == 0);
  simt::set_device({});
}

TEST(a_cooperative_launch_of_clusters_is_resident_as_a_whole) {
  const int whole_sm = 200 * 1024;
  Launch how = clusters(120, 8, 32, whole_sm);
  how.cooperative = true;
  CHECK(refusal(how) == "");
  how.grid_x = 128;
  check_refused(how, "at most 120 are resident at once");
}

TEST(the_log_tells_the_clusters) {
  simt::clear_log();
  refusal(clusters(16, 8));
  refusal(clusters(16, 1));
  CHECK(simt::log()[0].cluster_blocks == 8 && simt::log()[1].cluster_blocks == 1);
}

}  // namespace
