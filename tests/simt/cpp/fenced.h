// Memory that ends where a page ends that nobody may touch: reading one element too many is a
// segmentation fault, also where what was read is thrown away. (AddressSanitizer has its own way.)
#pragma once

#include <cstddef>
#include <new>

#include "simt/sanitizers.h"

#if defined(SIMT_ASAN)

#include <memory>

namespace simt {
template <class T>
using Fenced = std::allocator<T>;
}  // namespace simt

#else

#include <sys/mman.h>
#include <unistd.h>

namespace simt {

// An allocator of containers.
template <class T>
struct Fenced {
  using value_type = T;

  Fenced() = default;
  template <class U>
  Fenced(const Fenced<U>&) {}

  T* allocate(size_t n) {
    const size_t before = before_fence(n);
    void* start =
        mmap(nullptr, before + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) throw std::bad_alloc();
    char* fence = static_cast<char*>(start) + before;
    if (mprotect(fence, page(), PROT_NONE) != 0) throw std::bad_alloc();
    return reinterpret_cast<T*>(fence - n * sizeof(T));
  }
  void deallocate(T* at, size_t n) {
    const size_t before = before_fence(n);
    munmap(reinterpret_cast<char*>(at + n) - before, before + page());
  }

  template <class U>
  bool operator==(const Fenced<U>&) const {
    return true;
  }
  template <class U>
  bool operator!=(const Fenced<U>&) const {
    return false;
  }

 private:
  static size_t page() { return size_t(sysconf(_SC_PAGESIZE)); }
  static size_t before_fence(size_t n) { return (n * sizeof(T) + page() - 1) / page() * page(); }
};

}  // namespace simt

#endif
