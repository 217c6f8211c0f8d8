// Which thread runs next, and what ends a launch early.
#include <algorithm>
#include <exception>
#include <limits>
#include <sstream>

#include "simt/report.h"
#include "simt/state.h"

namespace simt {

const Here* here = nullptr;
int accesses_left = std::numeric_limits<int>::max();
Run* current_run = nullptr;
Thread* current = nullptr;

namespace {

// Unwinds the stack of the thread that finds a launch wrong.
struct Failure {
  std::string message;
};

// A random schedule stays with a warp, and with a block, for a while: warps and blocks then drift
// far apart, which an even choice among all threads would not bring about. And it is faster.
constexpr unsigned kStayInBlock = 32, kStayInWarp = 16;
constexpr unsigned kMeanAccesses = 64;  // between two preemptions
constexpr int64_t kPatience = 1000;     // polls in vain, then a store_async lands

Fiber* host = nullptr;
bool leave_block = false;
Block* last_block = nullptr;
int last_warp = 0, last_lane = 0;

uint64_t random_state = 1;

int lowest(uint32_t bits) { return __builtin_ctz(bits); }
int highest(uint32_t bits) { return 31 - __builtin_clz(bits); }
uint32_t above(int bit) { return bit == 31 ? 0 : ~0u << (bit + 1); }
uint32_t below(int bit) { return (1u << bit) - 1; }

int any(uint32_t bits) {
  const int turn = random_bits() & 31;
  const uint32_t turned = turn == 0 ? bits : bits >> turn | bits << (32 - turn);
  return (lowest(turned) + turn) & 31;
}

Thread* thread_of(Block* block, int warp, int lane) { return block->threads[warp * kLanes + lane]; }

Thread* next_in_order() {
  const std::vector<Block*>& ready = current_run->ready;
  if (last_block != nullptr && last_block->ready_slot >= 0) {
    const uint32_t lanes = last_block->warps[last_warp].ready & above(last_lane);
    if (lanes != 0) return thread_of(last_block, last_warp, lowest(lanes));
    const uint32_t warps = last_block->ready_warps & above(last_warp);
    if (warps != 0) {
      return thread_of(last_block, lowest(warps), lowest(last_block->warps[lowest(warps)].ready));
    }
  }
  // The next block, or the first.
  const int64_t after = last_block != nullptr ? last_block->index : -1;
  const auto rank = [&](const Block* b) {
    return b->index > after ? b->index : b->index + current_run->blocks;
  };
  Block* block = *std::min_element(ready.begin(), ready.end(), [&](const Block* a, const Block* b) {
    return rank(a) < rank(b);
  });
  const int warp = lowest(block->ready_warps);
  return thread_of(block, warp, lowest(block->warps[warp].ready));
}

Thread* next_in_reverse() {
  const std::vector<Block*>& ready = current_run->ready;
  if (last_block != nullptr && last_block->ready_slot >= 0) {
    const uint32_t lanes = last_block->warps[last_warp].ready & below(last_lane);
    if (lanes != 0) return thread_of(last_block, last_warp, highest(lanes));
    const uint32_t warps = last_block->ready_warps & below(last_warp);
    if (warps != 0) {
      return thread_of(last_block, highest(warps),
                       highest(last_block->warps[highest(warps)].ready));
    }
  }
  // The block before, or the last.
  const int64_t before = last_block != nullptr ? last_block->index : current_run->blocks;
  const auto rank = [&](const Block* b) {
    return b->index < before ? b->index : b->index - current_run->blocks;
  };
  Block* block = *std::max_element(ready.begin(), ready.end(), [&](const Block* a, const Block* b) {
    return rank(a) < rank(b);
  });
  const int warp = highest(block->ready_warps);
  return thread_of(block, warp, highest(block->warps[warp].ready));
}

Thread* next_at_random() {
  const std::vector<Block*>& ready = current_run->ready;
  Block* block = last_block;
  const bool stay_in_block =
      block != nullptr && block->ready_slot >= 0 && !leave_block && !one_in(kStayInBlock);
  if (!stay_in_block) block = ready[random_bits() % ready.size()];
  int warp = last_warp;
  const bool stay_in_warp = stay_in_block && block->warps[warp].ready != 0 && !one_in(kStayInWarp);
  if (!stay_in_warp) warp = any(block->ready_warps);
  return thread_of(block, warp, any(block->warps[warp].ready));
}

// Takes a thread off the ready ones. Fails where there is none.
Thread& take_next() {
  while (current_run->ready.empty() && land_a_store()) {
  }
  if (current_run->ready.empty()) fail_launch(describe_deadlock(*current_run));
  const Schedule schedule = settings().schedule;
  Thread* next = schedule == Schedule::kInOrder   ? next_in_order()
                 : schedule == Schedule::kReverse ? next_in_reverse()
                                                  : next_at_random();
  leave_block = false;
  Block* block = next->block;
  Warp* warp = next->warp;
  last_block = block;
  last_warp = warp->index;
  last_lane = next->lane;
  warp->ready &= ~(1u << next->lane);
  if (warp->ready == 0) block->ready_warps &= ~(1u << warp->index);
  if (block->ready_warps == 0) {
    std::vector<Block*>& ready = current_run->ready;
    ready[block->ready_slot] = ready.back();
    ready[block->ready_slot]->ready_slot = block->ready_slot;
    ready.pop_back();
    block->ready_slot = -1;
  }
  return *next;
}

void switch_from(Fiber& running, Thread& next) {
  current = &next;
  here = &next.here;
  ++current_run->switches;
  running.switch_to(next.fiber);
}

void draw_preemption() {
  accesses_left = settings().schedule == Schedule::kRandom
                      ? 1 + static_cast<int>(random_bits() % (2 * kMeanAccesses))
                      : std::numeric_limits<int>::max();
}

int64_t idle_limit() { return 200'000 + 100 * current_run->blocks; }

}  // namespace

void seed_random(uint64_t seed) {
  random_state = seed * 0x9E3779B97F4A7C15u + 0x2545F4914F6CDD1Du;
  if (random_state == 0) random_state = 1;
  for (int k = 0; k < 4; ++k) random_bits();
}

// xorshift64*.
uint64_t random_bits() {
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return (random_state * 0x2545F4914F6CDD1Du) >> 16;
}

Tag fresh_tag() {
  static char tags[1 << 16];
  static uint16_t next = 0;
  return &tags[next++];
}

void wake(Thread& thread) {
  Block* block = thread.block;
  thread.wait = {};
  thread.warp->ready |= 1u << thread.lane;
  block->ready_warps |= 1u << thread.warp->index;
  if (block->ready_slot < 0) {
    block->ready_slot = static_cast<int>(current_run->ready.size());
    current_run->ready.push_back(block);
  }
}

void switch_to_next() {
  Thread* self = current;
  Thread& next = take_next();
  if (&next != self) switch_from(self->fiber, next);
}

void suspend(const Wait& wait) {
  current->wait = wait;
  land_some_copies();
  land_due_stores();
  switch_to_next();
}

void yield(bool to_another_block) {
  land_some_copies();
  land_due_stores();
  wake(*current);
  leave_block = to_another_block;
  switch_to_next();
}

void preempt() {
  const Quiet quiet;
  draw_preemption();
  yield(one_in(4));
}

void let_others_run() {
  if (settings().schedule == Schedule::kRandom && one_in(4)) yield(false);
}

void pause(Site site, const char* what) {
  const Quiet quiet;
  if (++current_run->idle_pauses > idle_limit()) {
    fail_launch(describe_livelock(*current_run, *current, site));
  }
  land_some_copies();
  land_due_stores();
  if (current_run->idle_pauses % kPatience == 0) land_a_store();
  wake(*current);
  current->wait = {Wait::kPoll, what, site, nullptr};
  leave_block = true;
  switch_to_next();
}

void fail_launch(const std::string& message) { throw Failure{message}; }

void fail(const std::string& message, const Thread& thread, Site site) {
  std::ostringstream out;
  out << name(thread) << ": " << message;
  if (site.line > 0) out << ", at " << to_string(site);
  fail_launch(out.str());
}

void fail(const std::string& message, Site site) { fail(message, *current, site); }

void fault(const char* message, Site site) {
  const Quiet quiet;
  fail(message, site);
}

void return_to_host() {
  Thread* self = current;
  current = nullptr;
  here = nullptr;
  self->fiber.switch_to(*host);
}

void run_threads() {
  Fiber calling;
  host = &calling;
  last_block = nullptr;
  leave_block = false;
  draw_preemption();
  switch_from(calling, take_next());
  host = nullptr;
}

void forget(const Block& block) {
  if (last_block == &block) last_block = nullptr;
}

void serve_threads() {
  Run* run = current_run;
  try {
    for (;; run = current_run) {
      acquire(&run->start_tag);
      run->body.call(run->body.kernel, run->body.args);
      const Quiet quiet;
      end_thread();
    }
  } catch (const Failure& failure) {
    run->failure = failure.message;
  } catch (const std::exception& error) {
    run->failure = name(*current) + ": an exception left the kernel: " + error.what();
  }
  run->failed = true;
  return_to_host();
}

}  // namespace simt
