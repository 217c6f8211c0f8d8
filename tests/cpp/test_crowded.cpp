// Scans on a machine that others keep busy: their threads leave but one, in the middle of the scan,
// and the results are the same bits. The clocks are this test's: time passes, nobody works.
#include <atomic>

#include "cpu_scan.h"

#define RNNFAST_ISA crowded
#define RNNFAST_VECTOR_BYTES 16
#define RNNFAST_CLOCKS_ELSEWHERE
#include "cpu/kernels.inc"

namespace rnnfast::cpu::crowded {

std::atomic<int64_t> clock{0};
std::atomic<bool> busy{false};

int64_t now() { return clock += 3000000; }
int64_t worked() { return busy ? clock.load() : 0; }
int processor() { return -1; }

}  // namespace rnnfast::cpu::crowded

namespace {

using namespace cpu_scan;

constexpr cpu::Split kSplits[] = {{1, 2}, {1, 3}, {2, 2}};

template <class S>
void check_crowded(const Inputs& in, bool crowded) {
  const Run<S> alone(cpu::kernels_baseline, in, {1, 1}, true, true);
  for (const cpu::Split split : kSplits) {
    cpu::crowded::busy = !crowded;
    const Run<S> run(cpu::kernels_crowded, in, split, true, true);
    const std::string label =
        in.label() + " on " + std::to_string(split.rows) + " x " + std::to_string(split.units);
    CHECK_IN(run.dissolved == (crowded ? 2 : 0), label + ": " + std::to_string(run.dissolved));
    const auto found = run.outputs(), expected = alone.outputs();
    for (size_t k = 0; k < found.size(); ++k) CHECK_IN(found[k]->same_bits(*expected[k]), label);
  }
}

void check_cells(bool crowded) {
  for (const CellInfo& cell : kCells) {
    for (const Option& option : kOptions) {
      const Inputs in(cell.id, 60, 3, 33, option);
      check_crowded<float>(in, crowded);
      check_crowded<double>(in, crowded);
    }
  }
}

TEST(a_crowded_team_is_dissolved_and_results_are_the_same_bits) { check_cells(true); }

TEST(a_team_that_works_stays) { check_cells(false); }

}  // namespace
