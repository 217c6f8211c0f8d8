// Stacks and the switch between them: what one CUDA thread needs of the machine.
#pragma once

#include <cstddef>

namespace simt {

// A stack that code runs on and, while it does not run, where it stopped. Made without arguments:
// the stack of the calling host thread.
class Fiber {
 public:
  Fiber();
  // The first switch here calls entry(), which must never return. Throws std::bad_alloc. Code
  // cannot leave its stack, so such a fiber is kept until the process ends.
  Fiber(void (*entry)(), size_t stack_bytes);
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Goes on where `to` stopped; returns when something switches back to this one, which must be
  // running.
  void switch_to(Fiber& to);

  // Forgets where this one stopped: the next switch here starts at entry() again. What its stack
  // held is dropped, no destructor runs. Not under ThreadSanitizer.
  void restart();

  // Whether the code on this stack has so far stayed inside it.
  bool intact() const;

 private:
  friend void begin_on_new_stack();

  void (*entry_)() = nullptr;
  void* stopped_at_ = nullptr;  // stack pointer
  char* stack_ = nullptr;       // lowest address
  size_t bytes_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void* tsan_ = nullptr;        // ThreadSanitizer's idea of this fiber
};

}  // namespace simt
