// What a scan's tensors must be: the rules of rnnfast/checks.py, and what is served here.
#include <algorithm>

#include "cpu/call.h"
#include "ops/scan.h"

namespace rnnfast::ops {
namespace {

constexpr char kElsewhere[] =
    "; export the program with rnnfast.decompositions(), which needs nothing of rnnfast's";

// Without the message of find_cell, which knows nothing of cells of one's own.
const CellInfo& served(const std::string& name) {
  for (const CellInfo& cell : kCells)
    if (cell.name == name) return cell;
  require(false, "there is no compiled cell ", name, " in this library", kElsewhere);
  return kCells[0];
}

void check_tensor(const Scan& scan, const char* name, const Tensor& tensor) {
  require(tensor.defined(), name, " is an undefined tensor");
  require(scan.place.has(tensor), name, " is on another device than ", scan.place.name, kElsewhere);
  require(tensor.layout() == torch::headeronly::Layout::Strided, name, " must be strided");
}

void check_shape(const char* name, const Tensor& tensor, const Shape& shape) {
  require(shape_of(tensor) == shape, name, " should be ", shown(shape), ", got ",
          shown(shape_of(tensor)));
}

void check_number(const Scan& scan, const char* name, const Tensor& tensor, ScalarType dtype) {
  check_tensor(scan, name, tensor);
  require(tensor.scalar_type() == dtype, name, " should be of dtype ", dtype, ", got ",
          tensor.scalar_type());
}

// The weights by name, in the order of the schema: CellSpec.weight_names.
Weights named(const CellInfo& cell, const std::string& kind, const std::vector<Tensor>& given) {
  const bool has_ih = kind != "gates";
  const size_t matrices = has_ih ? 2 : 1, projection = cell.projected() ? 1 : 0;
  const bool has_bias = given.size() == 2 * matrices + projection;
  require(has_bias || given.size() == matrices + projection, cell.name, " with ", kind,
          " input takes ", matrices + projection, " weights, or ", 2 * matrices + projection,
          " with biases, got ", given.size());
  auto next = given.begin();
  Weights w;
  if (has_ih) w.w_ih = *next++;
  w.w_hh = *next++;
  if (has_bias && has_ih) w.b_ih = *next++;
  if (has_bias) w.b_hh = *next++;
  if (projection) w.w_hr = *next++;
  return w;
}

void check_weight(const Scan& scan, const char* name, const Optional& weight, ScalarType dtype,
                  const Shape& shape) {
  if (!weight) return;
  check_number(scan, name, *weight, dtype);
  check_shape(name, *weight, shape);
}

void check_input(const Scan& scan) {
  const bool tokens = scan.kind == "tokens";
  check_number(scan, "input", scan.input, tokens ? ScalarType::Long : scan.storage);
  const int64_t dims = tokens ? 2 : 3;
  require(scan.input.dim() == dims, "input must have ", dims, " dimensions, got ",
          scan.input.dim());
  require(scan.input.size(0) > 0, "expected a sequence length larger than 0");
}

// Sizes by the tensors that have them; every other tensor is held against these.
void find_sizes(Scan& scan) {
  const Tensor& w_hh = *scan.weights.w_hh;
  const int64_t gates = scan.cell.gates;
  require(w_hh.dim() == 2 && w_hh.size(0) > 0 && w_hh.size(0) % gates == 0, "w_hh should be [",
          gates, "*H, P], got ", shown(shape_of(w_hh)));
  scan.T = scan.input.size(0), scan.B = scan.input.size(1);
  scan.H = w_hh.size(0) / gates;
  scan.P = scan.cell.projected() ? w_hh.size(1) : scan.H;
  require(scan.P > 0, "the width of h must be positive");
  if (scan.kind == "gates") return;
  const Tensor& w_ih = *scan.weights.w_ih;
  require(w_ih.dim() == 2, "w_ih must have 2 dimensions, got ", w_ih.dim());
  scan.I = scan.kind == "tokens" ? w_ih.size(1) : scan.input.size(2);
}

void check_shapes(const Scan& scan) {
  const int64_t T = scan.T, B = scan.B, H = scan.H, P = scan.P, GH = scan.gate_width();
  const Weights& w = scan.weights;
  check_weight(scan, "w_ih", w.w_ih, scan.storage, {GH, scan.I});
  check_weight(scan, "w_hh", w.w_hh, scan.storage, {GH, P});
  check_weight(scan, "b_ih", w.b_ih, scan.storage, {GH});
  check_weight(scan, "b_hh", w.b_hh, scan.storage, {GH});
  check_weight(scan, "w_hr", w.w_hr, scan.storage, {P, H});
  check_weight(scan, "state h", scan.h0, scan.storage, {B, P});
  check_weight(scan, "state c", scan.c0, scan.storage, {B, H});
  check_weight(scan, "lengths", scan.lengths, ScalarType::Long, {B});
  check_weight(scan, "resets", scan.resets, ScalarType::Bool, {T, B});
  if (scan.kind == "gates") check_shape("gates", scan.input, {T, B, GH});
}

void check_lengths(const Scan& scan) {
  if (!scan.lengths) return;
  const int64_t* lengths = cpu::data<const int64_t>(scan.lengths);
  for (int64_t b = 0; b < scan.B; ++b)
    require(lengths[b] >= 0 && lengths[b] <= scan.T, "lengths should be in [0, ", scan.T,
            "], found ", lengths[b]);
}

void check_tokens(const Scan& scan) {
  const int64_t* tokens = cpu::data<const int64_t>(scan.input);
  const int64_t* lengths = cpu::data<const int64_t>(scan.lengths);
  for (int64_t t = 0; t < scan.T; ++t)
    for (int64_t b = 0; b < scan.B; ++b) {
      const int64_t token = tokens[t * scan.B + b];
      require((lengths && t >= lengths[b]) || (token >= 0 && token < scan.I),
              "token out of range: expected 0 <= token < ", scan.I, ", found ", token);
    }
}

// What a program was exported for, by a backend's name in it: whether this backend saved something.
bool check_backend(const Place& place, const std::string& backend, bool training,
                   int64_t checkpoint_every) {
  const bool composite = backend == "torch" || backend == "reference";
  bool known = composite || backend == "auto";
  for (const char* name : {"cpu", "cuda", "triton"}) known = known || backend == name;
  require(known, "no backend is called ", backend);
  require(!training || checkpoint_every == 0,
          "the program was exported for training with checkpoint_every: export it under "
          "torch.no_grad()");
  require(!training || backend != "auto", "the program was exported for training: export it under ",
          "torch.no_grad()");
  require(!training || composite || backend == place.backend, "the program was exported for ",
          "training by the backend ", backend, ", and its tensors are on ", place.name,
          ": export it under torch.no_grad()");
  return training && !composite;
}

}  // namespace

void check_given(const Scan& scan, const char* name, const Tensor& tensor, ScalarType dtype,
                 const Shape& shape) {
  check_weight(scan, name, tensor, dtype, shape);
}

Scan checked(const Place& place, const std::string& cell, const std::string& kind,
             const Tensor& input, const std::vector<Tensor>& states,
             const std::vector<Tensor>& weights, const Optional& lengths, const Optional& resets,
             bool reverse, bool all_states, bool training, int64_t checkpoint_every,
             const std::string& backend) {
  const CellInfo& info = served(cell);
  require(kind == "dense" || kind == "gates" || kind == "tokens", "no kind of input is called ",
          kind);
  require(states.size() == size_t(info.states), info.name, " takes ", info.states, " states, got ",
          states.size());
  Scan scan{info, place, kind};
  scan.weights = named(info, kind, weights);
  scan.input = input, scan.h0 = states[0];
  if (info.states == 2) scan.c0 = states[1];
  scan.lengths = lengths, scan.resets = resets;
  scan.reverse = reverse, scan.all_states = all_states;
  scan.saves = check_backend(place, backend, training, checkpoint_every);
  check_tensor(scan, "w_hh", *scan.weights.w_hh);
  scan.storage = scan.weights.w_hh->scalar_type();
  require(is_wide(scan.storage) || scan.storage == ScalarType::BFloat16 ||
              scan.storage == ScalarType::Half,
          "expected float32, float64, bfloat16 or float16, got ", scan.storage);
  check_input(scan);
  if (scan.weights.w_ih) check_tensor(scan, "w_ih", *scan.weights.w_ih);
  find_sizes(scan);
  check_shapes(scan);
  if (scan.lengths) scan.lengths = torch::stable::contiguous(*scan.lengths);
  if (scan.resets) scan.resets = torch::stable::contiguous(*scan.resets);
  if (place.looks) check_lengths(scan);
  if (kind == "tokens") {
    scan.input = torch::stable::contiguous(scan.input);
    if (place.looks) check_tokens(scan);
  }
  return scan;
}

}  // namespace rnnfast::ops
