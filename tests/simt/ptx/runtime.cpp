// The checked memory of translated PTX, and what a warp does together.
#include <string>
#include <vector>

#include "simt/ptx/ptx_runtime.h"
#include "simt/state.h"

namespace ptx {
namespace {

struct Buffer {
  std::string name;
  uintptr_t begin, end;
  bool writable;
};

std::vector<Kernel>& all_kernels() {
  static std::vector<Kernel> all;
  return all;
}

std::vector<Buffer> buffers;
size_t last_buffer = 0;  // the one that was touched last: likely to be the next

[[noreturn]] void fail(const std::string& message, Place at) {
  simt::fault(message.c_str(), site(at));
}

std::string access_of(int bytes, const char* space) {
  return std::to_string(bytes) + " bytes of " + space;
}

void require_aligned(u64 address, int bytes, int alignment, const char* space, Place at) {
  if (address % u64(alignment) == 0) return;
  fail("misaligned: " + access_of(bytes, space) + " at address " + std::to_string(address) +
           ", which is no multiple of " + std::to_string(alignment),
       at);
}

int64_t bytes_of(const Window& window) {
  return window.bytes >= 0 ? window.bytes : simt::current_run->launch.shared_bytes;
}

unsigned char* data_of(const Window& window, Place at) {
  void* data = window.bytes < 0
                   ? simt::shared_dynamic()
                   : simt::shared_array(&window, window.bytes, window.alignment, site(at));
  return static_cast<unsigned char*>(data);
}

const Buffer* buffer_with(uintptr_t begin, uintptr_t end) {
  const auto holds = [&](const Buffer& b) { return begin >= b.begin && end <= b.end; };
  if (last_buffer < buffers.size() && holds(buffers[last_buffer])) return &buffers[last_buffer];
  for (size_t k = 0; k < buffers.size(); ++k) {
    if (holds(buffers[k])) {
      last_buffer = k;
      return &buffers[k];
    }
  }
  return nullptr;
}

// Where an address in no buffer is.
std::string nearest(uintptr_t address) {
  const Buffer* best = nullptr;
  uintptr_t distance = ~uintptr_t{0};
  for (const Buffer& b : buffers) {
    const uintptr_t off = address < b.begin  ? b.begin - address
                          : address >= b.end ? address - b.end
                                             : 0;
    if (off <= distance) best = &b, distance = off;
  }
  if (best == nullptr) return "there is no buffer";
  const std::string of =
      " of " + best->name + ", which has " + std::to_string(best->end - best->begin) + " bytes";
  if (address < best->begin) return std::to_string(distance) + " bytes before the begin" + of;
  if (address >= best->end) return std::to_string(distance) + " bytes past the end" + of;
  return "across the end" + of;
}

}  // namespace

Registration::Registration(const Kernel& kernel) { all_kernels().push_back(kernel); }

const std::vector<Kernel>& kernels() { return all_kernels(); }

void register_buffer(const char* name, const void* data, size_t bytes, bool writable) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  if (data != nullptr) buffers.push_back({name, begin, begin + bytes, writable});
}

void forget_buffers() { buffers.clear(); }

const unsigned char* param_at(u64 offset, int bytes, Place at) {
  const Frame& frame = at.frame;
  require_aligned(offset, bytes, bytes, "parameters", at);
  if (offset > u64(frame.param_bytes) || offset + u64(bytes) > u64(frame.param_bytes)) {
    fail(access_of(bytes, "parameters") + " at offset " + std::to_string(s64(offset)) + " of " +
             std::to_string(frame.param_bytes),
         at);
  }
  return frame.params + offset;
}

unsigned char* shared_at(u32 address, int bytes, Place at) {
  const simt::Quiet quiet;
  const Frame& frame = at.frame;
  const Window* window = nullptr;
  for (int k = 0; k < frame.window_count && frame.windows[k].base <= address; ++k) {
    window = &frame.windows[k];
  }
  if (window == nullptr) {
    fail(access_of(bytes, "shared memory") + " at address " + std::to_string(address) +
             ", before every array",
         at);
  }
  const int64_t offset = int64_t(address) - window->base;
  if (offset + bytes > bytes_of(*window)) {
    fail(access_of(bytes, "shared memory") + " at offset " + std::to_string(offset) + " of " +
             window->name + ", which has " + std::to_string(bytes_of(*window)) + " bytes",
         at);
  }
  require_aligned(address, bytes, bytes, "shared memory", at);
  return data_of(*window, at) + offset;
}

unsigned char* global_at(u64 address, int bytes, int alignment, Access access, Place at) {
  const simt::Quiet quiet;
  const Buffer* buffer = buffer_with(address, address + bytes);
  if (buffer == nullptr) {
    fail(access_of(bytes, "global memory") + " outside of every buffer: " + nearest(address), at);
  }
  require_aligned(address, bytes, alignment, "global memory", at);
  if (access == Access::kWrite && !buffer->writable) {
    fail("writes to " + buffer->name + ", which is an input", at);
  }
  return reinterpret_cast<unsigned char*>(address);
}

// --- a warp together ---------------------------------------------------------------------------

Shuffled shuffle_from(int lane, bool inside, b32 value, b32 mask, Place at) {
  const int source = inside ? lane : rnnfast::cuda::lane();
  return {rnnfast::cuda::shuffle(mask, value, source, site(at)), inside};
}

// `segment`: in bits 0-4 the last lane of a segment, in bits 8-12 which bits of a lane's number
// name its segment.
Shuffled shuffle_up(b32 value, u32 by, u32 segment, b32 mask, Place at) {
  const int lane = rnnfast::cuda::lane(), same = int(segment >> 8 & 31), last = int(segment & 31);
  const int source = lane - int(by & 31), bound = (lane & same) | (last & ~same);
  return shuffle_from(source, source >= bound, value, mask, at);
}

Shuffled shuffle_down(b32 value, u32 by, u32 segment, b32 mask, Place at) {
  const int lane = rnnfast::cuda::lane(), same = int(segment >> 8 & 31), last = int(segment & 31);
  const int source = lane + int(by & 31), bound = (lane & same) | (last & ~same);
  return shuffle_from(source, source <= bound, value, mask, at);
}

Shuffled shuffle_bfly(b32 value, u32 by, u32 segment, b32 mask, Place at) {
  const int lane = rnnfast::cuda::lane(), same = int(segment >> 8 & 31), last = int(segment & 31);
  const int source = lane ^ int(by & 31), bound = (lane & same) | (last & ~same);
  return shuffle_from(source, source <= bound, value, mask, at);
}

Shuffled shuffle_idx(b32 value, u32 asked, u32 segment, b32 mask, Place at) {
  const int lane = rnnfast::cuda::lane(), same = int(segment >> 8 & 31), last = int(segment & 31);
  const int source = (lane & same) | (int(asked & 31) & ~same);
  return shuffle_from(source, source <= ((lane & same) | (last & ~same)), value, mask, at);
}

Vec<b32, 4> load_matrices(u32 row, Place at) {
  Vec<b32, 4> result;
  rnnfast::cuda::load_matrix_x4(result.at, shared_at(row, 16, at), site(at));
  return result;
}

Sum multiply_bf16_bf16(const A& a, const B& b, Sum c, Place at) {
  rnnfast::cuda::mma_bf16(c.at, a.at, b.at, site(at));
  return c;
}

Sum multiply_f16_f16(const A& a, const B& b, Sum c, Place at) {
  rnnfast::cuda::mma_f16(c.at, a.at, b.at, site(at));
  return c;
}

Sum multiply_tf32_tf32(const A& a, const B& b, Sum c, Place at) {
  rnnfast::cuda::mma_tf32(c.at, a.at, b.at, site(at));
  return c;
}

// The executor takes 200'000 such pauses for a livelock.
u32 clock_high() {
  const simt::Quiet quiet;
  return u32(simt::current_run->idle_pauses / 10'000);
}

// --- mbarriers and clusters --------------------------------------------------------------------

namespace {

constexpr int kRankShift = 24;

// At times not, whatever the phase: who does not ask again is wrong.
bool says_no(Place at) {
  const simt::Quiet quiet;
  if (!simt::one_in(4)) return false;
  simt::pause(site(at));
  return true;
}

int rank_of(u32 address) {
  const int mapped = int(address >> kRankShift);
  return mapped == 0 ? simt::here->cluster_rank : mapped - 1;
}

}  // namespace

bool mbarrier_passed(u32 bar, u32 parity, Place at) {
  if (says_no(at)) return false;
  rnnfast::cuda::mbarrier_wait(mbarrier_at(bar, at), int(parity), site(at));
  return true;
}

bool mbarrier_passed_by_cluster(u32 bar, u32 parity, Place at) {
  if (says_no(at)) return false;
  rnnfast::cuda::mbarrier_wait_cluster(mbarrier_at(bar, at), int(parity), site(at));
  return true;
}

u32 map_to_rank(u32 address, u32 rank, Place at) {
  shared_at(address, 1, at);
  if (rank >= u32(simt::here->cluster_blocks)) {
    fail("mapa to rank " + std::to_string(rank) + " of a cluster of " +
             std::to_string(simt::here->cluster_blocks),
         at);
  }
  return address | (rank + 1) << kRankShift;
}

void store_async(u32 address, const Vec<b32, 4>& value, u32 bar, Place at) {
  constexpr u32 kOwn = (1u << kRankShift) - 1;
  if (rank_of(address) != rank_of(bar)) {
    fail("st.async to rank " + std::to_string(rank_of(address)) + " with an mbarrier of rank " +
             std::to_string(rank_of(bar)),
         at);
  }
  auto* place = reinterpret_cast<Vec<b32, 4>*>(shared_at(address & kOwn, 16, at));
  rnnfast::cuda::store_async(place, value, mbarrier_at(bar & kOwn, at), rank_of(address), site(at));
}

}  // namespace ptx
