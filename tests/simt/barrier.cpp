// Barriers of a block, and mbarriers.
#include "simt/report.h"
#include "simt/state.h"

namespace simt {
namespace {

constexpr int kMaxMBarrierCount = (1 << 20) - 1;

void arrive(Barrier& barrier, int threads, const char* what, Site site) {
  if (barrier.arrived == 0) {
    barrier.threads = threads;
    barrier.site = site;
    barrier.tag = fresh_tag();
  }
  const Tag tag = barrier.tag;
  release(tag);
  if (++barrier.arrived < threads) {
    barrier.waiting.push_back(current);
    suspend({Wait::kBarrier, what, site, &barrier});
  } else {
    progress();
    barrier.arrived = 0;
    for (Thread* thread : barrier.waiting) wake(*thread);
    barrier.waiting.clear();
    let_others_run();
  }
  acquire(tag);
}

// What an mbarrier's 8 bytes hold while it lives; other bytes there mean that they were
// overwritten.
uint64_t mark_of(const uint64_t* bar) {
  return 0xB4221E20B4221E20u ^ reinterpret_cast<uintptr_t>(bar);
}

MBarrier* find(const uint64_t* bar) {
  for (MBarrier& barrier : current->block->mbarriers) {
    if (barrier.address == bar) return &barrier;
  }
  return nullptr;
}

MBarrier& require_live(const uint64_t* bar, const char* what, Site site) {
  require_shared(bar, sizeof *bar, what, site);
  MBarrier* barrier = find(bar);
  if (barrier == nullptr) fail(std::string(what) + ": not an initialised mbarrier", site);
  if (*bar != mark_of(bar)) fail(std::string(what) + ": the mbarrier was overwritten", site);
  return *barrier;
}

void complete_if_done(MBarrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  progress();
  ++barrier.phase;
  barrier.pending = barrier.count;
  barrier.tags[barrier.phase % 2] = fresh_tag();
  for (Thread* thread : barrier.waiting) wake(*thread);
  barrier.waiting.clear();
}

}  // namespace

void sync_block(Site site) {
  const Quiet quiet;
  Block& block = *current->block;
  Barrier& barrier = block.barriers[0];
  const int threads = static_cast<int>(block.threads.size());
  if (block.live < threads) {
    fail("sync_block after " + std::to_string(threads - block.live) +
             " threads of the block have exited",
         site);
  }
  if (barrier.arrived > 0 && !(barrier.site == site)) {
    fail("sync_block while other threads of the block wait at another, at " +
             to_string(barrier.site),
         site);
  }
  arrive(barrier, threads, "sync_block", site);
}

void sync_named(int id, int threads, Site site) {
  const Quiet quiet;
  Block& block = *current->block;
  if (id < 1 || id > 15) fail("sync_named: barrier " + std::to_string(id) + " of 1 to 15", site);
  const int all = static_cast<int>(block.threads.size());
  if (threads < 1 || threads % kLanes != 0 || threads > all) {
    fail("sync_named: " + std::to_string(threads) +
             " threads, which is no multiple of 32 within the block's " + std::to_string(all),
         site);
  }
  Barrier& barrier = block.barriers[id];
  if (barrier.arrived > 0 && barrier.threads != threads) {
    fail("sync_named: barrier " + std::to_string(id) + " with " + std::to_string(threads) +
             " threads, where others wait for " + std::to_string(barrier.threads) + " at " +
             to_string(barrier.site),
         site);
  }
  arrive(barrier, threads, "sync_named", site);
}

void mbarrier_init(uint64_t* bar, int count, Site site) {
  const Quiet quiet;
  require_shared(bar, sizeof *bar, "mbarrier_init", site);
  if (reinterpret_cast<uintptr_t>(bar) % 8 != 0) fail("mbarrier_init: misaligned", site);
  if (count < 1 || count > kMaxMBarrierCount) {
    fail("mbarrier_init: a count of " + std::to_string(count), site);
  }
  if (find(bar) != nullptr) fail("mbarrier_init: already initialised", site);
  MBarrier barrier{bar, count, count, 0, 0, {fresh_tag(), fresh_tag()}, {}};
  current->block->mbarriers.push_back(std::move(barrier));
  *bar = mark_of(bar);
}

void mbarrier_arrive(uint64_t* bar, int expected_bytes, Site site) {
  const Quiet quiet;
  MBarrier& barrier = require_live(bar, "mbarrier_arrive", site);
  if (barrier.pending == 0) {
    fail("mbarrier_arrive: more than the " + std::to_string(barrier.count) + " arrivals of phase " +
             std::to_string(barrier.phase),
         site);
  }
  release(barrier.tags[barrier.phase % 2]);
  barrier.bytes += expected_bytes;
  --barrier.pending;
  complete_if_done(barrier);
}

void mbarrier_complete(uint64_t* bar, int bytes, Site site) {
  const Quiet quiet;
  MBarrier& barrier = require_live(bar, "mbarrier_complete", site);
  release(barrier.tags[barrier.phase % 2]);
  barrier.bytes -= bytes;
  complete_if_done(barrier);
}

void mbarrier_wait(uint64_t* bar, int parity, Site site) {
  const Quiet quiet;
  MBarrier& barrier = require_live(bar, "mbarrier_wait", site);
  if (parity != 0 && parity != 1)
    fail("mbarrier_wait: a parity of " + std::to_string(parity), site);
  if (static_cast<int>(barrier.phase % 2) != parity) {
    if (barrier.phase > 0) acquire(barrier.tags[parity]);
    let_others_run();
    return;
  }
  const Tag tag = barrier.tags[parity];
  barrier.waiting.push_back(current);
  suspend({Wait::kMBarrier, "mbarrier_wait", site, &barrier});
  acquire(tag);
}

void mbarrier_invalidate(uint64_t* bar, Site site) {
  const Quiet quiet;
  MBarrier& barrier = require_live(bar, "mbarrier_invalidate", site);
  if (!barrier.waiting.empty()) fail("mbarrier_invalidate: threads wait at it", site);
  barrier.address = nullptr;
  *bar = ~uint64_t{0};
}

}  // namespace simt
