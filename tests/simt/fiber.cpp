#include "simt/fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

#include "simt/sanitizers.h"

#if !defined(__x86_64__)
#error "the switch between fibers is written for x86-64 only"
#endif

// Saves the registers that a call must preserve on the running stack, stores its pointer in *save,
// and returns on the stack `load`.
extern "C" void simt_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.globl simt_switch_stack
.hidden simt_switch_stack
.type simt_switch_stack, @function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stack, .-simt_switch_stack
)");

#if defined(SIMT_TSAN)
// Fibers wait for the next launch until the process ends: no thread has leaked.
extern "C" const char* __tsan_default_options() { return "report_thread_leaks=0"; }
#endif

namespace simt {
namespace {

constexpr uint64_t kCanary = 0x5AFE57AC5AFE57ACu;
constexpr int kSavedRegisters = 6;

Fiber* starting = nullptr;  // the fiber whose entry() the switch under way is about to call

}  // namespace

SIMT_UNWATCHED void begin_on_new_stack() {
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  starting->entry_();
}

Fiber::Fiber() {
#if defined(SIMT_ASAN)
  pthread_attr_t attributes;
  void* lowest = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &lowest, &bytes_);
  pthread_attr_destroy(&attributes);
  stack_ = static_cast<char*>(lowest);
#endif
#if defined(SIMT_TSAN)
  tsan_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(void (*entry)(), size_t stack_bytes) : entry_(entry), bytes_(stack_bytes) {
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<char*>(memory);
  std::memcpy(stack_, &kCanary, sizeof kCanary);
#if defined(SIMT_TSAN)
  tsan_ = __tsan_create_fiber(0);
#endif
  restart();
}

void Fiber::restart() {
#if defined(SIMT_ASAN)
  __asan_unpoison_memory_region(stack_, bytes_);
#endif
  fake_stack_ = nullptr;
  // As simt_switch_stack leaves a stack: registers, then the address to return to. At entry of a
  // function the stack pointer is 8 below a multiple of 16; what would be its own return address is
  // null.
  void** top = reinterpret_cast<void**>(stack_ + bytes_ - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&begin_on_new_stack);
  for (int k = 0; k < kSavedRegisters; ++k) *--top = nullptr;
  stopped_at_ = top;
}

bool Fiber::intact() const {
  return entry_ == nullptr || std::memcmp(stack_, &kCanary, sizeof kCanary) == 0;
}

SIMT_UNWATCHED void Fiber::switch_to(Fiber& to) {
  starting = &to;
#if defined(SIMT_ASAN)
  __sanitizer_start_switch_fiber(&fake_stack_, to.stack_, to.bytes_);
#endif
#if defined(SIMT_TSAN)
  __tsan_switch_to_fiber(to.tsan_, __tsan_switch_to_fiber_no_sync);
#endif
  simt_switch_stack(&stopped_at_, to.stopped_at_);
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
}

}  // namespace simt
