// What translated PTX calls: arithmetic as PTX defines it, memory with every access checked, and
// the executor's operations. rules.py says which instruction is which of these.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "cuda/device/device.h"
#include "simt/entry.h"
#include "simt/numbers.h"

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using b8 = u8;
using b16 = u16;
using b32 = u32;
using b64 = u64;
using f32 = float;
using f64 = double;
using rnnfast::cuda::bits_of;
using rnnfast::cuda::exp2_fast;
using rnnfast::cuda::float_of;
using rnnfast::cuda::multiply_add;
using rnnfast::cuda::reciprocal_fast;
using rnnfast::cuda::Scope;
using rnnfast::cuda::tanh_fast;

template <class T, int N>
struct Vec {
  T at[N];
};

// A kernel's array in shared memory, where its addresses begin. bytes < 0: the launch's dynamic
// shared memory.
struct Window {
  const char* name;
  u32 base;
  int64_t bytes;
  int alignment;
};

// What a kernel's instructions need to know of it.
struct Frame {
  const char* file;
  const Window* windows;
  int window_count;
  const unsigned char* params;
  int param_bytes;
};

// The instruction that runs.
struct Place {
  const Frame& frame;
  int line;
};
inline simt::Site site(Place at) { return {at.frame.file, at.line}; }

// --- kernels, and the global memory that they may touch (runtime.cpp) --------------------------

struct Kernel {
  const char* name;
  void (*body)(const unsigned char* params);
  int param_bytes;
};
struct Registration {
  explicit Registration(const Kernel& kernel);
};
// All that were translated into this program.
const std::vector<Kernel>& kernels();

// A kernel's parameters, passed by value: of more than 16 bytes, as the C++ function takes them.
template <int kBytes, int kAlignment>
struct Blob {
  alignas(kAlignment) unsigned char bytes[kBytes];
};

// Global memory: an access elsewhere is an error. `name` is kept as it is.
void register_buffer(const char* name, const void* data, size_t bytes, bool writable);
void forget_buffers();

enum class Access { kRead, kWrite };
// All three end the launch with an error where the access is misaligned or outside.
const unsigned char* param_at(u64 offset, int bytes, Place at);
unsigned char* shared_at(u32 address, int bytes, Place at);
unsigned char* global_at(u64 address, int bytes, int alignment, Access access, Place at);

// --- registers ---------------------------------------------------------------------------------

template <class To, class From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T, class Part, int N>
T pack(const Vec<Part, N>& parts) {
  static_assert(sizeof(T) == N * sizeof(Part));
  T whole;
  std::memcpy(&whole, parts.at, sizeof whole);
  return whole;
}

template <class Part, class T>
Vec<Part, sizeof(T) / sizeof(Part)> unpack(T whole) {
  Vec<Part, sizeof(T) / sizeof(Part)> parts;
  std::memcpy(parts.at, &whole, sizeof whole);
  return parts;
}

// --- integers ----------------------------------------------------------------------------------

template <class T>
constexpr u32 kBits = 8 * sizeof(T);

template <class T>
T multiply_high(T a, T b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return static_cast<T>((static_cast<Wide>(a) * static_cast<Wide>(b)) >> kBits<T>);
}

// What a device makes of a division by zero is nowhere said.
template <class T>
T divide(T a, T b, Place at) {
  if (b == 0) simt::fault("division by zero", site(at));
  return b == T(-1) && std::is_signed_v<T> ? T(0 - u64(a)) : T(a / b);
}
template <class T>
T remainder(T a, T b, Place at) {
  if (b == 0) simt::fault("division by zero", site(at));
  return b == T(-1) && std::is_signed_v<T> ? T(0) : T(a % b);
}

// Shifts by more than the width give what shifts by the width would.
template <class T>
T shift_left(T a, u32 n) {
  return n >= kBits<T> ? T(0) : T(u64(a) << n);
}
template <class T>
T shift_right(T a, u32 n) {
  return n >= kBits<T> ? T(a < 0 ? -1 : 0) : T(a >> n);
}

inline u32 funnel_l(u32 low, u32 high, u32 n) { return u32((u64(high) << 32 | low) << n >> 32); }
inline u32 funnel_r(u32 low, u32 high, u32 n) { return u32((u64(high) << 32 | low) >> n); }
inline u32 funnel_l_wrap(u32 low, u32 high, u32 n) { return funnel_l(low, high, n & 31); }
inline u32 funnel_r_wrap(u32 low, u32 high, u32 n) { return funnel_r(low, high, n & 31); }
inline u32 funnel_l_clamp(u32 low, u32 high, u32 n) {
  return n > 31 ? low : funnel_l(low, high, n);
}
inline u32 funnel_r_clamp(u32 low, u32 high, u32 n) {
  return n > 31 ? high : funnel_r(low, high, n);
}

// bfe: `length` bits from `position` on; past the top, and above the field, the sign.
template <class T>
T extract(T a, u32 position, u32 length) {
  position &= 0xFF, length &= 0xFF;
  const u32 top = kBits<T> - 1;
  const auto bit = [&](u32 k) { return T(a >> k & 1); };
  T sign = 0;
  if (std::is_signed_v<T> && length > 0) {
    sign = bit(position + length - 1 < top ? position + length - 1 : top);
  }
  u64 field = 0;
  for (u32 k = 0; k <= top; ++k) {
    const bool inside = k < length && position + k <= top;
    field |= u64(inside ? bit(position + k) : sign) << k;
  }
  return T(field);
}

// bfi: `b` with `length` bits from `position` on replaced by the low ones of `a`.
template <class T>
T insert(T a, T b, u32 position, u32 length) {
  position &= 0xFF, length &= 0xFF;
  for (u32 k = 0; k < length && position + k < kBits<T>; ++k) {
    const T bit = T(1) << (position + k);
    b = (a >> k & 1) != 0 ? T(b | bit) : T(b & ~bit);
  }
  return b;
}

// prmt: four of the eight bytes of {b, a}; a selector's high bit means the byte's sign instead.
inline u32 permute(u32 a, u32 b, u32 selectors) {
  const u64 bytes = u64(b) << 32 | a;
  u32 result = 0;
  for (int k = 0; k < 4; ++k) {
    const u32 selector = selectors >> (4 * k) & 0xF;
    const u8 byte = u8(bytes >> (8 * (selector & 7)));
    result |= u32((selector & 8) == 0 ? byte : (byte & 0x80) != 0 ? 0xFF : 0) << (8 * k);
  }
  return result;
}

// lop3: of each bit, the table's at 4·a + 2·b + c.
inline u32 lookup(u32 a, u32 b, u32 c, u32 table) {
  u32 result = 0;
  for (int k = 0; k < 32; ++k) {
    const u32 row = (a >> k & 1) << 2 | (b >> k & 1) << 1 | (c >> k & 1);
    result |= (table >> row & 1) << k;
  }
  return result;
}

template <class T>
u32 leading_zeros(T a) {
  return a == 0 ? kBits<T> : u32(__builtin_clzll(u64(a))) - (64 - kBits<T>);
}

// --- comparisons: eq … ge are false where a value is a NaN, equ … geu true ---------------------

template <class T>
bool num(T a, T b) {
  return a == a && b == b;
}
template <class T>
bool nan(T a, T b) {
  return !num(a, b);
}
template <class T>
bool eq(T a, T b) {
  return a == b;
}
template <class T>
bool ne(T a, T b) {
  return num(a, b) && a != b;
}
template <class T>
bool lt(T a, T b) {
  return a < b;
}
template <class T>
bool le(T a, T b) {
  return a <= b;
}
template <class T>
bool gt(T a, T b) {
  return a > b;
}
template <class T>
bool ge(T a, T b) {
  return a >= b;
}
inline bool equ(f32 a, f32 b) { return nan(a, b) || a == b; }
inline bool neu(f32 a, f32 b) { return nan(a, b) || a != b; }
inline bool ltu(f32 a, f32 b) { return nan(a, b) || a < b; }
inline bool leu(f32 a, f32 b) { return nan(a, b) || a <= b; }
inline bool gtu(f32 a, f32 b) { return nan(a, b) || a > b; }
inline bool geu(f32 a, f32 b) { return nan(a, b) || a >= b; }
// Unsigned, whatever the instruction's type is called.
template <class T>
bool lo(T a, T b) {
  return std::make_unsigned_t<T>(a) < std::make_unsigned_t<T>(b);
}
template <class T>
bool ls(T a, T b) {
  return !lo(b, a);
}
template <class T>
bool hi(T a, T b) {
  return lo(b, a);
}
template <class T>
bool hs(T a, T b) {
  return !lo(a, b);
}

// --- floats ------------------------------------------------------------------------------------

// .ftz: a subnormal number is a zero of its sign.
template <bool kToZero>
f32 flush(f32 a) {
  const bool subnormal = (bits_of(a) & 0x7F800000u) == 0;
  return kToZero && subnormal ? float_of(bits_of(a) & 0x80000000u) : a;
}

// min and max: the number where one is a NaN, and −0 < +0.
inline f32 smaller(f32 a, f32 b) {
  if (a != a || b != b) return a != a ? b : a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
inline f32 larger(f32 a, f32 b) {
  if (a != a || b != b) return a != a ? b : a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}

// Of a whole number: 0 for a NaN, the nearest where the type ends before.
template <class T>
T to_integer(f32 whole) {
  constexpr T low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
  if (whole != whole) return 0;
  if (whole <= f32(low)) return low;
  return whole >= f32(high) ? high : T(whole);
}

// --- memory ------------------------------------------------------------------------------------

template <class T, int N>
Vec<T, N> load_param(u64 offset, Place at) {
  Vec<T, N> value;
  std::memcpy(&value, param_at(offset, sizeof value, at), sizeof value);
  return value;
}

template <class T, int N>
Vec<T, N> load_shared(u32 address, Place at) {
  Vec<T, N> value;
  std::memcpy(&value, shared_at(address, sizeof value, at), sizeof value);
  return value;
}

template <class T, int N>
void store_shared(u32 address, const Vec<T, N>& value, Place at) {
  std::memcpy(shared_at(address, sizeof value, at), &value, sizeof value);
}

template <class T>
const T* readable(u64 address, Place at) {
  return reinterpret_cast<const T*>(global_at(address, sizeof(T), sizeof(T), Access::kRead, at));
}
template <class T>
T* writable(u64 address, Place at) {
  return reinterpret_cast<T*>(global_at(address, sizeof(T), sizeof(T), Access::kWrite, at));
}

template <class T, int N>
Vec<T, N> load_global(u64 address, Place at) {
  return rnnfast::cuda::load(readable<Vec<T, N>>(address, at), site(at));
}
template <class T, int N>
Vec<T, N> load_constant(u64 address, Place at) {
  return rnnfast::cuda::load_once(readable<Vec<T, N>>(address, at), site(at));
}
template <class T, int N>
Vec<T, N> load_from_l2(u64 address, Place at) {
  return rnnfast::cuda::load_coherent(readable<Vec<T, N>>(address, at), site(at));
}
template <class T, int N>
void store_global(u64 address, const Vec<T, N>& value, Place at) {
  rnnfast::cuda::store(writable<Vec<T, N>>(address, at), value, site(at));
}

inline void copy_async(u32 to, u64 from, u32 bytes, u32 read, Place at) {
  if (bytes != 16) simt::fault("an asynchronous copy past L1 is of 16 bytes", site(at));
  unsigned char* shared = shared_at(to, 16, at);
  const auto* global = reinterpret_cast<const unsigned char*>(from);  // unused if nothing is read
  if (read > 0) global = global_at(from, int(read), 16, Access::kRead, at);
  rnnfast::cuda::copy_async_16(shared, global, int(read), site(at));
}

// --- order -------------------------------------------------------------------------------------

template <Scope kScope, class T>
T load_acquire(u64 address, Place at) {
  return rnnfast::cuda::load_acquire<kScope>(readable<T>(address, at), site(at));
}
template <Scope kScope, class T>
T load_relaxed(u64 address, Place at) {
  const T* p = readable<T>(address, at);
  rnnfast::cuda::detail::note_atomic<kScope>(p, site(at));
  return __atomic_load_n(p, __ATOMIC_RELAXED);
}
template <Scope kScope, class T>
void add_release(u64 address, T value, Place at) {
  rnnfast::cuda::add_release<kScope>(writable<T>(address, at), value, site(at));
}
template <Scope kScope, class T>
T atomic_add(u64 address, T value, Place at) {
  return rnnfast::cuda::atomic_add<kScope>(writable<T>(address, at), value, site(at));
}

// --- control, barriers, warps ------------------------------------------------------------------

[[noreturn]] inline void trap(Place at) { simt::fault("trap", site(at)); }
[[noreturn]] inline void give_up(Place at) { simt::fault("it gives the launch up", site(at)); }

// Passes where no thread does anything but wait, and faster than the executor takes that for a
// livelock: a kernel that gives up after so much of it does so first.
u32 clock_high();

inline void barrier(u32 id, u32 threads, Place at) {
  rnnfast::cuda::sync_named(int(id), int(threads), site(at));
}
inline void barrier(u32 id, Place at) {
  if (id == 0) return rnnfast::cuda::sync_block(site(at));
  barrier(id, u32(simt::here->block_threads), at);
}

// shfl's results: what the source lane gave, and whether there is such a lane in the segment.
struct Shuffled {
  b32 first;
  bool second;
};
Shuffled shuffle_from(int lane, bool inside, b32 value, b32 mask, Place at);
Shuffled shuffle_up(b32 value, u32 by, u32 segment, b32 mask, Place at);
Shuffled shuffle_down(b32 value, u32 by, u32 segment, b32 mask, Place at);
Shuffled shuffle_bfly(b32 value, u32 by, u32 segment, b32 mask, Place at);
Shuffled shuffle_idx(b32 value, u32 lane, u32 segment, b32 mask, Place at);

Vec<b32, 4> load_matrices(u32 row, Place at);

using A = Vec<b32, 4>;
using B = Vec<b32, 2>;
using Sum = Vec<f32, 4>;
Sum multiply_bf16_bf16(const A& a, const B& b, Sum c, Place at);
Sum multiply_f16_f16(const A& a, const B& b, Sum c, Place at);
Sum multiply_tf32_tf32(const A& a, const B& b, Sum c, Place at);

// --- mbarriers and clusters --------------------------------------------------------------------

inline u64* mbarrier_at(u32 address, Place at) {
  return reinterpret_cast<u64*>(shared_at(address, 8, at));
}
inline void mbarrier_init(u32 bar, u32 count, Place at) {
  rnnfast::cuda::mbarrier_init(mbarrier_at(bar, at), int(count), site(at));
}
inline void mbarrier_invalidate(u32 bar, Place at) {
  rnnfast::cuda::mbarrier_invalidate(mbarrier_at(bar, at), site(at));
}
// The state that it gives is for no one's eyes.
inline u64 mbarrier_arrive(u32 bar, u32 bytes, Place at) {
  simt::mbarrier_arrive(mbarrier_at(bar, at), int(bytes), site(at));
  return 0xDEADDEADDEADDEADu;
}
// Whether the phase of this parity is over: also false at times when it is, as both may be.
bool mbarrier_passed(u32 bar, u32 parity, Place at);
bool mbarrier_passed_by_cluster(u32 bar, u32 parity, Place at);

// Addresses in the shared memory of a cluster's blocks: 0 … 2^24 the own block's, and then each
// rank's.
u32 map_to_rank(u32 address, u32 rank, Place at);
void store_async(u32 address, const Vec<b32, 4>& value, u32 bar, Place at);

}  // namespace ptx
