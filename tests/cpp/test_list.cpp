#include <set>
#include <type_traits>

#include "cells/list.h"
#include "check.h"

using namespace rnnfast;

TEST(names_and_ids_are_unique_and_lead_to_each_other) {
  std::set<std::string_view> names;
  for (const CellInfo& cell : kCells) {
    names.insert(cell.name);
    CHECK(find_cell(cell.name).id == cell.id);
    CHECK(cell_info(cell.id).name == cell.name);
  }
  CHECK(names.size() == std::size(kCells));
  CHECK((names == std::set<std::string_view>{"rnn_tanh", "rnn_relu", "lstm", "lstm_proj", "gru",
                                             "gru_reset_before"}));
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
      CHECK(cell.phases == C::kPhases && cell.projected == C::kProjected);
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
