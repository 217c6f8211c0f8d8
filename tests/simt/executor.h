// Running CUDA kernels on the CPU, one fiber a CUDA thread: what a test or a binding sees of it.
//
// A kernel written against csrc/cuda/device/device.h and compiled with RNNFAST_SIMT is launched as ever,
// by rnnfast::cuda::launch; the launch has ended when that returns. It throws std::runtime_error
//   - where a GPU would refuse the launch ("launch of <kernel> failed: …"), and
//   - where the kernel does what it must not ("<kernel>: block (x, y), thread t: …"): its threads
//     are dropped, and the next launch finds the executor as new.
// What is checked, and what is not, is told in docs/simt.md.
//
// One launch runs at a time; others wait for it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace simt {

// The limits of the GPU that launches are checked against; those of an H100 unless told otherwise.
struct Device {
  int sm_count = 132;
  int threads_per_sm = 2048;
  int blocks_per_sm = 32;
  int registers_per_sm = 65536;
  int shared_per_sm = 228 * 1024;
  int shared_per_block = 227 * 1024;  // opt-in, static and dynamic together
  int shared_reserved = 1024;         // that the system takes of an SM for each block
  // A cluster's blocks lie on the SMs of one GPC. Those of a real H100 differ in size; with 17,
  // clusters of 8 blocks that take an SM each reach 120 of the 132 SMs, as they do there.
  int sms_per_gpc = 17;
  int cluster_limit = 16;  // blocks, above 8 as launch() opts in; 1: no clusters
};
void set_device(const Device& device);

// Which thread runs next: the next one, the one before, or any, in an order that depends on the
// seed only.
enum class Schedule { kInOrder, kReverse, kRandom };
void set_schedule(Schedule schedule);

// Launches draw from here on what the seed and the number of launches since say. RNNFAST_SIMT_SEED
// and RNNFAST_SIMT_SCHEDULE (in-order, reverse, random) are the values before the first call;
// without them 1 and random.
void set_seed(uint64_t seed);

// At most so many CUDA threads of a launch are alive at once, at least a cluster's; a larger grid
// runs as blocks end, unless the launch is cooperative. 32,768 unless told otherwise.
void set_resident_threads(int threads);

// Registers a thread of the kernel with this name, as the compiler reports them: launches are then
// checked against the device's. 0: not known.
void set_registers(const std::string& kernel, int registers);

// A thread that runs this long without a scheduling point ends the process with a message. 0:
// never, as before the first call.
void set_watchdog(int seconds);

struct LaunchRecord {
  std::string kernel;
  int64_t grid_x, grid_y;
  int threads;
  int shared_bytes;  // dynamic
  bool cooperative;
  int cluster_blocks;
  uint64_t switches;  // between threads
};

// Launches that ran to their end since clear_log(), the oldest first; of more than 100,000 the last
// ones.
std::vector<LaunchRecord> log();
void clear_log();

// Extra passes that shared memory's 32 banks of 4 bytes need when a warp's lanes access `width`
// bytes each, 1 to 16, at these byte addresses, beyond the least that this width takes: 0, no
// conflict. For load_matrix_x4, the 32 rows' addresses and a width of 16. Lanes with address
// kNoAccess take no part.
inline constexpr uint32_t kNoAccess = 0xFFFFFFFFu;
int bank_conflicts(const std::array<uint32_t, 32>& addresses, int width);

}  // namespace simt
