// The blocks of a cluster together: their barrier, and stores into one another's shared memory.
#include <algorithm>
#include <cstring>

#include "simt/report.h"
#include "simt/state.h"

namespace simt {
namespace {

constexpr size_t kStoreBytes = 16;

// At random: most stores land soon, some late, one in four when all threads wait. In order and in
// reverse: then only, the oldest or the newest first.
Due draw_due() {
  constexpr int kBits[] = {3, 9, 15, 24};
  Run& run = *current_run;
  const uint64_t number = run.stores_issued++;
  switch (settings().schedule) {
    case Schedule::kInOrder:
      return {~uint64_t{0}, number};
    case Schedule::kReverse:
      return {~uint64_t{0}, ~number};
    default:
      return {run.ticks + random_bits() % (1u << kBits[random_bits() % 4]), number};
  }
}

Block& target_of(int rank, Site site) {
  const Block& own = *current->block;
  const Cluster& cluster = *own.cluster;
  const int blocks = static_cast<int>(cluster.blocks.size());
  if (rank < 0 || rank >= blocks) {
    fail("store_async to rank " + std::to_string(rank) + " of a cluster of " +
             std::to_string(blocks),
         site);
  }
  if (rank != own.rank && cluster.syncs == 0) {
    fail("store_async to rank " + std::to_string(rank) +
             " before a first sync_cluster: that block may not have started",
         site);
  }
  Block* block = cluster.blocks[rank];
  if (block == nullptr) {
    fail("store_async to rank " + std::to_string(rank) + ", a block that has exited", site);
  }
  return *block;
}

MBarrier& mbarrier_of(Block& block, const uint64_t* bar, const Thread& issuer, Site site) {
  MBarrier* barrier = find_mbarrier(block, bar);
  if (barrier == nullptr) {
    fail("store_async: not an initialised mbarrier of " + name(block), issuer, site);
  }
  if (overwritten(*barrier)) {
    fail("store_async: the mbarrier of " + name(block) + " was overwritten", issuer, site);
  }
  return *barrier;
}

// Another block completes it: its initialisation must be visible there.
void require_published(const MBarrier& barrier, const Block& block, Site site) {
  if (barrier.published < 0) {
    fail("store_async: mbarrier_publish is missing after mbarrier_init in " + name(block), site);
  }
  if (barrier.published == block.cluster->syncs) {
    fail("store_async: no sync_cluster since mbarrier_publish in " + name(block), site);
  }
}

void land(const AsyncStore& store) {
  const auto untouched = [](unsigned char byte) { return byte == kPoison; };
  if (!std::all_of(store.place, store.place + kStoreBytes, untouched)) {
    fail("shared memory of " + name(*store.to) +
             " was written while the store_async into it was in flight",
         *store.issuer, store.site);
  }
  MBarrier& barrier = mbarrier_of(*store.to, store.bar, *store.issuer, store.site);
  std::memcpy(store.place, store.bytes.data(), kStoreBytes);
  Phase& phase = barrier.phases[barrier.phase % 2];
  if (kTsan) phase.stores.push_back(store.tag);
  phase.remote |= store.issuer->block != store.to;
  barrier.bytes -= kStoreBytes;
  progress();
  complete_if_done(barrier);
}

}  // namespace

void sync_cluster(Site site) {
  const Quiet quiet;
  Cluster& cluster = *current->block->cluster;
  Barrier& barrier = cluster.barrier;
  const int threads = static_cast<int>(cluster.blocks.size()) * current_run->launch.threads;
  if (cluster.exited > 0) {
    fail("sync_cluster after " + std::to_string(cluster.exited) +
             " threads of the cluster have exited",
         site);
  }
  if (barrier.arrived > 0 && !(barrier.site == site)) {
    fail("sync_cluster while other threads of the cluster wait at another, at " +
             to_string(barrier.site),
         site);
  }
  if (barrier.arrived + 1 == threads) {
    ++cluster.syncs;
    for (Block* block : cluster.blocks) block->last_store = {};
  }
  arrive(barrier, threads, "sync_cluster", site);
}

void store_async(void* place, const void* value, uint64_t* bar, int rank, Site site) {
  AsyncStore store{};
  {
    const Quiet quiet;
    if (reinterpret_cast<uintptr_t>(place) % kStoreBytes != 0) {
      fail("store_async: the address is no multiple of 16", site);
    }
    Block &from = *current->block, &to = target_of(rank, site);
    void* place_there = same_place(place, kStoreBytes, to, "store_async", site);
    void* bar_there = same_place(bar, sizeof *bar, to, "store_async's mbarrier", site);
    store.issuer = current;
    store.to = &to;
    store.place = static_cast<unsigned char*>(place_there);
    store.bar = static_cast<uint64_t*>(bar_there);
    store.tag = fresh_tag();
    store.site = site;
    const MBarrier& barrier = mbarrier_of(to, store.bar, *current, site);
    if (&from != &to) {
      require_published(barrier, to, site);
      from.last_store = to.last_store = site;
    }
    require_no_store_into(place_there, "store_async", site);
  }
  // Seen by the sanitizers: the value is readable, the place is no longer anyone's.
  std::memcpy(store.bytes.data(), value, kStoreBytes);
  note_read(value, kStoreBytes);
  std::memset(store.place, kPoison, kStoreBytes);
  note_written(store.place, kStoreBytes);

  const Quiet quiet;
  release(store.tag);
  current_run->stores.emplace(draw_due(), store);
  current_run->store_places.insert(store.place);
}

void land_due_stores() {
  Run& run = *current_run;
  ++run.ticks;
  while (!run.stores.empty() && run.stores.begin()->first.first <= run.ticks) land_a_store();
}

bool land_a_store() {
  Run& run = *current_run;
  if (run.stores.empty()) return false;
  const AsyncStore store = run.stores.begin()->second;
  run.stores.erase(run.stores.begin());
  run.store_places.erase(store.place);
  land(store);
  return true;
}

void require_no_store_into(const void* place, const char* what, Site site) {
  if (current_run->store_places.count(place) == 0) return;
  for (const auto& [due, store] : current_run->stores) {
    if (store.place != place) continue;
    fail(std::string(what) + ": a store_async of " + name(*store.issuer) +
             " into this place is in flight, issued at " + to_string(store.site),
         site);
  }
}

void require_stores_landed(const Block& block) {
  for (const auto& [due, store] : current_run->stores) {
    if (store.to != &block && store.issuer->block != &block) continue;
    fail("exits while the store_async of " + name(*store.issuer) + " to " + name(*store.to) +
             " is in flight",
         store.site);
  }
  if (block.last_store.line == 0) return;
  fail("exits without a sync_cluster after the last store_async from or to another block",
       block.last_store);
}

}  // namespace simt
