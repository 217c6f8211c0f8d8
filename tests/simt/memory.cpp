// Asynchronous copies; what is remembered of global memory; the order that fences and atomics make.
#include <algorithm>
#include <cstring>

#include "simt/report.h"
#include "simt/state.h"

namespace simt {
namespace {

constexpr size_t kCopyBytes = 16;
constexpr uintptr_t kPageBytes = 4096;

void land(AsyncCopy& copy) {
  for (size_t k = 0; k < kCopyBytes; ++k) {
    if (copy.to[k] != kPoison) {
      fail("shared memory was written while the asynchronous copy into it was in flight",
           copy.site);
    }
  }
  std::memset(copy.to, 0, kCopyBytes);
  std::memcpy(copy.to, copy.from, copy.bytes);
  copy.landed = true;
}

Page& page_of(uintptr_t address) {
  Run& run = *current_run;
  const uintptr_t key = address / kPageBytes;
  if (key != run.last_page_key) {
    run.last_page_key = key;
    run.last_page = &run.pages[key];
  }
  return *run.last_page;
}

// Sets the bits of [address, address + bytes) in `mine` of its page; the bits that were set in
// `other`. An access is aligned, at most 16 bytes: within a page, and within a word of 64 bits.
uint64_t mark(uintptr_t address, size_t bytes, uint64_t (Page::*mine)[64],
              uint64_t (Page::*other)[64]) {
  Page& page = page_of(address);
  const size_t byte = address % kPageBytes;
  const uint64_t bits = ((uint64_t{1} << bytes) - 1) << byte % 64;
  (page.*mine)[byte / 64] |= bits;
  return (page.*other)[byte / 64] & bits;
}

// The tags of `p` that an access of this scope takes part in: its block's, its cluster's, all
// blocks'.
template <class Visit>
void for_each_tag(const void* p, Scope scope, Visit visit) {
  visit(&current->block->tags[p]);
  if (scope != Scope::kBlock) visit(&current->block->cluster->tags[p]);
  if (scope == Scope::kDevice) visit(&current_run->tags[p]);
}

}  // namespace

void copy_async(void* shared, const void* global, int bytes, Site site) {
  {
    const Quiet quiet;
    require_shared(shared, kCopyBytes, "copy_async_16", site);
    if (reinterpret_cast<uintptr_t>(shared) % kCopyBytes != 0 ||
        reinterpret_cast<uintptr_t>(global) % kCopyBytes != 0) {
      fail("copy_async_16: an address is no multiple of 16", site);
    }
    if (bytes < 0 || bytes > static_cast<int>(kCopyBytes)) {
      fail("copy_async_16 of " + std::to_string(bytes) + " bytes", site);
    }
    for (const AsyncCopy& copy : current->copies) {
      if (copy.to != shared) continue;
      fail("copy_async_16: a copy into this place has not been waited for, issued at " +
               to_string(copy.site),
           site);
    }
    require_no_store_into(shared, "copy_async_16", site);
  }
  // Seen by the sanitizers: the source is readable, the place is no longer anyone's.
  unsigned char source[kCopyBytes];
  std::memcpy(source, global, bytes);
  std::memset(shared, kPoison, kCopyBytes);
  note_written(shared, kCopyBytes);

  const Quiet quiet;
  current->copies.push_back({static_cast<unsigned char*>(shared),
                             static_cast<const unsigned char*>(global), bytes, current->copy_groups,
                             false, site});
  land_some_copies();
}

void copy_commit() {
  const Quiet quiet;
  ++current->copy_groups;
}

void copy_wait(int groups_left, Site site) {
  std::vector<AsyncCopy>& copies = current->copies;
  const auto waited_for = [&](const AsyncCopy& copy) {
    return copy.group < current->copy_groups - groups_left;
  };
  {
    const Quiet quiet;
    if (groups_left < 0) fail("copy_async_wait for a negative number of groups", site);
    for (AsyncCopy& copy : copies) {
      if (waited_for(copy) && !copy.landed) land(copy);
    }
  }
  // ThreadSanitizer sees the copy's write here too: until then nobody else may touch the place.
  if (kTsan) {
    for (size_t k = 0;; ++k) {
      unsigned char* to = nullptr;
      {
        const Quiet quiet;
        if (k >= copies.size()) break;
        if (waited_for(copies[k])) to = copies[k].to;
      }
      if (to != nullptr) note_written(to, kCopyBytes);
    }
  }
  const Quiet quiet;
  copies.erase(std::remove_if(copies.begin(), copies.end(), waited_for), copies.end());
}

void land_some_copies() {
  if (current->copies.empty() || settings().schedule != Schedule::kRandom) return;
  for (AsyncCopy& copy : current->copies) {
    if (!copy.landed && one_in(8)) land(copy);
  }
}

void require_copies_waited() {
  if (current->copies.empty()) return;
  fail("exits without having waited for an asynchronous copy", current->copies.front().site);
}

void note_write(const void* p, size_t bytes, Site site) {
  const Quiet quiet;
  progress();
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (mark(address, bytes, &Page::written, &Page::read_constant) != 0) {
    fail("writes what load_once has read in this launch", site);
  }
}

void note_constant_read(const void* p, size_t bytes, Site site) {
  const Quiet quiet;
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (mark(address, bytes, &Page::read_constant, &Page::written) != 0) {
    fail("load_once of what was written in this launch", site);
  }
}

void note_atomic(const void* p, Scope scope, Site site) {
  const Quiet quiet;
  const int64_t block = current->block->index;
  const int size = current_run->launch.cluster_blocks;
  AtomicUse& use =
      current_run->atomics.try_emplace(p, AtomicUse{block, scope, false, false}).first->second;
  use.narrowest = std::min(use.narrowest, scope);
  use.by_blocks |= block != use.block;
  use.by_clusters |= block / size != use.block / size;
  if (use.by_blocks && use.narrowest == Scope::kBlock) {
    fail("two blocks meet at an atomic of scope block", site);
  }
  if (use.by_clusters && use.narrowest == Scope::kCluster) {
    fail("blocks of two clusters meet at an atomic of scope cluster", site);
  }
}

void fence(Scope scope) {
  const Quiet quiet;
  const auto meet_at = [](Tag tag) {
    acquire(tag);
    release(tag);
  };
  Block& block = *current->block;
  meet_at(&block.fence_tag);
  if (scope != Scope::kBlock) meet_at(&block.cluster->fence_tag);
  if (scope == Scope::kDevice) meet_at(&current_run->fence_tag);
}

void release_at(const void* p, Scope scope) {
  if (!kTsan) return;
  const Quiet quiet;
  for_each_tag(p, scope, [](char* tag) { release(tag); });
}

void acquire_at(const void* p, Scope scope) {
  if (!kTsan) return;
  const Quiet quiet;
  for_each_tag(p, scope, [](char* tag) { acquire(tag); });
}

}  // namespace simt
