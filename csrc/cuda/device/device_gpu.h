// device.h under nvcc: intrinsics, and PTX where there is none. Names and meanings are device.h's.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>

#include "cuda/device/launch.h"
#include "cuda/device/storage.h"

#define RNNFAST_DEVICE __device__ __forceinline__
#define RNNFAST_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#define RNNFAST_ARGS const __grid_constant__
#define RNNFAST_UNROLL _Pragma("unroll")
#define RNNFAST_SHARED_DYNAMIC(name)                                \
  extern __shared__ __align__(128) unsigned char rnnfast_shared_[]; \
  unsigned char* const name = rnnfast_shared_
#define RNNFAST_SHARED_ARRAY(T, name, n) __shared__ __align__(16) T name[n]

// What an architecture lacks must compile for it all the same: the instruction where it is there,
// else a trap. No kernel that needs one is launched there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define RNNFAST_SM_80(...) __trap()
#else
#define RNNFAST_SM_80(...) asm volatile(__VA_ARGS__)
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define RNNFAST_SM_90(...) __trap()
#define RNNFAST_CLUSTER "cta"  // a block is a cluster of its own
#else
#define RNNFAST_SM_90(...) asm volatile(__VA_ARGS__)
#define RNNFAST_CLUSTER "cluster"
#endif

// Of the device's runtime; assert.h has it without NDEBUG only.
extern "C" __device__ void __assertfail(const char* words, const char* file, unsigned line,
                                        const char* function, size_t char_bytes);

namespace rnnfast::cuda {

using Stream = cudaStream_t;

// --- who am I ----------------------------------------------------------------------------------

RNNFAST_DEVICE int thread_index() { return int(threadIdx.x); }
RNNFAST_DEVICE int block_x() { return int(blockIdx.x); }
RNNFAST_DEVICE int block_y() { return int(blockIdx.y); }
RNNFAST_DEVICE int block_threads() { return int(blockDim.x); }
RNNFAST_DEVICE int grid_x() { return int(gridDim.x); }
RNNFAST_DEVICE int grid_y() { return int(gridDim.y); }
RNNFAST_DEVICE int lane() { return int(threadIdx.x) & 31; }
RNNFAST_DEVICE int warp() { return int(threadIdx.x) >> 5; }
RNNFAST_DEVICE int uniform_warp() { return __shfl_sync(0xFFFFFFFFu, warp(), 0); }
RNNFAST_DEVICE int cluster_rank() {
  unsigned rank = 0;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return int(rank);
}
RNNFAST_DEVICE int cluster_blocks() {
  unsigned blocks = 1;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
#endif
  return int(blocks);
}

// --- barriers ----------------------------------------------------------------------------------

RNNFAST_DEVICE void sync_block() { __syncthreads(); }
RNNFAST_DEVICE void sync_named(int id, int threads) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
RNNFAST_DEVICE void sync_warp(unsigned mask) { __syncwarp(mask); }

// --- a warp together ---------------------------------------------------------------------------

template <class T>
RNNFAST_DEVICE T shuffle(unsigned mask, T v, int source_lane) {
  return __shfl_sync(mask, v, source_lane);
}
template <class T>
RNNFAST_DEVICE T shuffle_xor(unsigned mask, T v, int lane_mask) {
  return __shfl_xor_sync(mask, v, lane_mask);
}
RNNFAST_DEVICE unsigned ballot(unsigned mask, bool predicate) {
  return __ballot_sync(mask, predicate);
}

RNNFAST_DEVICE unsigned shared_address(const void* p) {
  return unsigned(__cvta_generic_to_shared(p));
}

RNNFAST_DEVICE void load_matrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

#define RNNFAST_MMA(shape, d, a, b)                                                              \
  RNNFAST_SM_80("mma.sync.aligned." shape                                                        \
                " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]), \
                "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), \
                "r"(b[0]), "r"(b[1]))
RNNFAST_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  RNNFAST_MMA("m16n8k16.row.col.f32.bf16.bf16.f32", d, a, b);
}
RNNFAST_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  RNNFAST_MMA("m16n8k16.row.col.f32.f16.f16.f32", d, a, b);
}
RNNFAST_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  RNNFAST_MMA("m16n8k8.row.col.f32.tf32.tf32.f32", d, a, b);
}
#undef RNNFAST_MMA

RNNFAST_DEVICE uint32_t to_tf32(float v) {
  uint32_t r = 0;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(v));
#endif
  return r;
}

// --- asynchronous copies -----------------------------------------------------------------------

RNNFAST_DEVICE void copy_async_16(void* shared, const void* global, int bytes) {
  RNNFAST_SM_80("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                "l"(global), "r"(bytes) : "memory");
}
RNNFAST_DEVICE void copy_async_commit() { RNNFAST_SM_80("cp.async.commit_group;" :: : "memory"); }
template <int kLeft>
RNNFAST_DEVICE void copy_async_wait() {
  RNNFAST_SM_80("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// --- global memory -----------------------------------------------------------------------------

namespace detail {

template <int kBytes>
struct Word;
template <>
struct Word<1> {
  using type = unsigned char;
};
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

template <class To, class From>
RNNFAST_DEVICE To cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace detail

template <class T>
using WordOf = typename detail::Word<sizeof(T)>::type;

template <class T>
RNNFAST_DEVICE T load(const T* p) {
  const WordOf<T> word = *reinterpret_cast<const WordOf<T>*>(p);  // at once, and not by the memcpy
  return detail::cast<T>(word);
}
template <class T>
RNNFAST_DEVICE T load_once(const T* p) {
  return detail::cast<T>(__ldg(reinterpret_cast<const WordOf<T>*>(p)));
}
template <class T>
RNNFAST_DEVICE T load_coherent(const T* p) {
  return detail::cast<T>(__ldcg(reinterpret_cast<const WordOf<T>*>(p)));
}
template <class T>
RNNFAST_DEVICE void store(T* p, const T& v) {
  *reinterpret_cast<WordOf<T>*>(p) = detail::cast<WordOf<T>>(v);
}
template <class T>
RNNFAST_DEVICE void store_streaming(T* p, const T& v) {
  __stcs(reinterpret_cast<WordOf<T>*>(p), detail::cast<WordOf<T>>(v));
}

// --- order between blocks ----------------------------------------------------------------------

template <Scope kScope>
RNNFAST_DEVICE void fence() {
  if constexpr (kScope == Scope::kBlock) {
    asm volatile("fence.acq_rel.cta;" ::: "memory");
  } else if constexpr (kScope == Scope::kCluster) {
    asm volatile("fence.acq_rel." RNNFAST_CLUSTER ";" ::: "memory");
  } else {
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
  }
}

template <Scope kScope, class T>
RNNFAST_DEVICE T atomic_add(T* p, T v) {
  if constexpr (kScope == Scope::kBlock) {
    return atomicAdd_block(p, v);
  } else {
    return atomicAdd(p, v);
  }
}

template <Scope kScope>
RNNFAST_DEVICE void add_release(unsigned* p, unsigned v) {
  if constexpr (kScope == Scope::kBlock) {
    asm volatile("red.release.cta.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
  } else if constexpr (kScope == Scope::kCluster) {
    asm volatile("red.release." RNNFAST_CLUSTER ".global.add.u32 [%0], %1;" ::"l"(p), "r"(v)
                 : "memory");
  } else {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
  }
}

template <Scope kScope>
RNNFAST_DEVICE unsigned load_acquire(const unsigned* p) {
  unsigned v;
  if constexpr (kScope == Scope::kBlock) {
    asm volatile("ld.acquire.cta.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  } else if constexpr (kScope == Scope::kCluster) {
    asm volatile("ld.acquire." RNNFAST_CLUSTER ".global.u32 %0, [%1];"
                 : "=r"(v)
                 : "l"(p)
                 : "memory");
  } else {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  }
  return v;
}

RNNFAST_DEVICE void pause() { __nanosleep(20); }

// In 2^32 clock cycles.
RNNFAST_DEVICE unsigned clock_high() {
  unsigned high;
  asm volatile("mov.u32 %0, %%clock_hi;" : "=r"(high));
  return high;
}

constexpr unsigned kPatience = 8;  // more than 15 s at 2 GHz: what others wait for was never done

// As assert does, whatever NDEBUG says: the driver prints `what`, block and thread. (printf would
// cost every kernel a stack.)
__device__ __noinline__ inline void give_up(const char* what) {
  __assertfail(what, "rnnfast", 0, "wait_for", sizeof(char));
}

template <class Ready>
RNNFAST_DEVICE void wait_for(const char* what, const Ready& ready) {
  if (ready()) return;
  const unsigned began = clock_high();
  while (!ready()) {
    pause();
    if (clock_high() - began > kPatience) give_up(what);
  }
}

// --- mbarriers ---------------------------------------------------------------------------------

RNNFAST_DEVICE void mbarrier_init(uint64_t* bar, unsigned count) {
  RNNFAST_SM_80("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(bar)),
                "r"(count) : "memory");
}
RNNFAST_DEVICE void mbarrier_invalidate(uint64_t* bar) {
  RNNFAST_SM_80("mbarrier.inval.shared.b64 [%0];" ::"r"(shared_address(bar)) : "memory");
}
RNNFAST_DEVICE void mbarrier_arrive(uint64_t* bar) {
  RNNFAST_SM_80(
      "{ .reg .b64 s; mbarrier.arrive.shared.b64 s, [%0]; }" ::"r"(shared_address(bar)) : "memory");
}
RNNFAST_DEVICE void mbarrier_arrive_expect(uint64_t* bar, unsigned bytes) {
  RNNFAST_SM_90("{ .reg .b64 s; mbarrier.arrive.expect_tx.shared::cta.b64 s, [%0], %1; }" ::"r"(
                    shared_address(bar)),
                "r"(bytes) : "memory");
}
RNNFAST_DEVICE void mbarrier_wait(uint64_t* bar, unsigned parity) {
  wait_for("rnnfast: an mbarrier timed out", [&] {
    unsigned done = 0;
    RNNFAST_SM_80(
        "{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; "
        "}" : "=r"(done) : "r"(shared_address(bar)),
        "r"(parity) : "memory");
    return done != 0;
  });
}

// --- clusters ----------------------------------------------------------------------------------

RNNFAST_DEVICE void sync_cluster() {
  RNNFAST_SM_90("barrier.cluster.arrive.release.aligned;" :: : "memory");
  RNNFAST_SM_90("barrier.cluster.wait.acquire.aligned;" :: : "memory");
}

RNNFAST_DEVICE void mbarrier_publish() {
  RNNFAST_SM_90("fence.mbarrier_init.release.cluster;" :: : "memory");
}

template <class T>
RNNFAST_DEVICE void store_async(T* place, const T& value, uint64_t* bar, int rank) {
  static_assert(sizeof(T) == 16, "st.async of four words");
  const uint4 words = detail::cast<uint4>(value);
  RNNFAST_SM_90(
      "{ .reg .b32 there, bar_there;"
      " mapa.shared::cluster.u32 there, %0, %2;"
      " mapa.shared::cluster.u32 bar_there, %1, %2;"
      " st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32"
      " [there], {%3, %4, %5, %6}, [bar_there]; }" ::"r"(shared_address(place)),
      "r"(shared_address(bar)), "r"(rank), "r"(words.x), "r"(words.y), "r"(words.z),
      "r"(words.w) : "memory");
}

RNNFAST_DEVICE void mbarrier_wait_cluster(uint64_t* bar, unsigned parity) {
  wait_for("rnnfast: the exchange of a cluster timed out", [&] {
    unsigned done = 0;
    RNNFAST_SM_90(
        "{ .reg .pred p;"
        " mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;"
        " selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(shared_address(bar)),
        "r"(parity) : "memory");
    return done != 0;
  });
}

// --- numbers -----------------------------------------------------------------------------------

RNNFAST_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }

RNNFAST_DEVICE float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
RNNFAST_DEVICE float reciprocal_fast(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
RNNFAST_DEVICE float tanh_fast(float x) {
  float r;
  asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

RNNFAST_DEVICE uint32_t bits_of(float v) { return __float_as_uint(v); }
RNNFAST_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

RNNFAST_DEVICE float to_float(Bf16 v) { return __uint_as_float(uint32_t(v.bits) << 16); }
RNNFAST_DEVICE float to_float(F16 v) { return __half2float(detail::cast<__half>(v)); }

template <class S>
RNNFAST_DEVICE S from_float(float v);
template <>
RNNFAST_DEVICE Bf16 from_float<Bf16>(float v) {
  return detail::cast<Bf16>(__float2bfloat16_rn(v));
}
template <>
RNNFAST_DEVICE F16 from_float<F16>(float v) {
  return detail::cast<F16>(__float2half_rn(v));
}

template <class S>
RNNFAST_DEVICE uint32_t pack2(S low, S high) {
  return uint32_t(low.bits) | (uint32_t(high.bits) << 16);
}

// --- launching ---------------------------------------------------------------------------------

template <class Args>
void launch(const Launch& how, void (*kernel)(Args), const Args& args, Stream stream) {
  void* parameters[] = {const_cast<Args*>(&args)};
  launch_kernel(how, reinterpret_cast<const void*>(kernel), parameters, stream);
}

template <class Args>
int resident_blocks(const Launch& how, void (*kernel)(Args)) {
  return resident_kernel_blocks(how, reinterpret_cast<const void*>(kernel));
}

}  // namespace rnnfast::cuda

#undef RNNFAST_SM_80
#undef RNNFAST_SM_90
#undef RNNFAST_CLUSTER
