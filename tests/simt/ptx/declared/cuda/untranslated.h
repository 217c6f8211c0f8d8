// What stands in for a kernel whose PTX was not translated into this program.
#pragma once

#include "simt/entry.h"

namespace ptx {
[[noreturn]] inline void untranslated(const char* kernel, int line = __builtin_LINE()) {
  simt::fault("its PTX is not part of this program", {kernel, line});
}
}  // namespace ptx
