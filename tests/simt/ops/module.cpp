// The executor's settings and its log for Python: torch.ops.rnnfast_simt.
#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "simt/executor.h"

namespace {

void set_schedule(const std::string& name, int64_t seed) {
  using simt::Schedule;
  TORCH_CHECK_VALUE(name == "in-order" || name == "reverse" || name == "random",
                    "a schedule is in-order, reverse or random, not ", name);
  simt::set_schedule(name == "random"    ? Schedule::kRandom
                     : name == "reverse" ? Schedule::kReverse
                                         : Schedule::kInOrder);
  simt::set_seed(static_cast<uint64_t>(seed));
}

// Names of the kernels launched since the last call of clear_log, the oldest first.
std::vector<std::string> launches() {
  std::vector<std::string> names;
  for (const simt::LaunchRecord& record : simt::log()) names.push_back(record.kernel);
  return names;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(rnnfast_simt, m) {
  m.def("set_schedule(str name, int seed) -> ()", &set_schedule);
  m.def("launches() -> str[]", &launches);
  m.def("clear_log() -> ()", &simt::clear_log);
}
