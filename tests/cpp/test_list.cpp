#include <set>
#include <type_traits>

#include "cells/list.h"
#include "check.h"

using namespace rnnfast;

namespace {

// Its second phase reads what the first has not made.
struct Unsound : GruResetBefore<float> {
  static constexpr Phase kPhases[] = {
      GruResetBefore<float>::kPhases[0],
      {Matrix::kWhh, 2, 1, kU, bits(2), bits(2), bits(1, 2)},
  };
};

static_assert(is_sound<GruResetBefore<float>>() && !is_sound<Unsound>());

}  // namespace

TEST(names_and_ids_are_unique_and_lead_to_each_other) {
  std::set<std::string_view> names;
  for (const CellInfo& cell : kCells) {
    names.insert(cell.name);
    CHECK(find_cell(cell.name).id == cell.id);
    CHECK(cell_info(cell.id).name == cell.name);
  }
  CHECK(names.size() == std::size(kCells));
  CHECK((names == std::set<std::string_view>{"rnn_tanh", "rnn_relu", "lstm", "lstm_proj", "gru",
                                             "gru_reset_before", "mgu"}));
}

TEST(dispatch_finds_the_type) {
  const auto is_gru = [](auto tag) {
    return std::is_same_v<typename decltype(tag)::template Cell<double>, Gru<double>>;
  };
  CHECK(dispatch("gru", is_gru));
  CHECK(dispatch(CellId::kGru, is_gru));
  CHECK(!dispatch("gru_reset_before", is_gru));
}

TEST(info_is_that_of_the_type) {
  for (const CellInfo& cell : kCells) {
    dispatch(cell.id, [&](auto tag) {
      using C = typename decltype(tag)::template Cell<double>;
      CHECK(cell.gates == C::kGates && cell.states == C::kStates && cell.saved == C::kSaved);
      CHECK(cell.phase_count == kPhaseCount<C> && cell.gate_phases() == kGatePhases<C>);
      CHECK(cell.projected() == kProjected<C> && cell.has_extra() == kHasExtra<C>);
      CHECK(cell.own_gate == C::kOwnGate && cell.reads_h == C::kReadsH);
      for (int k = 0; k < C::kSaved; ++k) CHECK(cell.range[k] == C::kRange[k]);
    });
  }
}

TEST(an_unknown_name_says_what_there_is) {
  std::string message;
  try {
    dispatch("grü", [](auto) {});
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  CHECK(message.find("'grü'") != std::string::npos);
  CHECK(message.find("rnn_tanh, rnn_relu, lstm") != std::string::npos);
}
