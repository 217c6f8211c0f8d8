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

// The executor's device: so many SMs, clusters of at most so many blocks (1: none), and what
// threads of the team kernels have in registers (0: not known).
void set_device(int64_t sm_count, int64_t cluster_limit, int64_t registers) {
  for (const char* kernel : {"team_forward", "team_backward"}) {
    simt::set_registers(kernel, static_cast<int>(registers));
  }
  simt::Device device;
  device.sm_count = static_cast<int>(sm_count);
  device.cluster_limit = static_cast<int>(cluster_limit);
  simt::set_device(device);
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
  m.def("set_device(int sm_count, int cluster_limit, int registers) -> ()", &set_device);
  m.def("launches() -> str[]", &launches);
  m.def("clear_log() -> ()", &simt::clear_log);
}
