// Reading RNNFAST_PLAN.
#include <algorithm>
#include <charconv>
#include <stdexcept>

#include "cuda/plan/plan.h"

namespace rnnfast::cuda {
namespace {

// A number that is all of `text`, or -1.
int whole_number(std::string_view text) {
  int number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() ? number : -1;
}

[[noreturn]] void refuse(std::string_view text) {
  throw std::invalid_argument(
      "RNNFAST_PLAN is stepwise, resident, cluster or grid, the last three with :key=N,key=N of "
      "shape, forward, backward, of teams blocks, of grid teams teams; not " +
      std::string(text));
}

bool is_team(Strategy strategy) {
  return strategy == Strategy::kCluster || strategy == Strategy::kGrid;
}

struct Keys {
  Forced forced;
  bool of_one_pass = false, of_this = false;  // whether a shape is asked of one pass; of this one
};

// Takes one "key=N"; whether it is sound.
bool take(std::string_view item, Pass pass, Keys& keys) {
  const size_t equals = std::min(item.find('='), item.size());
  const std::string_view key = item.substr(0, equals);
  const int number = whole_number(item.substr(std::min(equals + 1, item.size())));
  if (number < 0) return false;
  const Strategy strategy = keys.forced.strategy;
  if (key == "blocks" && is_team(strategy)) return keys.forced.blocks = number, number > 0;
  if (key == "teams" && strategy == Strategy::kGrid) {
    return keys.forced.teams = number, number > 0;
  }
  if (key == "shape") return keys.forced.shape = number, true;
  if (key != "forward" && key != "backward") return false;
  keys.of_one_pass = true;
  if ((key == "forward") == (pass == Pass::kForward)) {
    keys.of_this = true;
    keys.forced.shape = number;
  }
  return true;
}

}  // namespace

Forced parse_forced(std::string_view text, Pass pass) {
  Keys keys;
  if (text.empty()) return keys.forced;
  const std::string_view name = text.substr(0, text.find(':'));
  bool found = false;
  for (const Strategy strategy :
       {Strategy::kStepwise, Strategy::kResident, Strategy::kCluster, Strategy::kGrid}) {
    if (name == name_of(strategy)) keys.forced.strategy = strategy, found = true;
  }
  std::string_view rest = text.substr(name.size());
  if (!found || (keys.forced.strategy == Strategy::kStepwise && !rest.empty())) refuse(text);
  for (char before = ':'; !rest.empty(); before = ',') {
    if (rest[0] != before) refuse(text);
    const std::string_view item = rest.substr(1, rest.find(',', 1) - 1);
    if (!take(item, pass, keys)) refuse(text);
    rest.remove_prefix(1 + item.size());
  }
  keys.forced.any = !keys.of_one_pass || keys.of_this;
  return keys.forced;
}

}  // namespace rnnfast::cuda
