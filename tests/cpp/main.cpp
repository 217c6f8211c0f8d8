#include <algorithm>
#include <string>
#include <vector>

#include "check.h"

namespace {

std::string stem(const std::string& path) {
  const size_t start = path.find_last_of('/') + 1;
  return path.substr(start, path.find_last_of('.') - start);
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> wanted(argv + 1, argv + argc);
  int ran = 0;
  for (const check::Test& test : check::tests()) {
    const std::string file = stem(test.file);
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), file) == wanted.end()) continue;
    const int before = check::failures();
    test.run();
    ++ran;
    std::cout << (check::failures() == before ? "ok     " : "FAILED ") << file << " " << test.name
              << std::endl;
  }
  if (check::failures() > 0) std::cerr << check::failures() << " checks failed\n";
  if (ran == 0) std::cerr << "no such test\n";
  return check::failures() == 0 && ran > 0 ? 0 : 1;
}
