#include <algorithm>
#include <set>

#include "simt/executor.h"

namespace simt {

// Lanes are served in groups that together ask for at most 128 bytes: all, halves for 8 bytes,
// quarters for 16. In a group, two different words of one bank take two passes, one word any number
// of lanes.
int bank_conflicts(const std::array<uint32_t, 32>& addresses, int width) {
  constexpr int kBanks = 32, kWord = 4;
  const int group = std::min(32, kBanks * kWord / std::max(width, kWord));
  int extra = 0;
  for (int first = 0; first < 32; first += group) {
    std::array<std::set<uint32_t>, kBanks> words;
    for (int lane = first; lane < first + group; ++lane) {
      if (addresses[lane] == kNoAccess) continue;
      const uint32_t last = (addresses[lane] + width - 1) / kWord;
      for (uint32_t word = addresses[lane] / kWord; word <= last; ++word) {
        words[word % kBanks].insert(word);
      }
    }
    size_t passes = 1;
    for (const auto& bank : words) passes = std::max(passes, bank.size());
    extra += static_cast<int>(passes) - 1;
  }
  return extra;
}

}  // namespace simt
