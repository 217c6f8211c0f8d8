#include "simt/report.h"

#include <map>
#include <sstream>
#include <tuple>

namespace simt {
namespace {

constexpr int kMaxLines = 12;

// Why the threads of this group cannot go on.
std::string lacking(const Thread& thread) {
  std::ostringstream out;
  const Wait& wait = thread.wait;
  if (wait.kind == Wait::kBarrier) {
    const auto& barrier = *static_cast<const Barrier*>(wait.object);
    out << ", " << barrier.arrived << " of " << barrier.threads << " have arrived";
  } else if (wait.kind == Wait::kMBarrier) {
    const auto& barrier = *static_cast<const MBarrier*>(wait.object);
    out << ", phase " << barrier.phase << " of the mbarrier lacks " << barrier.pending << " of "
        << barrier.count << " arrivals and " << barrier.bytes << " bytes";
  } else if (wait.kind == Wait::kMeeting) {
    for (const Meeting& meeting : thread.warp->meetings) {
      if (meeting.arrived >> thread.lane & 1) {
        out << ", of lanes " << hexadecimal(meeting.mask) << " there are "
            << hexadecimal(meeting.arrived);
      }
    }
  }
  return out.str();
}

std::string describe_waits(const Run& run) {
  using Key = std::tuple<int64_t, const void*, std::string>;
  struct Group {
    const Thread* first;
    int threads;
  };
  std::map<Key, Group> groups;
  for (const auto& block : run.alive) {
    for (const Thread* thread : block->threads) {
      const Wait& wait = thread->wait;
      if (thread->ended || wait.kind == Wait::kNothing) continue;
      const std::string text = std::string(wait.what) + " at " + to_string(wait.site);
      const void* object = wait.kind == Wait::kMeeting ? thread->warp : wait.object;
      auto [found, fresh] = groups.try_emplace({block->index, object, text}, Group{thread, 0});
      ++found->second.threads;
    }
  }
  std::ostringstream out;
  int lines = 0;
  for (const auto& [key, group] : groups) {
    if (++lines > kMaxLines) {
      out << "\n  … and " << groups.size() - kMaxLines << " more";
      break;
    }
    const std::string where = name(*group.first->block);
    out << "\n  " << where << ": " << group.threads << " thread" << (group.threads > 1 ? "s" : "")
        << ", the first is " << group.first->here.thread << ", " << std::get<std::string>(key)
        << lacking(*group.first);
  }
  return out.str();
}

const char* name(Schedule schedule) {
  return schedule == Schedule::kInOrder   ? "in-order"
         : schedule == Schedule::kReverse ? "reverse"
                                          : "random";
}

}  // namespace

std::string to_string(Site site) {
  return std::string(site.file) + ":" + std::to_string(site.line);
}

std::string name(const Block& block) {
  return "block (" + std::to_string(block.x) + ", " + std::to_string(block.y) + ")";
}

std::string name(const Thread& thread) {
  return name(*thread.block) + ", thread " + std::to_string(thread.here.thread);
}

std::string hexadecimal(uint64_t bits) {
  std::ostringstream out;
  out << "0x" << std::hex << bits;
  return out.str();
}

std::string describe_deadlock(const Run& run) {
  return "deadlock: every thread waits" + describe_waits(run);
}

std::string describe_livelock(const Run& run, const Thread& polling, Site site) {
  return "livelock: threads poll and nothing else happens; " + name(polling) + " polls at " +
         to_string(site) + " (" + polling.wait.what + ")" + describe_waits(run);
}

std::string describe_failure(const Run& run) {
  return std::string(run.launch.name) + ": " + run.failure + " [launch " +
         std::to_string(run.number) + " of seed " + std::to_string(settings().seed) + ", " +
         name(settings().schedule) + " schedule]";
}

}  // namespace simt
