// The plan of the CUDA kernels for Python: numbers only, so that it can be asked for any machine.
#include "cuda/plan/plan.h"

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "python/bind.h"
#include "python/module.h"

namespace rnnfast::python {
namespace {

// A name of cuda/plan/model.h, or sm, SMs, shared memory and registers of a block, clock in GHz.
cuda::Device device_of(const Ref& given) {
  if (PyUnicode_Check(given.get())) return cuda::device_by_name(From<std::string>::of(given.get()));
  using Numbers = std::tuple<int, int, int64_t, int64_t, double>;
  const auto [sm, sm_count, shared, registers, clock] = From<Numbers>::of(given.get());
  return {sm, sm_count, shared, registers, clock};
}

DType dtype_of(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "float64") return DType::kFloat64;
  if (name == "bfloat16") return DType::kBFloat16;
  check_value(name == "float16", "no dtype is called '", name, "'");
  return DType::kFloat16;
}

// What Python answers to (cell, strategy, math, choice, whether backward, H): blocks that the device
// has at once.
cuda::Room asking(const Ref& room, const std::string& cell, bool backward, int64_t H) {
  return [&room, cell, backward, H](const cuda::TeamQuery& q) {
    const auto strategy =
        q.kind == cuda::TeamKind::kGrid ? cuda::Strategy::kGrid : cuda::Strategy::kCluster;
    const Ref arguments[] = {to_python(cell),
                             to_python(std::string(cuda::name_of(strategy))),
                             to_python(std::string(cuda::name_of(q.math))),
                             to_python(std::make_tuple(q.shape, q.blocks, q.teams, q.tiles)),
                             to_python(backward),
                             to_python(H)};
    const Ref found = room(arguments[0].get(), arguments[1].get(), arguments[2].get(),
                           arguments[3].get(), arguments[4].get(), arguments[5].get());
    return From<int64_t>::of(found.get());
  };
}

// (strategy, math, choice, text) of one pass over a layer; choice: [] if stepwise, [shape] if
// resident, [shape, blocks, teams, tiles] of a cluster or grid. `room` is asked as above.
// ValueError for an unknown name, or where `forced` asks for what can't be.
std::tuple<std::string, std::string, std::vector<int>, std::string> cuda_plan(
    bool backward, const std::string& cell, const std::string& dtype, bool tf32, int64_t T,
    int64_t B, int64_t H, int64_t P, int directions, const Ref& device,
    const std::optional<std::string>& forced, const std::optional<Ref>& room) {
  cuda::PlanProblem problem;
  problem.pass = backward ? cuda::Pass::kBackward : cuda::Pass::kForward;
  problem.cell = find_cell(cell).id;
  problem.dtype = dtype_of(dtype);
  problem.tf32 = tf32;
  problem.T = T, problem.B = B, problem.H = H, problem.P = P;
  problem.directions = directions;
  const cuda::Room asked = room ? asking(*room, cell, backward, H) : cuda::Room();
  const cuda::CudaPlan found =
      cuda::plan_cuda(problem, device_of(device), forced.value_or(""), asked);
  std::vector<int> choice;
  if (found.strategy != cuda::Strategy::kStepwise) choice.push_back(found.shape);
  if (found.strategy == cuda::Strategy::kCluster || found.strategy == cuda::Strategy::kGrid)
    choice.insert(choice.end(), {found.blocks, found.teams, found.tiles});
  return {std::string(cuda::name_of(found.strategy)), std::string(cuda::name_of(found.math)),
          choice, found.text};
}

}  // namespace

void bind_plan(std::vector<PyMethodDef>& functions) {
  bind<&cuda_plan>(functions, "cuda_plan",
                   "*, backward, cell, dtype, tf32, T, B, H, P, directions, device, forced, room");
}

}  // namespace rnnfast::python
