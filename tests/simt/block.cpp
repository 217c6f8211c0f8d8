// Blocks as they start and end, their threads, their shared memory.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "simt/report.h"
#include "simt/state.h"

namespace simt {
namespace {

constexpr size_t kStackBytes = (kAsan || kTsan) ? 256 * 1024 : 64 * 1024;
constexpr size_t kStaticShared = 48 * 1024;  // that a block may declare without opting in
constexpr int kTsanThreads = 8000;           // ThreadSanitizer dies a little later

// Threads whose fibers wait for a CUDA thread to run, and all there are; never destroyed, as a
// fiber cannot end.
std::vector<Thread*>& idle = *new std::vector<Thread*>;
std::vector<Thread*>& all = *new std::vector<Thread*>;

Thread& take_thread() {
  if (idle.empty()) {
    if (kTsan && all.size() >= kTsanThreads) {
      throw std::runtime_error("more than 8000 threads at once: ThreadSanitizer cannot watch them");
    }
    all.push_back(new Thread(kStackBytes));
    idle.push_back(all.back());
  }
  Thread* thread = idle.back();
  idle.pop_back();
  return *thread;
}

unsigned char* allocate_poisoned(size_t bytes, size_t alignment) {
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), bytes) != 0) {
    throw std::bad_alloc();
  }
  std::memset(memory, kPoison, bytes);
  return static_cast<unsigned char*>(memory);
}

// Poisoned; null as a key is the dynamic one's.
void add_shared(Block& block, const void* key, size_t bytes, size_t alignment) {
  block.shared.push_back({key, allocate_poisoned(bytes, alignment), bytes, alignment});
}

const SharedRegion* region_at(const Block& block, const void* p, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(p);
  for (const SharedRegion& region : block.shared) {
    if (at >= region.data && at + bytes <= region.data + region.bytes) return &region;
  }
  return nullptr;
}

const SharedRegion* region_of(const Block& block, const void* key) {
  for (const SharedRegion& region : block.shared) {
    if (region.key == key) return &region;
  }
  return nullptr;
}

void start_block(int64_t index, const std::shared_ptr<Cluster>& cluster) {
  Run& run = *current_run;
  run.alive.push_back(std::make_unique<Block>(index, run.launch, cluster));
  Block& block = *run.alive.back();
  cluster->blocks.push_back(&block);
  const int threads = run.launch.threads;
  for (int t = 0; t < threads; ++t) {
    Thread& thread = take_thread();
    thread.block = &block;
    thread.warp = &block.warps[t / kLanes];
    thread.lane = t % kLanes;
    thread.here = {t,
                   threads,
                   block.x,
                   block.y,
                   static_cast<int>(run.launch.grid_x),
                   static_cast<int>(run.launch.grid_y),
                   block.rank,
                   run.launch.cluster_blocks};
    thread.ended = false;
    thread.copies.clear();
    thread.copy_groups = 0;
    block.threads.push_back(&thread);
    thread.warp->lanes |= 1u << thread.lane;
    wake(thread);
  }
  block.live = threads;
}

void end_block(Block& block) {
  require_stores_landed(block);
  for (Thread* thread : block.threads) {
    if (!thread->fiber.intact()) fail("its local variables do not fit the stack", *thread, {});
    idle.push_back(thread);
  }
  forget(block);
  block.cluster->blocks[block.rank] = nullptr;
  auto& alive = current_run->alive;
  const auto found = std::find_if(alive.begin(), alive.end(),
                                  [&](const auto& other) { return other.get() == &block; });
  std::swap(*found, alive.back());
  alive.pop_back();
}

void require_no_one_waits_for(const Thread& thread) {
  const auto require_empty = [&](const Barrier& barrier, const char* whose) {
    if (barrier.arrived == 0) return;
    fail("exits while " + std::to_string(barrier.arrived) + " threads of its " + whose + " at " +
             to_string(barrier.site),
         thread, {});
  };
  require_empty(thread.block->barriers[0], "block wait at sync_block");
  require_empty(thread.block->cluster->barrier, "cluster wait at sync_cluster");
  for (const Meeting& meeting : thread.warp->meetings) {
    if (meeting.mask >> thread.lane & 1) {
      fail(std::string("exits while lanes ") + hexadecimal(meeting.arrived) +
               " of its warp wait for it in " + meeting.operation->name + " at " +
               to_string(meeting.site),
           thread, {});
    }
  }
}

}  // namespace

Thread::Thread(size_t stack_bytes) : fiber(serve_threads, stack_bytes) {}

Block::Block(int64_t index, const Launch& launch, std::shared_ptr<Cluster> its_cluster)
    : index(index),
      x(static_cast<int>(index % launch.grid_x)),
      y(static_cast<int>(index / launch.grid_x)),
      cluster(std::move(its_cluster)),
      rank(static_cast<int>(index % launch.cluster_blocks)),
      warps((launch.threads + kLanes - 1) / kLanes) {
  threads.reserve(launch.threads);
  for (size_t w = 0; w < warps.size(); ++w) warps[w].index = static_cast<int>(w);
  if (launch.shared_bytes > 0) add_shared(*this, nullptr, launch.shared_bytes, 128);
}

Block::~Block() {
  for (const SharedRegion& region : shared) std::free(region.data);
}

void start_blocks() {
  Run& run = *current_run;
  const int size = run.launch.cluster_blocks;
  const int64_t resident =
      run.launch.cooperative ? run.blocks : settings().resident_threads / run.launch.threads;
  const auto one_more_fits = [&] {
    const auto alive = static_cast<int64_t>(run.alive.size());
    return alive == 0 || alive + size <= resident;
  };
  while (run.next_block < run.blocks && one_more_fits()) {
    const auto cluster = std::make_shared<Cluster>();
    for (int rank = 0; rank < size; ++rank) start_block(run.next_block++, cluster);
  }
}

void end_thread() {
  Thread& thread = *current;
  Block& block = *thread.block;
  require_copies_waited();
  require_no_one_waits_for(thread);
  progress();
  release(&current_run->end_tag);
  thread.ended = true;
  thread.wait = {};
  ++block.cluster->exited;
  if (--block.live == 0) {
    end_block(block);
    start_blocks();
    if (current_run->alive.empty()) {
      return_to_host();
      return;
    }
  }
  switch_to_next();
}

void drop_threads() {
  current_run->alive.clear();
  idle.clear();
  if (kTsan) all.clear();  // it cannot restart a fiber
  for (Thread* thread : all) {
    thread->fiber.restart();
    idle.push_back(thread);
  }
}

void* shared_dynamic() {
  const Quiet quiet;
  const std::vector<SharedRegion>& shared = current->block->shared;
  const bool any = current_run->launch.shared_bytes > 0;
  return any ? shared.front().data : nullptr;
}

void* shared_array(const void* key, size_t bytes, size_t alignment, Site site) {
  const Quiet quiet;
  Block& block = *current->block;
  const SharedRegion* known = region_of(block, key);
  if (known != nullptr) return known->data;
  size_t declared = bytes;
  for (const SharedRegion& region : block.shared) {
    if (region.key != nullptr) declared += region.bytes;
  }
  const size_t most = settings().device.shared_per_block;
  if (declared > kStaticShared || declared + current_run->launch.shared_bytes > most) {
    fail("static shared memory of " + std::to_string(declared) +
             " bytes: at most 49152, and with the dynamic " +
             std::to_string(current_run->launch.shared_bytes) + " at most " + std::to_string(most),
         site);
  }
  add_shared(block, key, bytes, alignment);
  return block.shared.back().data;
}

void require_shared(const void* p, size_t bytes, const char* what, Site site) {
  const Quiet quiet;
  if (region_at(*current->block, p, bytes) != nullptr) return;
  fail(std::string(what) + ": the address is not in shared memory of this block", site);
}

void* same_place(const void* p, size_t bytes, Block& to, const char* what, Site site) {
  require_shared(p, bytes, what, site);
  const SharedRegion own = *region_at(*current->block, p, bytes);
  if (region_of(to, own.key) == nullptr) add_shared(to, own.key, own.bytes, own.alignment);
  return region_of(to, own.key)->data + (static_cast<const unsigned char*>(p) - own.data);
}

}  // namespace simt
