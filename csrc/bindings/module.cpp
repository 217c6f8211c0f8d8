// The Python module rnnfast._C, for tests and tools: the cost model of the CUDA kernels and their
// shapes. Of torch it has pybind11's headers and nothing else.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "cuda/plan/model.h"

namespace {

namespace py = pybind11;
using namespace rnnfast;
using namespace rnnfast::cuda;

// sm, SMs, shared memory and registers of a block, clock in GHz.
using DeviceNumbers = std::tuple<int, int, int64_t, int64_t, double>;
using DeviceGiven = std::variant<std::string, DeviceNumbers>;
using Replaced = std::map<std::string, double>;

Device device_of(const DeviceGiven& given) {
  if (const auto* name = std::get_if<std::string>(&given)) return device_by_name(*name);
  const auto& [sm, sm_count, shared, registers, clock] = std::get<DeviceNumbers>(given);
  return {sm, sm_count, shared, registers, clock};
}

struct Product {
  DType dtype;
  bool tf32;
};

Product product_of(const std::string& math) {
  if (math == "bf16") return {DType::kBFloat16, false};
  if (math == "fp16") return {DType::kFloat16, false};
  if (math == "tf32") return {DType::kFloat32, true};
  if (math == "fp32") return {DType::kFloat32, false};
  if (math == "fp64") return {DType::kFloat64, false};
  throw std::invalid_argument("no math is called '" + math +
                              "'; there are: bf16, fp16, tf32, fp32, fp64");
}

py::dict as_dict(const StepCost& c) {
  py::dict limits, d;
  limits["bytes"] = c.limits.bytes;
  limits["flops"] = c.limits.flops;
  limits["specials"] = c.limits.specials;
  d["mma"] = c.mma;
  d["weights_from_shared"] = c.weights_from_shared;
  d["operands"] = c.operands;
  d["partials"] = c.partials;
  d["specials"] = c.specials;
  d["issue"] = c.issue;
  d["latency"] = c.latency;
  d["barrier"] = c.barrier;
  d["exchange"] = c.exchange;
  d["hidden"] = c.hidden;
  d["fetch"] = c.fetch;
  d["product"] = c.product;
  d["pointwise"] = c.pointwise;
  d["load"] = c.load;
  d["launch"] = c.launch;
  d["products"] = c.products;
  d["waves"] = c.waves;
  d["total"] = c.total;
  d["memory"] = c.memory;
  d["expected"] = c.expected();
  d["limits"] = limits;
  return d;
}

// The compiled shape at that index, which must have room for H.
Shape resident_shape(const PlanProblem& p, Math math, int index) {
  const ShapeList list = shapes(p.pass, p.cell, math);
  if (index < 0 || index >= list.size) {
    throw std::invalid_argument("no resident shape " + std::to_string(index) + "; there are " +
                                std::to_string(list.size));
  }
  return list.at[index];
}

TeamKind kind_of(const std::string& strategy) {
  if (strategy == "grid") return TeamKind::kGrid;
  if (strategy == "cluster") return TeamKind::kCluster;
  throw std::invalid_argument("no strategy is called '" + strategy +
                              "'; there are: resident, stepwise, cluster, grid");
}

py::dict model(const std::string& strategy, bool backward, const std::string& cell,
               const std::string& math, int64_t T, int64_t B, int64_t H, int directions,
               const DeviceGiven& device_given, int shape, int blocks, int tiles, int held_slabs,
               bool scattered, double instructions, const Replaced& rates_given) {
  const auto [dtype, tf32] = product_of(math);
  PlanProblem p;
  p.pass = backward ? Pass::kBackward : Pass::kForward;
  p.cell = find_cell(cell).id;
  p.dtype = dtype, p.tf32 = tf32;
  p.T = T, p.B = B, p.H = p.P = H;
  p.directions = directions;
  const Device device = device_of(device_given);
  const Rates rates = with_rates(rates_of(device), rates_given);
  const Math how = math_of(p);
  if (strategy == "stepwise") return as_dict(stepwise_step(p, device, rates));
  if (strategy == "resident") {
    return as_dict(solo_step(p, how, resident_shape(p, how, shape), device, rates, instructions));
  }
  const Team team{kind_of(strategy), blocks, tiles, held_slabs, scattered};
  return as_dict(team_step(p, how, team, device, rates, instructions));
}

// Of each compiled shape: groups, slabs in registers, shared memory for H units, whether H fits it.
std::vector<std::tuple<int, int, int64_t, bool>> list_shapes(bool backward, const std::string& cell,
                                                             const std::string& math, int64_t H) {
  const Pass pass = backward ? Pass::kBackward : Pass::kForward;
  const CellId id = find_cell(cell).id;
  const Math way = math_by_name(math);
  const ShapeList list = shapes(pass, id, way);
  std::vector<std::tuple<int, int, int64_t, bool>> found;
  for (int i = 0; i < list.size; ++i) {
    const Shape shape = list.at[i];
    const int64_t bytes = shared_bytes(pass, id, way, shape, H);
    found.emplace_back(shape.groups, shape.held_slabs, bytes,
                       fits(pass, id, way, shape, H, INT64_MAX));
  }
  return found;
}

// Of each shape compiled for teams: tiles of a block, slabs in registers, shared memory of a block,
// whether the device has room for it; sm_90 and newer have clusters.
std::vector<std::tuple<int, int, int64_t, bool>> team_list(const std::string& strategy,
                                                           bool backward, const std::string& cell,
                                                           const std::string& math, int64_t H,
                                                           int blocks, int tiles,
                                                           const DeviceGiven& device_given) {
  const Device device = device_of(device_given);
  const TeamKind kind = kind_of(strategy);
  const Pass pass = backward ? Pass::kBackward : Pass::kForward;
  const CellId id = find_cell(cell).id;
  const auto [dtype, tf32] = product_of(math);
  std::vector<std::tuple<int, int, int64_t, bool>> found;
  if (dtype == DType::kFloat64 || (dtype == DType::kFloat32 && !tf32)) return found;
  const Math how = dtype == DType::kFloat32 ? Math::kTf32
                   : math == "bf16"         ? Math::kBf16
                                            : Math::kF16;
  const TeamShapeList list = team_shapes(pass, id);
  const bool there = device.sm >= (kind == TeamKind::kCluster ? 90 : 80);
  for (int i = 0; i < list.size; ++i) {
    const TeamShape shape = list.at[i];
    found.emplace_back(
        shape.tiles, shape.held_slabs,
        team_shared_bytes(kind, pass, id, how, shape, H, blocks, tiles),
        there && team_fits({kind, pass, id, how, shape}, H, blocks, tiles, device.shared_limit));
  }
  return found;
}

// name -> (value, unit, by whom it is published or "")
std::map<std::string, std::tuple<double, std::string, std::string>> rates(
    const DeviceGiven& device_given, const Replaced& replaced) {
  const Device device = device_of(device_given);
  const Rates values = with_rates(rates_of(device), replaced);
  std::map<std::string, std::tuple<double, std::string, std::string>> found;
  for (const RateInfo& rate : rate_list(device)) {
    found[std::string(rate.name)] = {values.*rate.value, std::string(rate.unit),
                                     std::string(rate.published)};
  }
  return found;
}

// (sm, SMs, bytes of shared memory, registers, GHz)
DeviceNumbers numbers_of(const std::string& name) {
  const Device d = device_by_name(name);
  return {d.sm, d.sm_count, d.shared_limit, d.registers, d.clock_ghz};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The model of rnnfast's CUDA kernels; rnnfast._ext.load() imports it";
  m.def("cuda_model", &model, py::arg("strategy"), py::kw_only(), py::arg("backward"),
        py::arg("cell"), py::arg("math"), py::arg("T"), py::arg("B"), py::arg("H"),
        py::arg("directions") = 1, py::arg("device") = "H100", py::arg("shape") = 0,
        py::arg("blocks") = 2, py::arg("tiles") = 1, py::arg("held_slabs") = 0,
        py::arg("scattered") = false, py::arg("instructions") = kEstimated,
        py::arg("rates") = Replaced{},
        "Nanoseconds of a step by their parts (csrc/cuda/plan/model.h), modelled and not "
        "measured.\n\n"
        "strategy: resident (with the index of a resident shape), stepwise, or cluster and grid "
        "(with "
        "blocks, batch tiles and slabs in registers of a team). math: bf16, fp16, tf32, fp32, "
        "fp64. device: a name, or (compute capability as 10*major+minor, SMs, bytes of shared "
        "memory and registers of a block, GHz). instructions: of a warp in a step, where they were "
        "counted; -1: estimated; 0: none. rates: name -> value in place of the model's "
        "own.\n\nRaises ValueError for an "
        "unknown name, listing those there are.");
  m.def(
      "cuda_shapes", &list_shapes, py::arg("backward"), py::arg("cell"), py::arg("math"),
      py::arg("H"),
      "Of each compiled resident kernel: (groups or tiles of a warp, slabs of a tile in registers, "
      "bytes of dynamic shared memory for H hidden units, whether a block's warps have room for "
      "H).");
  m.def("cuda_team_shapes", &team_list, py::arg("strategy"), py::arg("backward"), py::arg("cell"),
        py::arg("math"), py::arg("H"), py::arg("blocks"), py::arg("tiles"),
        py::arg("device") = "H100",
        "Of each kernel compiled for teams: (tiles of rows of a block at most, slabs of a tile in "
        "registers, bytes of shared memory of a block, whether H hidden units over `blocks` blocks "
        "with `tiles` batch tiles fit it on the device). Raises ValueError for an unknown name.");
  m.def("cuda_rates", &rates, py::arg("device") = "H100", py::arg("replaced") = Replaced{},
        "name -> (value, unit, by whom it is published) of what the model assumes of a device; an "
        "empty publisher: assumed. Raises ValueError for an unknown name in `replaced`.");
  m.def("cuda_device_numbers", &numbers_of, py::arg("name"),
        "(sm, SMs, shared memory of a block, registers of a block, GHz) of a device by name.");
}
