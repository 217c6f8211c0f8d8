// Barriers of a block, and mbarriers.
#include "simt/report.h"
#include "simt/state.h"

namespace simt {
namespace {

constexpr int kMaxMBarrierCount = (1 << 20) - 1;

// What an mbarrier's 8 bytes hold while it lives; anything else means that they were overwritten.
uint64_t mark_of(const uint64_t* bar) {
  return 0xB4221E20B4221E20u ^ reinterpret_cast<uintptr_t>(bar);
}

MBarrier& require_live(const uint64_t* bar, const char* what, Site site) {
  require_shared(bar, sizeof *bar, what, site);
  MBarrier* barrier = find_mbarrier(*current->block, bar);
  if (barrier == nullptr) fail(std::string(what) + ": not an initialised mbarrier", site);
  if (overwritten(*barrier)) fail(std::string(what) + ": the mbarrier was overwritten", site);
  return *barrier;
}

// The running thread goes on after the phase that it has waited for.
void pass_phase(Scope scope, const char* what, Site site) {
  const Phase& phase = current->phase;
  if (phase.remote && scope == Scope::kBlock) {
    fail(std::string(what) +
             " of a phase that another block's store_async completed: needs mbarrier_wait_cluster",
         site);
  }
  if (phase.tag != nullptr) acquire(phase.tag);
  for (const Tag tag : phase.stores) acquire(tag);
}

void wait_for_phase(uint64_t* bar, int parity, Scope scope, const char* what, Site site) {
  MBarrier& barrier = require_live(bar, what, site);
  if (parity != 0 && parity != 1) {
    fail(std::string(what) + ": a parity of " + std::to_string(parity), site);
  }
  if (static_cast<int>(barrier.phase % 2) != parity) {
    current->phase = barrier.phases[parity];
    pass_phase(scope, what, site);
    let_others_run();
    return;
  }
  barrier.waiting.push_back(current);
  suspend({Wait::kMBarrier, what, site, &barrier});
  pass_phase(scope, what, site);
}

}  // namespace

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

MBarrier* find_mbarrier(Block& block, const uint64_t* bar) {
  for (MBarrier& barrier : block.mbarriers) {
    if (barrier.address == bar) return &barrier;
  }
  return nullptr;
}

bool overwritten(const MBarrier& barrier) { return *barrier.address != mark_of(barrier.address); }

void complete_if_done(MBarrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  progress();
  ++barrier.phase;
  barrier.pending = barrier.count;
  for (Thread* thread : barrier.waiting) {
    thread->phase = barrier.phases[(barrier.phase - 1) % 2];
    wake(*thread);
  }
  barrier.waiting.clear();
  barrier.phases[barrier.phase % 2] = {fresh_tag()};
}

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
  Block& block = *current->block;
  if (find_mbarrier(block, bar) != nullptr) fail("mbarrier_init: already initialised", site);
  MBarrier barrier;
  barrier.address = bar;
  barrier.count = barrier.pending = count;
  barrier.phases[0].tag = fresh_tag();
  barrier.initialiser = current;
  block.mbarriers.push_back(std::move(barrier));
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
  release(barrier.phases[barrier.phase % 2].tag);
  barrier.bytes += expected_bytes;
  --barrier.pending;
  complete_if_done(barrier);
}

void mbarrier_complete(uint64_t* bar, int bytes, Site site) {
  const Quiet quiet;
  MBarrier& barrier = require_live(bar, "mbarrier_complete", site);
  release(barrier.phases[barrier.phase % 2].tag);
  barrier.bytes -= bytes;
  complete_if_done(barrier);
}

void mbarrier_wait(uint64_t* bar, int parity, Site site) {
  const Quiet quiet;
  wait_for_phase(bar, parity, Scope::kBlock, "mbarrier_wait", site);
}

void mbarrier_wait_cluster(uint64_t* bar, int parity, Site site) {
  const Quiet quiet;
  wait_for_phase(bar, parity, Scope::kCluster, "mbarrier_wait_cluster", site);
}

void mbarrier_publish() {
  const Quiet quiet;
  for (MBarrier& barrier : current->block->mbarriers) {
    if (barrier.initialiser == current && barrier.published < 0) {
      barrier.published = current->block->cluster->syncs;
    }
  }
}

void mbarrier_invalidate(uint64_t* bar, Site site) {
  const Quiet quiet;
  MBarrier& barrier = require_live(bar, "mbarrier_invalidate", site);
  if (!barrier.waiting.empty()) fail("mbarrier_invalidate: threads wait at it", site);
  barrier.address = nullptr;
  *bar = ~uint64_t{0};
}

}  // namespace simt
