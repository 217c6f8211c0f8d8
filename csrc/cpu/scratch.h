// Memory that a thread's calls share.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace rnnfast::cpu {

// At least `bytes`, for one call after the other: fresh pages cost more than packing a small
// layer's weights. 64-byte aligned; valid up to the thread's next call.
inline void* scratch(int64_t bytes) {
  constexpr std::align_val_t kLine{64};
  const auto free = [](void* p) { ::operator delete(p, kLine); };
  static thread_local std::unique_ptr<void, void (*)(void*)> kept(nullptr, free);
  static thread_local int64_t room = 0;
  if (room < bytes) {
    room = 0;
    kept.reset();
    kept.reset(::operator new(static_cast<size_t>(bytes), kLine));
    room = bytes;
  }
  return kept.get();
}

}  // namespace rnnfast::cpu
