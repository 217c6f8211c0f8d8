// Norm, scale and clamp of gradients on CUDA, for rnnfast/clip: one launch for a list of tensors of
// one device. Lists that hold anything else than plain dense floating-point CUDA tensors are not
// taken: None or False is returned, and nothing has been touched.
#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/clip_tensors.h"
#include "bindings/cuda_device.h"
#include "clip/cuda.h"

namespace rnnfast::cuda {
namespace {

namespace py = pybind11;
using at::Tensor;

void check(cudaError_t error) { TORCH_CHECK(error == cudaSuccess, cudaGetErrorString(error)); }

bool capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

// Pinned memory that graphs copy their tables from. A graph's destructor may not call CUDA, so what
// it lets go of waits here for the next call.
std::mutex graveyard_lock;
std::vector<Tensor>& graveyard() {
  static auto* const tables = new std::vector<Tensor>;  // outlives whatever runs at exit
  return *tables;
}

void bury(void* table) {
  const std::lock_guard<std::mutex> lock(graveyard_lock);
  graveyard().push_back(std::move(*static_cast<Tensor*>(table)));
  delete static_cast<Tensor*>(table);
}

void empty_graveyard() {
  std::vector<Tensor> tables;  // freed without the lock
  const std::lock_guard<std::mutex> lock(graveyard_lock);
  tables.swap(graveyard());
}

// The graph that is being captured on `stream` keeps `table` for as long as it lives.
void keep_with_graph(const Tensor& table, cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  cudaGraph_t graph = nullptr;
#if CUDART_VERSION >= 13000
  check(cudaStreamGetCaptureInfo(stream, &status, nullptr, &graph, nullptr, nullptr, nullptr));
#else
  check(cudaStreamGetCaptureInfo_v2(stream, &status, nullptr, &graph));
#endif
  cudaUserObject_t object;
  check(cudaUserObjectCreate(&object, new Tensor(table), bury, 1, cudaUserObjectNoDestructorSync));
  check(cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove));
}

// The table on the device: one asynchronous copy from pinned memory.
Tensor upload(const std::vector<ClipEntry>& entries, at::Device device, cudaStream_t stream) {
  const auto bytes = static_cast<int64_t>(entries.size() * sizeof(ClipEntry));
  const auto options = at::TensorOptions().dtype(at::kByte);
  empty_graveyard();
  const Tensor pinned = at::empty({bytes}, options.pinned_memory(true));
  std::copy(entries.begin(), entries.end(), static_cast<ClipEntry*>(pinned.mutable_data_ptr()));
  Tensor table = at::empty({bytes}, options.device(device));
  if (!capturing(stream)) {
    table.copy_(pinned, /*non_blocking=*/true);  // torch keeps `pinned` until the copy is done
    return table;
  }
  check(cudaMemcpyAsync(table.mutable_data_ptr(), pinned.const_data_ptr(), bytes,
                        cudaMemcpyHostToDevice, stream));
  keep_with_graph(pinned, stream);
  return table;
}

// Two zeroed counters. Launches of one stream follow one another and leave them zeroed, so they
// share a pair; a graph has its own, which it zeroes itself.
Tensor counters(at::Device device, cudaStream_t stream) {
  const auto options = at::TensorOptions().dtype(at::kInt).device(device);
  if (capturing(stream)) return at::zeros({2}, options);
  static std::mutex lock;
  static auto* const all = new std::map<std::pair<int, cudaStream_t>, Tensor>;
  const std::lock_guard<std::mutex> guard(lock);
  Tensor& pair = (*all)[{device.index(), stream}];
  if (!pair.defined()) pair = at::zeros({2}, options);
  return pair;
}

// As many blocks as run at once; `device` is the current one.
int largest_grid(int64_t chunks, int device) {
  static std::mutex lock;
  static std::map<int, std::pair<int, int>> known;  // multiprocessors, and blocks of each
  const std::lock_guard<std::mutex> guard(lock);
  if (known.find(device) == known.end()) {
    int count = 0;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    known[device] = {count, clip_blocks_per_sm()};
  }
  return clip_grid(chunks, known[device].first, known[device].second);
}

class List {
 public:
  // As csrc/bindings/clip.cpp's. Tensors with gaps are copied.
  List(const py::list& list, bool written) {
    for (const py::handle item : list) {
      if (!THPVariable_CheckExact(item.ptr())) return;
      const Tensor& tensor = THPVariable_Unpack(item.ptr());
      const at::Device device = tensors_.empty() ? tensor.device() : tensors_[0].device();
      if (!tensor.is_cuda() || tensor.device() != device || !clip_dtype(tensor) ||
          !is_plain(tensor))
        return;
      if (written) at::assert_no_internal_overlap(tensor);
      tensors_.push_back(tensor);
    }
    for (const Tensor& tensor : tensors_) {
      dense_.push_back(tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous());
      copied_ = copied_ || !dense_.back().is_same(tensor);
    }
    taken_ = !tensors_.empty();
  }

  bool taken() const { return taken_; }
  at::Device device() const { return tensors_[0].device(); }

  at::ScalarType dtype() const {
    at::ScalarType result = tensors_[0].scalar_type();
    for (const Tensor& tensor : tensors_) result = c10::promoteTypes(result, tensor.scalar_type());
    return result;
  }

  bool has_empty() const {
    return std::any_of(tensors_.begin(), tensors_.end(),
                       [](const Tensor& t) { return !t.numel(); });
  }

  double smallest_maximum() const {
    double least = std::numeric_limits<double>::max();
    for (const Tensor& tensor : tensors_) {
      if (tensor.scalar_type() == at::kHalf) least = std::min(least, 65504.0);
      if (tensor.scalar_type() == at::kBFloat16) least = std::min(least, std::ldexp(255.0, 120));
      if (tensor.scalar_type() == at::kFloat) {
        least = std::min(least, double{std::numeric_limits<float>::max()});
      }
    }
    return least;
  }

  // Whether one launch may change all of them: none shares memory with another that is not the
  // same.
  bool separate() const { return !table_of(tensors_, true).overlapping; }

  // One launch for all of them or, where they share memory, one for each that is changed.
  void launch(ClipArgs args) const {
    const bool changes = args.task & (kClipScale | kClipClamp);
    if (!changes || separate()) {
      launch(args, dense_);
    } else {
      for (const Tensor& tensor : dense_) launch(args, {tensor});
    }
    if (!changes) return;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      if (!dense_[i].is_same(tensors_[i])) {
        Tensor(tensors_[i]).copy_(dense_[i]);
      } else {
        tensors_[i].unsafeGetTensorImpl()->bump_version();
      }
    }
  }

  // Copies of tensors that share memory would overwrite one another's changes: torch's code then.
  bool needs_order() const { return copied_ && !separate(); }

 private:
  // `extent`: of everything between the first and the last element.
  static ClipTable table_of(const std::vector<Tensor>& tensors, bool extent) {
    std::vector<ClipTensor> list;
    for (const Tensor& tensor : tensors) {
      int64_t size = tensor.numel();
      if (extent && size > 0 && !tensor.is_non_overlapping_and_dense()) {
        size = 1;
        for (int64_t d = 0; d < tensor.dim(); ++d) size += (tensor.size(d) - 1) * tensor.stride(d);
      }
      list.push_back({const_cast<void*>(tensor.const_data_ptr()), size, *clip_dtype(tensor)});
    }
    return make_clip_table(list);
  }

  void launch(ClipArgs args, const std::vector<Tensor>& tensors) const {
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device().index());
    const ClipTable table = table_of(tensors, false);
    args.chunks = table.chunks;
    args.entries = static_cast<int>(table.entries.size());
    Tensor uploaded;
    if (args.entries <= kClipInline) {
      std::copy(table.entries.begin(), table.entries.end(), args.inlined);
    } else {
      uploaded = upload(table.entries, device(), stream);
      args.table = static_cast<const ClipEntry*>(uploaded.const_data_ptr());
    }
    const int grid = largest_grid(args.chunks, device().index());
    const auto bytes = static_cast<int64_t>(grid * sizeof(ClipSum));
    const Tensor sums = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device()));
    const Tensor meet = counters(device(), stream);
    args.sums = static_cast<ClipSum*>(sums.mutable_data_ptr());
    args.meet = static_cast<unsigned*>(meet.mutable_data_ptr());
    launch_clip_in_turn<GridTurn>(args, grid, stream);
  }

  std::vector<Tensor> tensors_, dense_;
  bool taken_ = false, copied_ = false;
};

void set_norm(ClipArgs& args, double p) {
  args.kind = clip_kind(p);
  args.p = p;
}

// As clip_norm of csrc/bindings/clip.cpp; waits for the device only if `if_finite`.
std::optional<Tensor> clip_norm(const py::list& list, double p, bool wide,
                                std::optional<double> max_norm, bool if_finite) {
  const List tensors(list, max_norm.has_value());
  if (!tensors.taken() || (std::isinf(p) && tensors.has_empty())) return std::nullopt;
  if (max_norm && tensors.needs_order()) return std::nullopt;
  const c10::cuda::CUDAGuard guard(tensors.device());
  const auto options = at::TensorOptions().device(tensors.device());
  const Tensor norm = at::empty({}, options.dtype(at::kDouble));
  const Tensor shown = at::empty({}, options.dtype(tensors.dtype()));
  ClipArgs args;
  set_norm(args, p);
  args.wide = norm.mutable_data_ptr<double>();
  args.given = norm.const_data_ptr<double>();
  args.result = shown.mutable_data_ptr();
  args.result_dtype = static_cast<int>(*clip_dtype(shown));
  args.task = kClipNorm;
  const bool at_once = max_norm && !if_finite && tensors.separate();
  if (max_norm) args.limit = *max_norm;
  if (at_once) args.task |= kClipScale;
  tensors.launch(args);
  if (max_norm && !at_once && !(if_finite && !std::isfinite(shown.item<double>()))) {
    args.task = kClipScale;
    tensors.launch(args);
  }
  return wide ? norm : shown;
}

// `norm` 0-dim, on the tensors' device or the CPU.
bool clip_scale(const py::list& list, const Tensor& norm, double max_norm) {
  const List tensors(list, true);
  if (!tensors.taken() || tensors.needs_order()) return false;
  const c10::cuda::CUDAGuard guard(tensors.device());
  const Tensor given = norm.to(tensors.device(), at::kDouble);
  ClipArgs args;
  args.given = given.const_data_ptr<double>();
  args.limit = max_norm;
  args.task = kClipScale;
  tensors.launch(args);
  return true;
}

bool clip_value(const py::list& list, double bound) {
  const List tensors(list, true);
  if (!tensors.taken() || tensors.needs_order() || std::isnan(bound)) return false;
  if (std::isfinite(bound) && std::fabs(bound) > tensors.smallest_maximum()) return false;
  const c10::cuda::CUDAGuard guard(tensors.device());
  ClipArgs args;
  args.limit = bound;
  args.task = kClipClamp;
  tensors.launch(args);
  return true;
}

}  // namespace
}  // namespace rnnfast::cuda

void bind_cuda_clip(pybind11::module_& m) {
  namespace py = pybind11;
  using namespace rnnfast::cuda;
  m.def("cuda_clip_norm", &clip_norm, py::arg("tensors"), py::arg("p"), py::arg("wide"),
        py::arg("max_norm") = py::none(), py::arg("if_finite") = false);
  m.def("cuda_clip_scale", &clip_scale, py::arg("tensors"), py::arg("norm"), py::arg("max_norm"));
  m.def("cuda_clip_value", &clip_value, py::arg("tensors"), py::arg("bound"));
}
