// What the lanes of a warp do together, but for the matrix products.
#include <algorithm>
#include <cstring>

#include "simt/report.h"
#include "simt/state.h"

namespace simt {
namespace {

// A lane is waited for by one that waits for it.
void require_no_cross_wait(const Operation& operation, uint32_t mask, Site site) {
  const uint32_t self = 1u << current->lane;
  for (const Meeting& other : current->warp->meetings) {
    if (other.mask != mask && (other.mask & self) != 0 && (other.arrived & mask) != 0) {
      fail(std::string(operation.name) + " of lanes " + hexadecimal(mask) + ", of which " +
               hexadecimal(other.arrived & mask) + " wait for this one in " +
               other.operation->name + " of lanes " + hexadecimal(other.mask) + " at " +
               to_string(other.site),
           site);
    }
  }
}

void require_lanes(const Operation& operation, uint32_t mask, Site site) {
  const Warp& warp = *current->warp;
  if ((mask >> current->lane & 1) == 0) {
    fail(std::string(operation.name) + ": lane " + std::to_string(current->lane) +
             " is not in its own mask " + hexadecimal(mask),
         site);
  }
  if ((mask & ~warp.lanes) != 0) {
    fail(std::string(operation.name) + ": lanes " + hexadecimal(mask & ~warp.lanes) +
             " of the mask do not exist",
         site);
  }
  if (current->block->live == static_cast<int>(current->block->threads.size())) return;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    if (current->block->threads[warp.index * kLanes + lane]->ended) {
      fail(std::string(operation.name) + ": lane " + std::to_string(lane) +
               " of the mask has exited",
           site);
    }
  }
}

void require_same(const Operation& operation, Site site, const Meeting& meeting) {
  if (meeting.operation == &operation && meeting.site == site) return;
  fail(std::string(operation.name) + ", where other lanes of the mask wait in " +
           meeting.operation->name + " at " + to_string(meeting.site),
       site);
}

const Thread& lane_of_running_warp(int lane) {
  return *current->block->threads[current->warp->index * kLanes + lane];
}

template <class SourceOf>
void exchange(uint32_t mask, void* const* operands, const char* name, SourceOf source_of) {
  uint64_t values[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    if (operands[lane] != nullptr) {
      values[lane] = static_cast<const ShuffleOperands*>(operands[lane])->value;
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (operands[lane] == nullptr) continue;
    auto& own = *static_cast<ShuffleOperands*>(operands[lane]);
    const int source = source_of(lane, own.lane);
    if (source < 0 || source >= kLanes || (mask >> source & 1) == 0) {
      fail(std::string(name) + " from lane " + std::to_string(source) + ", which is not in mask " +
               hexadecimal(mask),
           lane_of_running_warp(lane), own.site);
    }
    own.value = values[source];
  }
}

void shuffle(uint32_t mask, void* const* operands) {
  exchange(mask, operands, "shuffle", [](int, int source) { return source; });
}

void shuffle_xor(uint32_t mask, void* const* operands) {
  exchange(mask, operands, "shuffle_xor", [](int lane, int bits) { return lane ^ bits; });
}

void ballot(uint32_t, void* const* operands) {
  uint32_t result = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto* own = static_cast<const BallotOperands*>(operands[lane]);
    if (own != nullptr && own->predicate) result |= 1u << lane;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (operands[lane] != nullptr) static_cast<BallotOperands*>(operands[lane])->result = result;
  }
}

// ldmatrix .x4: of matrix m, lane l receives elements 2·(l % 4) and the next of row l / 4; lane
// 8·m + r has brought row r.
void load_matrix(uint32_t, void* const* operands) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& own = *static_cast<const LoadMatrixOperands*>(operands[lane]);
    for (int matrix = 0; matrix < 4; ++matrix) {
      const void* bringer = operands[8 * matrix + lane / 4];
      own.result[matrix] = static_cast<const LoadMatrixOperands*>(bringer)->row[lane % 4];
    }
  }
}

void nothing(uint32_t, void* const*) {}

}  // namespace

const Operation kSyncWarp = {"sync_warp", nothing, true};
const Operation kShuffle = {"shuffle", shuffle, false};
const Operation kShuffleXor = {"shuffle_xor", shuffle_xor, false};
const Operation kBallot = {"ballot", ballot, false};
const Operation kLoadMatrix = {"load_matrix_x4", load_matrix, false};

void meet(const Operation& operation, uint32_t mask, void* operands, Site site) {
  const Quiet quiet;
  require_lanes(operation, mask, site);
  require_no_cross_wait(operation, mask, site);
  std::vector<Meeting>& meetings = current->warp->meetings;
  auto meeting = std::find_if(meetings.begin(), meetings.end(),
                              [&](const Meeting& other) { return other.mask == mask; });
  if (meeting == meetings.end()) {
    meetings.push_back(
        {&operation, mask, 0, site, operation.orders_memory ? fresh_tag() : nullptr, {}});
    meeting = meetings.end() - 1;
  }
  require_same(operation, site, *meeting);
  const Tag tag = meeting->tag;
  if (operation.orders_memory) release(tag);
  meeting->arrived |= 1u << current->lane;
  meeting->operands[current->lane] = operands;
  if (meeting->arrived != mask) {
    suspend({Wait::kMeeting, operation.name, site, nullptr});
  } else {
    progress();
    operation.carry_out(mask, meeting->operands);
    *meeting = meetings.back();
    meetings.pop_back();
    for (uint32_t left = mask & ~(1u << current->lane); left != 0; left &= left - 1) {
      wake(*current->block->threads[current->warp->index * kLanes + __builtin_ctz(left)]);
    }
    let_others_run();
  }
  if (operation.orders_memory) acquire(tag);
}

}  // namespace simt
