// The executor's own state: a launch, its blocks, their warps and threads.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "simt/entry.h"
#include "simt/executor.h"
#include "simt/fiber.h"

namespace simt {

inline constexpr int kLanes = 32;
inline constexpr int kPoison = 0xFF;  // every byte of memory not yet written: a NaN

struct Block;
struct Cluster;
struct Thread;
struct Warp;

// What a thread waits for.
struct Wait {
  enum Kind { kNothing, kBarrier, kMeeting, kMBarrier, kPoll } kind = kNothing;
  const char* what = "";
  Site site;
  const void* object = nullptr;  // the Barrier or MBarrier
};

struct AsyncCopy {
  unsigned char* to;
  const unsigned char* from;
  int bytes;
  int64_t group;
  bool landed;
  Site site;
};

// 16 bytes under way to a block's shared memory, and then to its mbarrier.
struct AsyncStore {
  const Thread* issuer;
  Block* to;
  unsigned char* place;
  uint64_t* bar;
  std::array<unsigned char, 16> bytes;
  Tag tag;  // of what its issuer did before
  Site site;
};
// The Run::ticks at which it lands, if something else can run until then; and its number.
using Due = std::pair<uint64_t, uint64_t>;

// What a thread that has waited for a phase of an mbarrier acquires.
struct Phase {
  Tag tag = nullptr;
  std::vector<Tag> stores = {};  // those of AsyncStores, for ThreadSanitizer only
  bool remote = false;           // another block completed some of it
};

// A CUDA thread; its fiber serves another one when it has ended.
struct Thread {
  explicit Thread(size_t stack_bytes);

  Here here{};
  Fiber fiber;
  Block* block = nullptr;
  Warp* warp = nullptr;
  int lane = 0;
  bool ended = false;
  bool ready = false;
  Wait wait;
  std::vector<AsyncCopy> copies;
  int64_t copy_groups = 0;  // committed
  Phase phase;              // that it has waited for last
};

// Lanes that wait for the others of their mask.
struct Meeting {
  const Operation* operation;
  uint32_t mask;
  uint32_t arrived;
  Site site;
  Tag tag;
  void* operands[kLanes];
};

struct Warp {
  int index = 0;
  uint32_t lanes = 0;  // that exist
  uint32_t ready = 0;
  std::vector<Meeting> meetings;
};

struct Barrier {
  int arrived = 0;
  int threads = 0;  // that the first to arrive expects
  Site site;
  Tag tag = nullptr;
  std::vector<Thread*> waiting;
};

struct MBarrier {
  uint64_t* address = nullptr;
  int count = 0;      // arrivals that complete a phase
  int pending = 0;    // arrivals that this phase still lacks
  int64_t bytes = 0;  // transaction bytes that it still lacks
  uint64_t phase = 0;
  Phase phases[2] = {};  // the last even and odd one
  const Thread* initialiser = nullptr;
  int64_t published = -1;  // Cluster::syncs at its mbarrier_publish
  std::vector<Thread*> waiting = {};
};

struct SharedRegion {
  const void* key;  // null: dynamic
  unsigned char* data;
  size_t bytes, alignment;
};

// The blocks that start together; in a launch without clusters, one.
struct Cluster {
  std::vector<Block*> blocks;  // by rank; null: has ended
  Barrier barrier;
  int64_t syncs = 0;  // that all have passed
  int exited = 0;     // threads
  char fence_tag = 0;
  std::unordered_map<const void*, char> tags;  // of addresses, for releases and acquires
};

struct Block {
  Block(int64_t index, const Launch& launch, std::shared_ptr<Cluster> cluster);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  int64_t index;
  int x, y;
  std::shared_ptr<Cluster> cluster;
  int rank;             // in it
  Site last_store;      // from or to another block, since the last sync_cluster; line 0: none
  int live = 0;         // threads that have not ended
  int ready_slot = -1;  // in Run::ready
  uint32_t ready_warps = 0;
  std::vector<Thread*> threads;
  std::vector<Warp> warps;
  Barrier barriers[16];  // 0: sync_block
  std::vector<SharedRegion> shared;
  std::deque<MBarrier> mbarriers;  // a thread that waits points to its
  char fence_tag = 0;
  std::unordered_map<const void*, char> tags;  // of addresses, for releases and acquires
};

// What has happened to the bytes of global memory in this launch, 4096 bytes a page.
struct Page {
  uint64_t written[64] = {};
  uint64_t read_constant[64] = {};
};

struct AtomicUse {
  int64_t block;  // the first that used it
  Scope narrowest;
  bool by_blocks, by_clusters;  // several
};

// A launch.
struct Run {
  Run(const Launch& launch, const Body& body) : launch(launch), body(body) {}

  Launch launch;
  Body body;
  int64_t number = 0;      // of launches since the seed was set
  int64_t blocks = 0;      // of the grid
  int64_t next_block = 0;  // to start
  std::vector<std::unique_ptr<Block>> alive;
  std::vector<Block*> ready;  // those with a thread that can run
  uint64_t switches = 0;
  int64_t idle_pauses = 0;  // since a thread last did anything but poll
  uint64_t ticks = 0;       // scheduling points
  uint64_t stores_issued = 0;
  std::map<Due, AsyncStore> stores;              // in flight
  std::unordered_set<const void*> store_places;  // theirs
  bool failed = false;
  std::string failure;

  std::unordered_map<uintptr_t, Page> pages;
  uintptr_t last_page_key = ~uintptr_t{0};
  Page* last_page = nullptr;
  std::unordered_map<const void*, AtomicUse> atomics;
  char start_tag = 0, end_tag = 0, fence_tag = 0;
  std::unordered_map<const void*, char> tags;
};

struct Settings {
  Device device;
  Schedule schedule = Schedule::kRandom;
  uint64_t seed = 1;
  int64_t launches = 0;  // since the seed was set
  int resident_threads = 32768;
  std::unordered_map<std::string, int> registers;
};
Settings& settings();

// Of the launch that runs.
extern Run* current_run;
extern Thread* current;  // null: the host runs

// ---- random numbers of the launch

void seed_random(uint64_t seed);
uint64_t random_bits();
inline bool one_in(unsigned n) { return random_bits() % n == 0; }

// ---- schedule.cpp

// Ends the launch, as an exception of the running thread.
[[noreturn]] void fail_launch(const std::string& message);
[[noreturn]] void fail(const std::string& message, const Thread& thread, Site site);
[[noreturn]] void fail(const std::string& message, Site site);  // of the running thread

// The running thread waits until another wakes it.
void suspend(const Wait& wait);
void wake(Thread& thread);
// Something other than polling happened.
inline void progress() { current_run->idle_pauses = 0; }
// Lets another thread run; the running one stays ready.
void yield(bool to_another_block);
// Now and then, a yield: after the running thread has let others go on.
void let_others_run();
// The running thread has nothing more to do.
void switch_to_next();
void return_to_host();
// Runs from the host until the launch has ended or failed.
void run_threads();
// This block has ended.
void forget(const Block& block);
// The entry of every fiber.
void serve_threads();

// A tag that no one has used of late.
Tag fresh_tag();

// ---- barrier.cpp

// The running thread arrives at a barrier for `threads`, and waits for the others.
void arrive(Barrier& barrier, int threads, const char* what, Site site);
// Null: none is initialised there.
MBarrier* find_mbarrier(Block& block, const uint64_t* bar);
bool overwritten(const MBarrier& barrier);
// Completes the phase where nothing is lacking.
void complete_if_done(MBarrier& barrier);

// ---- cluster.cpp

// Stores whose time has come land.
void land_due_stores();
// The one that is due next lands. False: none is in flight.
bool land_a_store();
void require_no_store_into(const void* place, const char* what, Site site);
// Of a block whose last thread is the running one.
void require_stores_landed(const Block& block);

// ---- block.cpp

void start_blocks();
// Where block `to` has what the running block has at p, in `bytes` of its shared memory.
void* same_place(const void* p, size_t bytes, Block& to, const char* what, Site site);
// The running thread has ended. Returns when its fiber has another one to run.
void end_thread();
// Forgets all threads of a launch that failed.
void drop_threads();

// ---- memory.cpp

// Some of the running thread's copies land now.
void land_some_copies();
void require_copies_waited();

}  // namespace simt
