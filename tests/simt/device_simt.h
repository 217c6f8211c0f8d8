// csrc/cuda/device/device.h on the CPU: what nvcc makes an instruction of is a call of the executor here.
// Every function takes the caller's place as a last, defaulted argument, for the messages and for
// the rule that lanes meet at one place.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/device/storage.h"
#include "simt/entry.h"
#include "simt/numbers.h"

#define RNNFAST_DEVICE inline
#define RNNFAST_KERNEL(threads) void
#define RNNFAST_ARGS const
#define RNNFAST_UNROLL
#define RNNFAST_SHARED_DYNAMIC(name) \
  unsigned char* name = static_cast<unsigned char*>(::simt::shared_dynamic())
// The address of the lambda's variable tells this declaration, and this instance of a template,
// from others.
#define RNNFAST_SHARED_ARRAY(T, name, n)          \
  T* name = static_cast<T*>(::simt::shared_array( \
      [] {                                        \
        static const char key = 0;                \
        return static_cast<const void*>(&key);    \
      }(),                                        \
      sizeof(T) * (n), 16, ::simt::Site{__FILE__, __LINE__}))

namespace rnnfast::cuda {

using Stream = void*;
using ::simt::Site;

inline int thread_index() { return ::simt::here->thread; }
inline int block_x() { return ::simt::here->block_x; }
inline int block_y() { return ::simt::here->block_y; }
inline int block_threads() { return ::simt::here->block_threads; }
inline int grid_x() { return ::simt::here->grid_x; }
inline int grid_y() { return ::simt::here->grid_y; }
inline int lane() { return ::simt::here->thread % 32; }
inline int warp() { return ::simt::here->thread / 32; }
inline int uniform_warp() { return warp(); }
inline int cluster_rank() { return ::simt::here->cluster_rank; }
inline int cluster_blocks() { return ::simt::here->cluster_blocks; }

// ---- numbers

inline uint32_t bits_of(float value) { return ::simt::bits_of(value); }
inline float float_of(uint32_t bits) { return ::simt::float_of(bits); }

inline float to_float(Bf16 value) { return ::simt::bf16_to_float(value.bits); }
inline float to_float(F16 value) { return ::simt::f16_to_float(value.bits); }

template <class S>
S from_float(float value) {
  static_assert(std::is_same_v<S, Bf16> || std::is_same_v<S, F16>);
  if constexpr (std::is_same_v<S, Bf16>) {
    return {::simt::float_to_bf16(value)};
  } else {
    return {::simt::float_to_f16(value)};
  }
}

template <class S>
uint32_t pack2(S low, S high) {
  static_assert(sizeof(S) == 2);
  return low.bits | uint32_t{high.bits} << 16;
}

inline uint32_t to_tf32(float value) { return ::simt::float_to_tf32(value); }

// The approximations are those that PTX allows: the exact value for ex2 and rcp, which err by 2^-22
// and 1 ulp; tanh keeps 10 bits of its mantissa, as it may be 2^-11 off.
inline float multiply_add(float a, float b, float c) {
  const float result = std::fma(a, b, c);
  return std::isnan(result) ? float_of(0x7FFFFFFFu) : result;
}
inline float exp2_fast(float x) { return std::exp2(x); }
inline float reciprocal_fast(float x) { return 1.0f / x; }
inline float tanh_fast(float x) { return float_of(to_tf32(std::tanh(x))); }

// ---- barriers

inline void sync_block(Site site = Site::here()) { ::simt::sync_block(site); }

inline void sync_named(int id, int threads, Site site = Site::here()) {
  ::simt::sync_named(id, threads, site);
}

inline void sync_warp(uint32_t mask, Site site = Site::here()) {
  ::simt::meet(::simt::kSyncWarp, mask, nullptr, site);
}

// ---- warps

namespace detail {

template <class V>
V exchange(const ::simt::Operation& operation, uint32_t mask, V value, int lane, Site site) {
  static_assert(std::is_arithmetic_v<V> && (sizeof(V) == 4 || sizeof(V) == 8));
  ::simt::ShuffleOperands operands{0, lane, site};
  std::memcpy(&operands.value, &value, sizeof value);
  ::simt::meet(operation, mask, &operands, site);
  std::memcpy(&value, &operands.value, sizeof value);
  return value;
}

inline void multiply(const ::simt::Operation& operation, float* d, const uint32_t* a,
                     const uint32_t* b, Site site) {
  ::simt::MmaOperands operands{d, a, b, site};
  ::simt::meet(operation, ::simt::kWholeWarp, &operands, site);
}

inline void require_aligned(const void* p, size_t bytes, Site site) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
    ::simt::fault("misaligned: the address is no multiple of the access's size", site);
  }
}

template <class T>
void require_access(const T* p, Site site) {
  static_assert(std::is_trivially_copyable_v<T>);
  static_assert(sizeof(T) <= 16 && (sizeof(T) & (sizeof(T) - 1)) == 0);
  require_aligned(p, sizeof(T), site);
}

template <Scope kScope, class T>
void note_atomic(const T* p, Site site) {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  ::simt::access_point();
  require_aligned(p, sizeof(T), site);
  ::simt::note_atomic(p, kScope, site);
}

}  // namespace detail

template <class V>
V shuffle(uint32_t mask, V value, int source_lane, Site site = Site::here()) {
  return detail::exchange(::simt::kShuffle, mask, value, source_lane, site);
}

template <class V>
V shuffle_xor(uint32_t mask, V value, int lane_mask, Site site = Site::here()) {
  return detail::exchange(::simt::kShuffleXor, mask, value, lane_mask, site);
}

inline uint32_t ballot(uint32_t mask, bool predicate, Site site = Site::here()) {
  ::simt::BallotOperands operands{predicate, 0};
  ::simt::meet(::simt::kBallot, mask, &operands, site);
  return operands.result;
}

inline void load_matrix_x4(uint32_t (&r)[4], const void* row, Site site = Site::here()) {
  ::simt::require_shared(row, 16, "load_matrix_x4", site);
  detail::require_aligned(row, 16, site);
  ::simt::LoadMatrixOperands operands{{}, r};
  std::memcpy(operands.row, row, 16);
  ::simt::meet(::simt::kLoadMatrix, ::simt::kWholeWarp, &operands, site);
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     Site site = Site::here()) {
  detail::multiply(::simt::kMmaBf16, d, a, b, site);
}

inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    Site site = Site::here()) {
  detail::multiply(::simt::kMmaF16, d, a, b, site);
}

inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     Site site = Site::here()) {
  detail::multiply(::simt::kMmaTf32, d, a, b, site);
}

// ---- asynchronous copies

inline void copy_async_16(void* shared, const void* global, int bytes, Site site = Site::here()) {
  ::simt::access_point();
  ::simt::copy_async(shared, global, bytes, site);
}

inline void copy_async_commit() { ::simt::copy_commit(); }

template <int kGroupsLeft>
void copy_async_wait(Site site = Site::here()) {
  static_assert(kGroupsLeft >= 0);
  ::simt::copy_wait(kGroupsLeft, site);
}

// ---- global memory

template <class T>
T load(const T* p, Site site = Site::here()) {
  detail::require_access(p, site);
  return *p;
}

template <class T>
T load_once(const T* p, Site site = Site::here()) {
  detail::require_access(p, site);
  ::simt::note_constant_read(p, sizeof(T), site);
  return *p;
}

template <class T>
T load_coherent(const T* p, Site site = Site::here()) {
  detail::require_access(p, site);
  ::simt::access_point();
  return *p;
}

template <class T>
void store(T* p, const T& value, Site site = Site::here()) {
  detail::require_access(p, site);
  ::simt::access_point();
  ::simt::note_write(p, sizeof(T), site);
  *p = value;
}

template <class T>
void store_streaming(T* p, const T& value, Site site = Site::here()) {
  store(p, value, site);
}

// ---- order between blocks

template <Scope kScope>
void fence() {
  ::simt::access_point();
  ::simt::fence(kScope);
}

template <Scope kScope, class T>
T atomic_add(T* p, T value, Site site = Site::here()) {
  detail::note_atomic<kScope>(p, site);
  if (value != 0) ::simt::note_write(p, sizeof(T), site);
  return __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
}

template <Scope kScope, class T>
void add_release(T* p, T value, Site site = Site::here()) {
  detail::note_atomic<kScope>(p, site);
  ::simt::note_write(p, sizeof(T), site);
  ::simt::release_at(p, kScope);
  __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
}

template <Scope kScope, class T>
T load_acquire(const T* p, Site site = Site::here()) {
  detail::note_atomic<kScope>(p, site);
  const T value = __atomic_load_n(p, __ATOMIC_RELAXED);
  ::simt::acquire_at(p, kScope);
  return value;
}

inline void pause(Site site = Site::here()) { ::simt::pause(site); }

template <class Ready>
void wait_for(const char* what, const Ready& ready, Site site = Site::here()) {
  while (!ready()) ::simt::pause(site, what);
}

// ---- mbarriers

inline void mbarrier_init(uint64_t* bar, int count, Site site = Site::here()) {
  ::simt::mbarrier_init(bar, count, site);
}

inline void mbarrier_arrive(uint64_t* bar, Site site = Site::here()) {
  ::simt::mbarrier_arrive(bar, 0, site);
}

inline void mbarrier_arrive_expect(uint64_t* bar, int bytes, Site site = Site::here()) {
  ::simt::mbarrier_arrive(bar, bytes, site);
}

inline void mbarrier_wait(uint64_t* bar, int parity, Site site = Site::here()) {
  ::simt::mbarrier_wait(bar, parity, site);
}

inline void mbarrier_invalidate(uint64_t* bar, Site site = Site::here()) {
  ::simt::mbarrier_invalidate(bar, site);
}

// ---- clusters

inline void sync_cluster(Site site = Site::here()) { ::simt::sync_cluster(site); }

inline void mbarrier_publish() { ::simt::mbarrier_publish(); }

inline void mbarrier_wait_cluster(uint64_t* bar, int parity, Site site = Site::here()) {
  ::simt::mbarrier_wait_cluster(bar, parity, site);
}

template <class T>
void store_async(T* place, const T& value, uint64_t* bar, int rank, Site site = Site::here()) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) == 16);
  ::simt::access_point();
  ::simt::store_async(place, &value, bar, rank, site);
}

// ---- host

template <class Args>
int resident_blocks(const Launch& shape, void (*)(Args)) {
  return ::simt::resident_blocks(shape);
}

template <class Args>
void launch(const Launch& shape, void (*kernel)(Args), const Args& args, Stream) {
  static_assert(std::is_trivially_copyable_v<Args>);
  static_assert(sizeof(Args) <= 4096, "what a kernel's parameters may take");
  ::simt::run(shape, {[](const void* k, const void* a) {
                        (*static_cast<void (*const*)(Args)>(k))(*static_cast<const Args*>(a));
                      },
                      &kernel, &args});
}

}  // namespace rnnfast::cuda
