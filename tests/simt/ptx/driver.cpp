// Runs translated kernels on cases that the command line lists, and compares with the reference scan
// in double precision. A case is `key=value,key=value,…`, see Case. Ends with 1 and the first
// difference or fault.
#include <cstdio>
#include <exception>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/team/arguments.h"
#include "cuda/team/sequence.h"
#include "scan_checks.h"
#include "simt/executor.h"
#include "simt/ptx/ptx_runtime.h"

namespace {

using namespace sequence_scan;

struct Case {
  CellId cell = CellId::kLstm;
  Math math = Math::kBf16;
  int64_t T = 4, B = 3, H = 5;
  int option = 5;                 // of cpu_scan::kOptions
  int forward = 0, backward = 0;  // shapes; backward -1: forward only
  std::string team;               // "grid" or "cluster", then the shapes are the first that fit:
  int blocks = 2, teams = 1, tiles = 1;
  bool inference = false;    // nothing is kept for backward
  bool both = false;         // two directions, of equal tensors, where none reads what is written
  bool spills = false;       // fails unless weights lie in shared memory, in both passes
  bool every_shape = false;  // stands for a case for each, see below
  float clip = 0;
  int seed = 1;

  explicit Case(const std::string& text);
  std::string words;
};

const char* const kMathNames[] = {"bf16", "fp16", "tf32", "fp32"};  // by Math

Math math_of(const std::string& name) {
  for (int k = 0; k < 4; ++k) {
    if (name == kMathNames[k]) return Math(k);
  }
  throw std::invalid_argument("no math is called " + name);
}

CellId cell_of(const std::string& name) {
  for (const CellId cell : kResident) {
    if (name == cell_info(cell).name) return cell;
  }
  throw std::invalid_argument("no cell is called " + name);
}

Case::Case(const std::string& text) : words(text) {
  using Text = const std::string&;
  const auto whole = [](auto& into) { return [&](Text t) { into = std::stoi(t); }; };
  const auto flag = [](bool& into) { return [&](Text t) { into = t == "1"; }; };
  const std::pair<const char*, std::function<void(Text)>> keys[] = {
      {"cell", [&](Text t) { cell = cell_of(t); }},
      {"math", [&](Text t) { math = math_of(t); }},
      {"T", whole(T)},
      {"B", whole(B)},
      {"H", whole(H)},
      {"option", whole(option)},
      {"forward", whole(forward)},
      {"backward", whole(backward)},
      {"team", [&](Text t) { team = t; }},
      {"blocks", whole(blocks)},
      {"teams", whole(teams)},
      {"tiles", whole(tiles)},
      {"inference", flag(inference)},
      {"both", flag(both)},
      {"spills", flag(spills)},
      {"every_shape", flag(every_shape)},
      {"clip", [&](Text t) { clip = std::stof(t); }},
      {"seed", whole(seed)},
  };
  std::istringstream pairs(text);
  for (std::string pair; std::getline(pairs, pair, ',');) {
    const size_t equals = pair.find('=');
    const std::string key = pair.substr(0, equals), value = pair.substr(equals + 1);
    bool known = false;
    for (const auto& [name, take] : keys) {
      if (key == name) take(value), known = true;
    }
    if (!known) throw std::invalid_argument("no key is called " + key);
  }
}

// --- what a launch may touch -------------------------------------------------------------------

template <class Direction>
void register_inputs(const Case& c, const Direction& d) {
  const int64_t bytes = operand_bytes(c.math);
  ptx::forget_buffers();
  ptx::register_buffer("w_hh", d.w_hh, cell_info(c.cell).gates * c.H * c.H * bytes, false);
  ptx::register_buffer("h0", d.h0, c.B * c.H * bytes, false);
  ptx::register_buffer("c0", d.c0, c.B * c.H * bytes, false);
  ptx::register_buffer("lengths", d.lengths, c.B * 8, false);
  ptx::register_buffer("resets", d.resets, c.T * c.B, false);
}

void register_forward(const Case& c, const ForwardArgs& args) {
  const ForwardDirection& d = args.direction[0];
  const int slots = slots_of(c.cell);
  const int64_t bytes = operand_bytes(c.math), state = c.B * c.H, all = c.T * state;
  register_inputs(c, d);
  ptx::register_buffer("gates", d.gates, all * slots * bytes, args.training && slots > 1);
  ptx::register_buffer("y", d.y, all * bytes, true);
  ptx::register_buffer("c", d.c, all * 4, true);
  ptx::register_buffer("h_last", d.h_last, state * bytes, true);
  ptx::register_buffer("c_last", d.c_last, state * bytes, true);
}

void register_backward(const Case& c, const BackwardArgs& args) {
  const BackwardDirection& d = args.direction[0];
  const int slots = slots_of(c.cell);
  const int64_t bytes = operand_bytes(c.math), state = c.B * c.H, all = c.T * state;
  register_inputs(c, d);
  ptx::register_buffer("saved", d.saved, all * slots * bytes, false);
  ptx::register_buffer("y", d.y, all * bytes, false);
  ptx::register_buffer("c", d.c, all * 4, false);
  ptx::register_buffer("dy", d.dy, all * bytes, false);
  ptx::register_buffer("dc", d.dc, all * bytes, false);
  ptx::register_buffer("dh_last", d.dh_last, state * bytes, false);
  ptx::register_buffer("dc_last", d.dc_last, state * bytes, false);
  ptx::register_buffer("dgates", d.dgates, all * slots * bytes, true);
  ptx::register_buffer("dh0", d.dh0, state * bytes, true);
  ptx::register_buffer("dc0", d.dc0, state * bytes, true);
}

// --- launches ----------------------------------------------------------------------------------

void require_spill(const Case& c, bool spills) {
  if (c.spills && !spills) throw std::logic_error("all weights fit the registers");
}

// The library's launch functions, by pass.
void launch_solo(const Case& c, const ForwardArgs& args) {
  launch_sequence_forward(c.cell, {c.math, c.forward}, args, nullptr);
}
void launch_solo(const Case& c, const BackwardArgs& args) {
  launch_sequence_backward(c.cell, {c.math, c.backward}, args, nullptr);
}
void launch_team(const Case& c, const TeamChoice& choice, const ForwardArgs& args, void* zero) {
  launch_team_forward(c.cell, choice, args, zero, nullptr);
}
void launch_team(const Case& c, const TeamChoice& choice, const BackwardArgs& args, void* zero) {
  launch_team_backward(c.cell, choice, args, zero, nullptr);
}

// The first shape with room for a team of `blocks` blocks at most.
TeamChoice choice_of(const Case& c, Pass pass) {
  TeamChoice choice;
  choice.kind = c.team == "grid" ? TeamKind::kGrid : TeamKind::kCluster;
  choice.math = c.math;
  choice.blocks = int(team_blocks(pass, c.cell, c.H, c.blocks));
  choice.teams = c.teams, choice.tiles = c.tiles;
  const TeamShapeList list = team_shapes(pass, c.cell);
  const auto fits = [&] {
    return team_fits({choice.kind, pass, c.cell, c.math, list.at[choice.shape]}, c.H, choice.blocks,
                     c.tiles, 227 * 1024);
  };
  while (choice.shape < list.size && !fits()) ++choice.shape;
  return choice;
}

template <Pass kPass, class Args>
void launch_case(const Case& c, const Args& args) {
  if (c.team.empty()) {
    const int shape = kPass == Pass::kForward ? c.forward : c.backward;
    const Shape held = shapes(kPass, c.cell, c.math).at[shape];
    require_spill(c, spilled_slabs(held, slabs_of(kPass, c.cell, c.math, c.H)) > 0);
    return launch_solo(c, args);
  }
  const TeamChoice choice = choice_of(c, kPass);
  const TeamShapeList list = team_shapes(kPass, c.cell);
  if (choice.shape == list.size) throw std::logic_error("no shape has room for H units");
  const int held = list.at[choice.shape].held_slabs;
  require_spill(c, warp_slabs(kPass, c.cell, c.math, c.H) > held);
  struct alignas(128) Line {
    unsigned char at[128];
  };
  const int64_t bytes = team_workspace(choice.kind, kPass, c.cell, c.math, c.H, choice.teams,
                                       choice.tiles, args.directions);
  std::vector<Line> workspace((bytes + 127) / 128, Line{});
  void* zero = bytes > 0 ? workspace.data() : nullptr;
  ptx::register_buffer("workspace", zero, bytes, true);
  launch_team(c, choice, args, zero);
}

Launchers launchers_of(const Case& c) {
  Launchers launchers;
  launchers.forward = [&c](ForwardArgs args) {
    ForwardDirection& d = args.direction[0];
    if (c.inference) args.training = false, d.c = nullptr;
    if (c.inference && c.both) args.directions = 2, args.direction[1] = d;
    register_forward(c, args);
    launch_case<Pass::kForward>(c, args);
  };
  if (c.inference || c.backward < 0) return launchers;
  launchers.backward = [&c](BackwardArgs args) {
    if (c.both) args.directions = 2, args.direction[1] = args.direction[0];
    register_backward(c, args);
    launch_case<Pass::kBackward>(c, args);
  };
  return launchers;
}

// --- cases -------------------------------------------------------------------------------------

template <class S>
void check_as(const Case& c) {
  const Inputs in = rounded<S>(Inputs(c.cell, c.T, c.B, c.H, cpu_scan::kOptions[c.option]));
  Run<S> got(in, launchers_of(c), c.clip);
  const double share = share_of(c.math);
  if (!c.inference) return check_run(got, in, share, c.backward >= 0, c.clip, c.words);
  const Expected want(in);
  compare(got.y.numbers(), want.y, share, c.words + " y");
  compare(got.h_last.numbers(), want.h_last, share, c.words + " h_last");
  compare(got.c_last.numbers(), want.c_last, share, c.words + " c_last");
}

void check_case(const Case& c) {
  simt::set_seed(c.seed);
  switch (c.math) {
    case Math::kBf16:
      return check_as<Bf16>(c);
    case Math::kF16:
      return check_as<F16>(c);
    default:
      return check_as<float>(c);
  }
}

// Every compiled shape with about the largest H that it takes, beside the other pass's first fit.
std::vector<Case> every_shape(const Case& asked) {
  std::vector<Case> cases;
  constexpr int64_t kShared = 227 * 1024;
  for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
    const bool forward = pass == Pass::kForward;
    const ShapeList list = shapes(pass, asked.cell, asked.math);
    for (int i = 0; i < list.size; ++i) {
      int64_t H = 264;
      while (!fits(pass, asked.cell, asked.math, list.at[i], H, kShared)) H -= 3;
      const Pass other = forward ? Pass::kBackward : Pass::kForward;
      const int beside = first_fit(other, asked.cell, asked.math, H, kShared);
      if (!forward && beside < 0) continue;
      Case c = asked;
      c.H = H, c.forward = forward ? i : beside, c.backward = forward ? beside : i;
      c.words += ",H=" + std::to_string(H) + ",forward=" + std::to_string(c.forward) +
                 ",backward=" + std::to_string(c.backward);
      cases.push_back(c);
    }
  }
  return cases;
}

// The parameters that nvcc laid out against those that the launch code fills.
void check_parameters() {
  const std::pair<const char*, size_t> sizes[] = {
      {"sequence_forward", sizeof(ForwardArgs)},
      {"sequence_backward", sizeof(BackwardArgs)},
      {"team_forward", sizeof(WithTeam<ForwardArgs>)},
      {"team_backward", sizeof(WithTeam<BackwardArgs>)},
  };
  for (const ptx::Kernel& kernel : ptx::kernels()) {
    for (const auto& [name, bytes] : sizes) {
      if (std::string(kernel.name).find(name) == std::string::npos) continue;
      CHECK_IN(size_t(kernel.param_bytes) == bytes, kernel.name);
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  std::string words;
  check_parameters();
  try {
    for (int k = 1; k < count && check::failures() == 0; ++k) {
      const Case asked(arguments[k]);
      for (const Case& c : asked.every_shape ? every_shape(asked) : std::vector<Case>{asked}) {
        words = c.words;
        check_case(c);
      }
    }
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", words.c_str(), error.what());
    return 1;
  }
  for (const simt::LaunchRecord& launch : simt::log()) {
    std::printf("%s: %lld x %lld blocks, %d bytes shared\n", launch.kernel.c_str(),
                static_cast<long long>(launch.grid_x), static_cast<long long>(launch.grid_y),
                launch.shared_bytes);
  }
  return check::failures() > 0;
}
