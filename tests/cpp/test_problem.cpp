#include "check.h"
#include "scan/problem.h"

using namespace rnnfast;

namespace {

Problem lstm() {
  Problem p;
  p.cell = CellId::kLstm;
  p.T = 5, p.B = 4, p.I = 6, p.H = 3, p.P = 3;
  return p;
}

template <class Change>
std::string message(Change&& change) {
  Problem p = lstm();
  change(p);
  return p.validate();
}

}  // namespace

TEST(sizes) {
  Problem p = lstm();
  CHECK(p.validate().empty());
  CHECK(p.gate_width() == 12 && p.gate_elements() == 5 * 4 * 12 &&
        p.output_elements() == 5 * 4 * 3);
  CHECK(p.saved_elements() == 0 && p.cell_state_elements() == 0);
  p.all_states = true;
  CHECK(p.saved_elements() == 0 && p.cell_state_elements() == 5 * 4 * 3);
  p.all_states = false, p.training = true;
  CHECK(p.saved_elements() == 4 * 5 * 4 * 3 && p.cell_state_elements() == 5 * 4 * 3);
  p.cell = CellId::kLstmProj, p.P = 2;
  CHECK(p.validate().empty() && p.output_elements() == 5 * 4 * 2 &&
        p.cell_state_elements() == 5 * 4 * 3);
  p.cell = CellId::kGru, p.P = 3, p.all_states = true;
  CHECK(p.validate().empty() && p.cell_state_elements() == 0);
}

TEST(empty_problems_are_sound) {
  CHECK(message([](Problem& p) { p.T = 0; }).empty());
  CHECK(message([](Problem& p) { p.B = 0; }).empty());
  CHECK(message([](Problem& p) { p.I = 0; }).empty());
}

TEST(bad_sizes_are_named) {
  CHECK(message([](Problem& p) { p.T = -1; }) == "T must not be negative, got -1");
  CHECK(message([](Problem& p) { p.B = -2; }) == "B must not be negative, got -2");
  CHECK(message([](Problem& p) { p.I = -3; }) == "I must not be negative, got -3");
  CHECK(message([](Problem& p) { p.H = 0; }) == "H must be positive, got 0");
  CHECK(message([](Problem& p) { p.P = 2; }) == "P must be H for a cell without projection, got 2");
  CHECK(message([](Problem& p) { p.cell = CellId::kLstmProj; }) ==
        "P must be in 1 .. H - 1 for this cell, got 3");
  CHECK(message([](Problem& p) { p.num_threads = 0; }) == "num_threads must be positive, got 0");
}

TEST(sizes_beyond_64_bits_are_refused) {
  const std::string too_large = "a tensor of this problem would have more than 2^63 - 1 bytes";
  constexpr int64_t k30 = int64_t{1} << 30, k40 = int64_t{1} << 40;
  CHECK(message([](Problem& p) { p.T = k40, p.B = k30; }) == too_large);
  CHECK(message([](Problem& p) { p.H = p.P = k30; }) == too_large);  // W_hh: 4·H·H·8 bytes = 2^65
  CHECK(message([](Problem& p) { p.T = p.B = k30, p.H = p.P = 1; }) == too_large);
  CHECK(message([](Problem& p) { p.T = k30, p.B = 1 << 20, p.I = 1 << 12, p.H = p.P = 1; }) ==
        too_large);
  CHECK(message([](Problem& p) { p.T = k40, p.B = 8; }).empty());
  CHECK(message([](Problem& p) { p.T = k40, p.B = 0; }).empty());
}
