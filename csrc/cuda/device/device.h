// The one door between kernel text and the hardware. A kernel uses only what is declared here, so
// the same text is compiled by nvcc (intrinsics and PTX, device_gpu.h) and, with RNNFAST_SIMT, by a
// host compiler against an executor that runs every CUDA thread as a fiber
// (tests/simt/device_simt.h). Neither side may lack a name that the other has.
//
// What both halves define, in namespace rnnfast::cuda:
//
//   RNNFAST_DEVICE                    marks a device function
//   RNNFAST_KERNEL(threads)           before a kernel's name, in place of its type:
//                                       template <...> RNNFAST_KERNEL(256)
//                                       f(RNNFAST_ARGS Args args)
//                                     blocks of at most `threads` threads
//   RNNFAST_ARGS                      before a kernel's only parameter, a trivially copyable struct
//   RNNFAST_UNROLL                    before a loop that must unroll: its arrays live in registers
//   RNNFAST_SHARED_DYNAMIC(name)      `unsigned char* name`: the launch's dynamic shared memory,
//                                     128-byte aligned
//   RNNFAST_SHARED_ARRAY(T, name, n)  `T* name`: n elements of static shared memory
//
//   Stream                            cudaStream_t
//   thread_index() block_x() block_y() block_threads() grid_x() grid_y() lane() warp()
//                                     int; blocks are 1-D
//   uniform_warp()                    warp(), known to the compiler to be that of all lanes, which
//                                     call it together
//   cluster_rank() cluster_blocks()   int: this block's rank among the blocks of its cluster, and
//                                     how many they are; 0 and 1 in a launch without clusters
//
// Barriers. All threads of the block (sync_block), or the first `threads` to arrive at barrier `id`
// in 1 .. 15 (sync_named), or the lanes of `mask` (sync_warp); each orders shared and global memory
// among those who meet.
//   sync_block()  sync_named(id, threads)  sync_warp(mask)
//
// Warp-collective, all lanes of `mask` together; v is float, double, int, unsigned or uint64_t.
//   shuffle(mask, v, source_lane)  shuffle_xor(mask, v, lane_mask)  ballot(mask, predicate)
//   load_matrix_x4(r[4], row)         ldmatrix.sync.aligned.m8n8.x4.shared.b16: lane l gives the
//                                     address of row l%8 of matrix l/8 (16 bytes, 16-byte
//                                     aligned, in shared memory)
//   mma_bf16(d[4], a[4], b[2])        d += a·b, mma.sync.m16n8k16 with fp32 accumulators
//   mma_f16(d[4], a[4], b[2])
//   mma_tf32(d[4], a[4], b[2])        mma.sync.m16n8k8; operands as to_tf32 leaves them
//   to_tf32(float) -> uint32_t        cvt.rna.tf32.f32
//
// Asynchronous copies of 16 bytes from global to shared memory, both 16-byte aligned (cp.async.cg):
// `bytes` in 0 .. 16 are read, the rest is zero. They land somewhere between their issue and the
// wait for their group.
//   copy_async_16(shared, global, bytes)  copy_async_commit()
//   copy_async_wait<groups that may be left>()
//
// Global memory, T trivially copyable of 1, 2, 4, 8 or 16 bytes and so aligned:
//   load<T>(p)                        a plain load
//   load_once<T>(p)                   what no one writes in this launch (ld.global.nc)
//   load_coherent<T>(p)               through L2 only (ld.global.cg): what another block may have
//                                     written
//   store<T>(p, v)                    a plain store
//   store_streaming<T>(p, v)          not to be read again soon (st.global.cs)
//
// Order between blocks; Scope::kBlock, kCluster, kDevice:
//   fence<Scope>()                    fence.acq_rel
//   atomic_add<Scope>(p, v)           relaxed, int, unsigned, uint64_t; returns the old value
//   add_release<Scope>(p, v)          red.release: what this thread did before is seen by whoever
//                                     acquires the sum
//   load_acquire<Scope>(p)            ld.acquire: unsigned, uint64_t
//   pause()                           in every loop that polls
//   wait_for(what, ready)             polls until ready() is true; a launch that waits for seconds
//                                     ends with an error that names `what`, a literal
//
// mbarriers in shared memory (sm_80 and newer, mbarrier_arrive_expect sm_90), phases told apart by
// their parity. Whoever has waited sees what this block's threads did before they arrived.
//   mbarrier_init(bar, count)  mbarrier_arrive(bar)  mbarrier_arrive_expect(bar, bytes)
//   mbarrier_wait(bar, parity)  mbarrier_invalidate(bar)
//
// Clusters (sm_90 and newer): blocks that are on chip together and reach one another's shared
// memory. Not before a first sync_cluster, which tells that the peers run and have initialised
// their mbarriers; and not after a last one, which keeps a block from ending before its peers are
// done.
//   sync_cluster()                    all threads of all blocks of the cluster; orders shared and
//                                     global memory among them (barrier.cluster.arrive.release,
//                                     .wait.acquire, aligned: a warp comes together)
//   mbarrier_publish()                after mbarrier_init and before sync_cluster, by the thread
//                                     that has initialised: the mbarriers may be completed by other
//                                     blocks (fence.mbarrier_init.release.cluster)
//   store_async(place, v, bar, rank)  v of 16 bytes, 16-byte aligned; place and bar are addresses
//                                     in the caller's own shared memory. Writes v at the same
//                                     offsets in block `rank` of the cluster, maybe one's own, then
//                                     completes 16 bytes at that block's mbarrier (st.async). Seen
//                                     there after a mbarrier_wait_cluster
//   mbarrier_wait_cluster(bar, parity)
//                                     as mbarrier_wait, for a phase that other blocks complete
//                                     (mbarrier.try_wait.parity.acquire.cluster)
//
// Arithmetic, float: exp2_fast(x) (ex2.approx)  reciprocal_fast(x) (rcp.approx)  tanh_fast(x)
// (tanh.approx)  multiply_add(a, b, c), a·b + c rounded once, of which a NaN is 0x7FFFFFFF.
// Numbers: bits_of(float)  float_of(uint32_t); of the 16-bit storage types Bf16 and F16:
//   to_float(v)  from_float<S>(float)
//   pack2<S>(low, high) -> uint32_t   two storage values in a word
//
// Host side; `how` is a Launch (storage.h). Both throw std::runtime_error, naming kernel, grid,
// block, shared memory and cluster, where the driver refuses.
//   launch<Args>(how, kernel, args, stream)
//   resident_blocks(how, kernel)      int: how many blocks of this launch the current device runs
//                                     at once, whatever its grid; with clusters, those of whole
//                                     ones; 0 where it has no such clusters
#pragma once

#if defined(RNNFAST_SIMT)
#include "simt/device_simt.h"
#else
#include "cuda/device/device_gpu.h"
#endif
