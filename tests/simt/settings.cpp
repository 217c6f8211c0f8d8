// The executor's settings and its log in C, for code that is linked to it at run time.
#include <string>

#include "simt/executor.h"

extern "C" void simt_begin(int64_t seed) {
  simt::set_schedule(simt::Schedule::kRandom);
  simt::set_seed(static_cast<uint64_t>(seed));
  simt::clear_log();
}

// Names of the kernels launched since, with a space behind each.
extern "C" const char* simt_launches() {
  static std::string names;
  names.clear();
  for (const simt::LaunchRecord& record : simt::log()) names += record.kernel + " ";
  return names.c_str();
}
