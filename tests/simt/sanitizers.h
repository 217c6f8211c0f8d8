// What AddressSanitizer and ThreadSanitizer must be told about fibers and about the order that
// barriers make. Without a sanitizer everything here is empty.
#pragma once

#include <cstddef>

#if defined(__has_feature)
#define SIMT_HAS_FEATURE(x) __has_feature(x)
#else
#define SIMT_HAS_FEATURE(x) 0
#endif

#if defined(__SANITIZE_ADDRESS__) || SIMT_HAS_FEATURE(address_sanitizer)
#define SIMT_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__SANITIZE_THREAD__) || SIMT_HAS_FEATURE(thread_sanitizer)
#define SIMT_TSAN 1
#include <sanitizer/tsan_interface.h>
#define SIMT_UNWATCHED __attribute__((no_sanitize("thread"), noinline))
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
void __tsan_read_range(void* p, unsigned long bytes);
void __tsan_write_range(void* p, unsigned long bytes);
}
#else
#define SIMT_UNWATCHED
#endif

namespace simt {

#if defined(SIMT_TSAN)
inline constexpr bool kTsan = true;
#else
inline constexpr bool kTsan = false;
#endif

#if defined(SIMT_ASAN)
inline constexpr bool kAsan = true;
#else
inline constexpr bool kAsan = false;
#endif

// While one lives, ThreadSanitizer ignores what this fiber reads and writes: the executor's own
// state is shared by all fibers, none of which run at the same time.
class Quiet {
 public:
#if defined(SIMT_TSAN)
  Quiet() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Quiet() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Quiet() {}
  ~Quiet() {}
#endif
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
};

// Accesses that ThreadSanitizer must see; it misses a memcpy or memset that the compiler unfolds.
inline void note_read([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#if defined(SIMT_TSAN)
  __tsan_read_range(const_cast<void*>(p), bytes);
#endif
}
inline void note_written([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#if defined(SIMT_TSAN)
  __tsan_write_range(p, bytes);
#endif
}

// A point of order: what a fiber did before `release(tag)` happened before whatever a fiber does
// after a later `acquire(tag)`. Only ThreadSanitizer looks at it, and only at its address.
using Tag = char*;

inline void release([[maybe_unused]] Tag tag) {
#if defined(SIMT_TSAN)
  __tsan_release(tag);
#endif
}

inline void acquire([[maybe_unused]] Tag tag) {
#if defined(SIMT_TSAN)
  __tsan_acquire(tag);
#endif
}

}  // namespace simt
