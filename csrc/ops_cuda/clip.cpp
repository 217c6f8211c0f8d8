// Norm, scale and clamp of gradients on CUDA, for rnnfast/clip: one launch for a list of tensors of
// one device, which csrc/python/clip.cpp has looked at: plain floating-point CUDA tensors.
#include "ops_cuda/clip.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "clip/cuda.h"
#include "clip/dense.h"
#include "ops_cuda/device.h"
#include "ops_cuda/turn.h"
#include "scan/dtypes.h"

namespace rnnfast::ops {
namespace {

using namespace rnnfast::cuda;

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
Tensor upload(const std::vector<ClipEntry>& entries, const Tensor& like, cudaStream_t stream) {
  const auto bytes = static_cast<int64_t>(entries.size() * sizeof(ClipEntry));
  empty_graveyard();
  const Tensor pinned = torch::stable::empty({bytes}, ScalarType::Byte, std::nullopt, std::nullopt,
                                             /*pin_memory=*/true);
  std::copy(entries.begin(), entries.end(), static_cast<ClipEntry*>(pinned.mutable_data_ptr()));
  Tensor table = empty_like(like, {bytes}, ScalarType::Byte);
  if (!capturing(stream)) {  // torch keeps `pinned` until the copy is done
    torch::stable::copy_(table, pinned, /*non_blocking=*/true);
    return table;
  }
  check(cudaMemcpyAsync(table.mutable_data_ptr(), pinned.const_data_ptr(), size_t(bytes),
                        cudaMemcpyHostToDevice, stream));
  keep_with_graph(pinned, stream);
  return table;
}

// Two zeroed counters. Launches of one stream follow one another and leave them zeroed, so they
// share a pair; a graph has its own, which it zeroes itself.
Tensor counters(const Tensor& like, cudaStream_t stream) {
  if (capturing(stream)) return zeros_like(like, {2}, ScalarType::Int);
  static std::mutex lock;
  static auto* const all = new std::map<std::pair<int, cudaStream_t>, Tensor>;
  const std::lock_guard<std::mutex> guard(lock);
  const std::pair<int, cudaStream_t> key{like.get_device_index(), stream};
  const auto known = all->find(key);
  if (known != all->end()) return known->second;
  return all->emplace(key, zeros_like(like, {2}, ScalarType::Int)).first->second;
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

DType clip_dtype(const Tensor& tensor) {
  const std::optional<DType> dtype = known_dtype(tensor.scalar_type());
  require(dtype.has_value(), "no clipping of ", tensor.scalar_type());
  return *dtype;
}

bool is_dense(const Tensor& tensor) {
  return rnnfast::is_dense(tensor.sizes().data(), tensor.strides().data(), tensor.dim());
}

class List {
 public:
  // Tensors with gaps are copied.
  explicit List(std::vector<Tensor> tensors) : tensors_(std::move(tensors)) {
    require(!tensors_.empty(), "an empty list of tensors");
    for (const Tensor& tensor : tensors_) {
      require(is_ours(tensor), "expected ", kDevice, " tensors", device_hint());
      require(tensor.get_device_index() == device(), "expected tensors of one device");
      dense_.push_back(is_dense(tensor) ? tensor : torch::stable::contiguous(tensor));
      copied_ = copied_ || dense_.back().get() != tensor.get();
    }
  }

  int device() const { return tensors_[0].get_device_index(); }
  const Tensor& first() const { return tensors_[0]; }

  ScalarType dtype() const { return promoted(tensors_); }

  bool has_empty() const {
    return std::any_of(tensors_.begin(), tensors_.end(),
                       [](const Tensor& t) { return t.numel() == 0; });
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
      Tensor tensor = tensors_[i];
      if (dense_[i].get() != tensor.get()) torch::stable::copy_(tensor, dense_[i]);
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
      if (extent && size > 0 && !is_dense(tensor)) {
        size = 1;
        for (int64_t d = 0; d < tensor.dim(); ++d) size += (tensor.size(d) - 1) * tensor.stride(d);
      }
      list.push_back({const_cast<void*>(tensor.const_data_ptr()), size, clip_dtype(tensor)});
    }
    return make_clip_table(list);
  }

  void launch(ClipArgs args, const std::vector<Tensor>& tensors) const {
    const cudaStream_t stream = current_stream(first());
    const ClipTable table = table_of(tensors, false);
    args.chunks = table.chunks;
    args.entries = static_cast<int>(table.entries.size());
    Optional uploaded;
    if (args.entries <= kClipInline) {
      std::copy(table.entries.begin(), table.entries.end(), args.inlined);
    } else {
      uploaded = upload(table.entries, first(), stream);
      args.table = static_cast<const ClipEntry*>(uploaded->const_data_ptr());
    }
    const int grid = largest_grid(args.chunks, device());
    const auto bytes = static_cast<int64_t>(size_t(grid) * sizeof(ClipSum));
    const Tensor sums = empty_like(first(), {bytes}, ScalarType::Byte);
    const Tensor meet = counters(first(), stream);
    args.sums = static_cast<ClipSum*>(sums.mutable_data_ptr());
    args.meet = static_cast<unsigned*>(meet.mutable_data_ptr());
    launch_clip_in_turn<GridTurn>(args, grid, stream);
  }

  std::vector<Tensor> tensors_, dense_;
  bool copied_ = false;
};

void set_norm(ClipArgs& args, double p) {
  args.kind = clip_kind(p);
  args.p = p;
}

}  // namespace

Optional cuda_clip_norm(std::vector<Tensor> given, double p, bool wide,
                        std::optional<double> max_norm) {
  const List tensors(std::move(given));
  if (std::isinf(p) && tensors.has_empty()) return std::nullopt;
  if (max_norm && tensors.needs_order()) return std::nullopt;
  const OnDevice guard(tensors.device());
  const Tensor norm = empty_like(tensors.first(), {}, ScalarType::Double);
  const Tensor shown = empty_like(tensors.first(), {}, tensors.dtype());
  ClipArgs args;
  set_norm(args, p);
  args.wide = static_cast<double*>(norm.mutable_data_ptr());
  args.given = args.wide;
  args.result = shown.mutable_data_ptr();
  args.result_dtype = static_cast<int>(clip_dtype(shown));
  args.task = kClipNorm;
  const bool at_once = max_norm && tensors.separate();
  if (max_norm) args.limit = *max_norm;
  if (at_once) args.task |= kClipScale;
  tensors.launch(args);
  if (max_norm && !at_once) {
    args.task = kClipScale;
    tensors.launch(args);
  }
  return wide ? norm : shown;
}

bool cuda_clip_scale(std::vector<Tensor> given, Tensor norm, double max_norm) {
  const List tensors(std::move(given));
  if (tensors.needs_order()) return false;
  const OnDevice guard(tensors.device());
  Tensor wide = empty_like(tensors.first(), {}, ScalarType::Double);
  torch::stable::copy_(wide, norm);
  ClipArgs args;
  args.given = static_cast<const double*>(wide.const_data_ptr());
  args.limit = max_norm;
  args.task = kClipScale;
  tensors.launch(args);
  return true;
}

bool cuda_clip_value(std::vector<Tensor> given, double bound) {
  const List tensors(std::move(given));
  if (tensors.needs_order()) return false;
  const OnDevice guard(tensors.device());
  ClipArgs args;
  args.limit = bound;
  args.task = kClipClamp;
  tensors.launch(args);
  return true;
}

}  // namespace rnnfast::ops
