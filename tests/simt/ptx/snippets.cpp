// Runs the hand-written kernels of a PTX, one a line of the standard input:
//
//   kernel threads blocks count word word …
//
// The blocks are a cluster. A kernel's parameters are two addresses: of the words, and of `count` words that begin as 0 and
// are printed, or the fault. Words are 64 bits, in hexadecimal.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "simt/executor.h"
#include "simt/ptx/ptx_runtime.h"

namespace {

struct Request {
  std::string kernel;
  int threads, blocks, count;
  std::vector<uint64_t> words;

  explicit Request(const std::string& line) {
    std::istringstream in(line);
    in >> kernel >> threads >> blocks >> count >> std::hex;
    for (uint64_t word; in >> word;) words.push_back(word);
  }
};

struct alignas(8) Parameters {
  const uint64_t* in;
  uint64_t* out;
};

void call(const void* kernel, const void* args) {
  static_cast<const ptx::Kernel*>(kernel)->body(static_cast<const unsigned char*>(args));
}

std::string answer(const Request& request) {
  const auto kernel = std::find_if(ptx::kernels().begin(), ptx::kernels().end(),
                                   [&](const ptx::Kernel& k) { return request.kernel == k.name; });
  if (kernel == ptx::kernels().end()) return "there is no kernel " + request.kernel;
  std::vector<uint64_t> out(request.count, 0);
  ptx::forget_buffers();
  ptx::register_buffer("in", request.words.data(), 8 * request.words.size(), false);
  ptx::register_buffer("out", out.data(), 8 * out.size(), true);
  const Parameters parameters = {request.words.data(), out.data()};
  rnnfast::cuda::Launch launch;
  launch.name = kernel->name;
  launch.grid_x = request.blocks;
  launch.threads = request.threads;
  launch.shared_bytes = 4096;
  launch.cluster_blocks = request.blocks;
  try {
    simt::run(launch, {call, &*kernel, &parameters});
  } catch (const std::exception& error) {
    return error.what();
  }
  std::string text;
  for (const uint64_t word : out) {
    char digits[20];
    std::snprintf(digits, sizeof digits, " %" PRIx64, word);
    text += digits;
  }
  return "=" + text;
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << answer(Request(line)) << "\n";
  }
  return 0;
}
