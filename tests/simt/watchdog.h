// Ends the process where a thread of a kernel runs on without ever letting another run.
#pragma once

#include <cstdint>

namespace simt {

// While one lives, the number of switches must go on growing.
class Watched {
 public:
  explicit Watched(const uint64_t& switches);
  ~Watched();
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;
};

}  // namespace simt
