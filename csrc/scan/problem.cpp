#include "scan/problem.h"

#include <algorithm>
#include <initializer_list>
#include <limits>

namespace rnnfast {
namespace {

// Whether the product of factors, none negative, fits in int64.
bool fits(std::initializer_list<int64_t> factors) {
  if (std::find(factors.begin(), factors.end(), 0) != factors.end()) return true;
  int64_t product = 1;
  for (const int64_t factor : factors) {
    if (product > std::numeric_limits<int64_t>::max() / factor) return false;
    product *= factor;
  }
  return true;
}

std::string got(const char* what, int64_t value) {
  return std::string(what) + ", got " + std::to_string(value);
}

}  // namespace

std::string Problem::validate() const {
  if (T < 0) return got("T must not be negative", T);
  if (B < 0) return got("B must not be negative", B);
  if (I < 0) return got("I must not be negative", I);
  if (H < 1) return got("H must be positive", H);
  if (info().projected() && (P < 1 || P >= H))
    return got("P must be in 1 .. H - 1 for this cell", P);
  if (!info().projected() && P != H) return got("P must be H for a cell without projection", P);
  if (num_threads < 1) return got("num_threads must be positive", num_threads);

  constexpr int64_t kWidest = sizeof(double);
  const int64_t planes = std::max(info().gates, info().saved);
  const bool all_fit = fits({T, B, planes, H, kWidest}) && fits({T, B, I, kWidest}) &&
                       fits({info().gates, H, std::max(H, I), kWidest});
  if (!all_fit) return "a tensor of this problem would have more than 2^63 - 1 bytes";
  return "";
}

}  // namespace rnnfast
