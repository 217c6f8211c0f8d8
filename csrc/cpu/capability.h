// Which instruction set runs on a processor, from what is known of it, so that a choice can be tested
// for any.
#pragma once

#include <string>

#include "cpu/kernels.h"

namespace rnnfast::cpu {

struct Processor {
  bool avx2 = false, avx512 = false, avx512_bf16 = false, amx = false;
  // Of AMX: whether this build's compiler knew it; and, asked when it is to be used, whether the
  // system lets this process use it, and whether its numbers are those of its emulation.
  bool compiled_tiles = false;
  bool (*may_use_tiles)() = nullptr;
  bool (*right_tiles)() = nullptr;

  static Processor here();
};

// The best set, or the one whose name is `asked`, if that is not empty. Throws std::runtime_error if
// the processor lacks it, or it is no name. AMX that may not be used is an error if it is asked for;
// else the next set is chosen, and `why_no_tiles` says why.
Kernels choose(const std::string& asked, const Processor& processor);

}  // namespace rnnfast::cpu
