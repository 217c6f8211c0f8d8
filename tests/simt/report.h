// What the executor tells of a launch that went wrong.
#pragma once

#include <string>

#include "simt/state.h"

namespace simt {

std::string to_string(Site site);        // file:line
std::string name(const Block& block);    // block (x, y)
std::string name(const Thread& thread);  // block (x, y), thread t
std::string hexadecimal(uint64_t bits);

// Every waiting thread, grouped by what it waits for and where.
std::string describe_deadlock(const Run& run);
std::string describe_livelock(const Run& run, const Thread& polling, Site site);

// "<kernel>: <failure> [what it takes to run it again]".
std::string describe_failure(const Run& run);

}  // namespace simt
