// The plan of the CUDA kernels for Python; there without CUDA too, for whoever asks for another
// machine.
#include "cuda/plan/plan.h"

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <optional>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

namespace {

using namespace rnnfast;
using cuda::Device;

// sm, SMs, shared memory and registers of a block, clock in GHz.
using DeviceNumbers = std::tuple<int, int, int64_t, int64_t, double>;

// (cell, strategy, math, choice, whether backward, H) -> blocks that the device has at once.
using PythonRoom =
    std::optional<std::function<int64_t(const std::string&, const std::string&, const std::string&,
                                        std::tuple<int, int, int, int>, bool, int64_t)>>;

Device device_of(const std::variant<std::string, DeviceNumbers>& given) {
  if (const auto* name = std::get_if<std::string>(&given)) return cuda::device_by_name(*name);
  const auto& [sm, sm_count, shared, registers, clock] = std::get<DeviceNumbers>(given);
  return {sm, sm_count, shared, registers, clock};
}

DType dtype_of(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "float64") return DType::kFloat64;
  if (name == "bfloat16") return DType::kBFloat16;
  if (name == "float16") return DType::kFloat16;
  throw std::invalid_argument("no dtype is called '" + name + "'");
}

std::tuple<std::string, std::string, std::vector<int>, std::string> plan(
    bool backward, const std::string& cell, const std::string& dtype, bool tf32, int64_t T,
    int64_t B, int64_t H, int64_t P, int directions,
    const std::variant<std::string, DeviceNumbers>& device, const std::string& forced,
    const PythonRoom& room) {
  cuda::PlanProblem problem;
  problem.pass = backward ? cuda::Pass::kBackward : cuda::Pass::kForward;
  problem.cell = find_cell(cell).id;
  problem.dtype = dtype_of(dtype);
  problem.tf32 = tf32;
  problem.T = T, problem.B = B, problem.H = H, problem.P = P;
  problem.directions = directions;
  cuda::Room asks;
  if (room) {
    asks = [&](const cuda::TeamQuery& q) {
      const auto strategy =
          q.kind == cuda::TeamKind::kGrid ? cuda::Strategy::kGrid : cuda::Strategy::kCluster;
      return (*room)(cell, std::string(cuda::name_of(strategy)), std::string(cuda::name_of(q.math)),
                     std::make_tuple(q.shape, q.blocks, q.teams, q.tiles), backward, H);
    };
  }
  const cuda::CudaPlan found = cuda::plan_cuda(problem, device_of(device), forced, asks);
  std::vector<int> choice;
  if (found.strategy != cuda::Strategy::kStepwise) choice.push_back(found.shape);
  if (found.strategy == cuda::Strategy::kCluster || found.strategy == cuda::Strategy::kGrid) {
    choice.insert(choice.end(), {found.blocks, found.teams, found.tiles});
  }
  return {std::string(cuda::name_of(found.strategy)), std::string(cuda::name_of(found.math)),
          choice, found.text};
}

// Of each compiled shape: groups, slabs in registers, shared memory for H units, whether H fits it.
std::vector<std::tuple<int, int, int64_t, bool>> list_shapes(bool backward, const std::string& cell,
                                                             const std::string& math, int64_t H) {
  const cuda::Pass pass = backward ? cuda::Pass::kBackward : cuda::Pass::kForward;
  const CellId id = find_cell(cell).id;
  const cuda::Math way = cuda::math_by_name(math);
  const cuda::ShapeList list = cuda::shapes(pass, id, way);
  std::vector<std::tuple<int, int, int64_t, bool>> found;
  for (int i = 0; i < list.size; ++i) {
    const cuda::Shape shape = list.at[i];
    const int64_t bytes = cuda::shared_bytes(pass, id, way, shape, H);
    found.emplace_back(shape.groups, shape.held_slabs, bytes,
                       cuda::fits(pass, id, way, shape, H, INT64_MAX));
  }
  return found;
}

}  // namespace

void bind_plan(pybind11::module_& m) {
  namespace py = pybind11;
  m.def(
      "cuda_plan", &plan, py::kw_only(), py::arg("backward"), py::arg("cell"), py::arg("dtype"),
      py::arg("tf32"), py::arg("T"), py::arg("B"), py::arg("H"), py::arg("P"),
      py::arg("directions"), py::arg("device"), py::arg("forced") = "",
      py::arg("room") = py::none(),
      "(strategy, math, choice, text) of one pass over a layer; choice: [] if stepwise, [shape] if "
      "resident, [shape, blocks, teams, tiles] of a cluster or grid; device: a name of "
      "csrc/cuda/plan/model.h, or (compute capability as 10*major+minor, SMs, bytes of shared "
      "memory and registers of a block, GHz); room: asked how many blocks of a team kernel the "
      "device has at once, by (cell, strategy, math, choice, backward, H).\n\n"
      "Raises ValueError for an unknown name, or where `forced` asks for what can't be.");
  m.def(
      "cuda_shapes", &list_shapes, py::arg("backward"), py::arg("cell"), py::arg("math"),
      py::arg("H"),
      "Of each compiled resident kernel: (groups or tiles of a warp, slabs of a tile in registers, "
      "bytes of dynamic shared memory for H hidden units, whether a block's warps have room for "
      "H).");
}
