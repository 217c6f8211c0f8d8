// rnnfast.Stream's compiled part (rnnfast/stream.py): packed weights, states and scratch of layers
// stacked, and one call for a step or a block of steps.
#include <ATen/DimVector.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/stream_weights.h"
#include "bindings/threads.h"
#include "cpu/kernels.h"
#include "cpu/stream/kernels.h"

namespace rnnfast {
namespace {

namespace py = pybind11;
namespace stream = cpu::stream;
using at::Tensor;
using stream::Storage;

constexpr int64_t kChunkRows = 48;  // rows of x that are multiplied at once, where so many come
constexpr int64_t kBytesOfAThread = int64_t(1) << 21;  // of packed weights that pay for another

// Memory on a cache line of its own.
struct Room {
  Tensor bytes;

  explicit Room(int64_t size = 0)
      : bytes(at::zeros({size + 64}, at::TensorOptions().dtype(at::kByte))) {}
  void* data() const {
    const auto begin = reinterpret_cast<uintptr_t>(bytes.mutable_data_ptr());
    return reinterpret_cast<void*>((begin + 63) & ~uintptr_t(63));
  }
};

template <class T>
void round_values(float* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] = static_cast<float>(static_cast<T>(values[i]));
}

template <class T>
void widen(const T* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

template <class T>
void narrow(const float* from, T* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(from[i]);
}

// What one call is given: strides in elements, of an axis of one element or less whatever it is.
struct Block {
  int64_t T = 1, x_step = 0, x_row = 0, y_step = 0, y_row = 0;
  Tensor x, y;
  bool tokens = false;
};

// Of layers whose cell is compiled at run time: addresses that Python keeps alive.
struct OwnLayer {
  intptr_t forward, arguments;
  Tensor gx, y;
};

template <class S>
struct Prepared {
  std::vector<stream::Layer<S>> layers;
  std::vector<stream::Own<S>> own;
};

class Held {
 public:
  Held(const std::string& cell, const std::string& storage, at::ScalarType dtype, int64_t B,
       int64_t I, int64_t H, int64_t P, int64_t layers, bool batch_first, int64_t own_gates,
       std::vector<Tensor> own_states)
      : storage_(storage_named(storage)),
        dtype_(dtype),
        wide_(dtype == at::kDouble ? at::kDouble : at::kFloat),
        B_(B),
        P_(P),
        batch_first_(batch_first),
        chunk_(std::max<int64_t>(1, kChunkRows / std::max<int64_t>(B, 1))),
        own_states_(std::move(own_states)) {
    const bool own = own_gates > 0;
    const CellId id = own ? CellId::kRnnTanh : find_cell(cell).id;
    for (int64_t l = 0; l < layers; ++l) shapes_.push_back({id, l == 0 ? I : P, H, P, own_gates});
    for (const stream::Shape& shape : shapes_)
      packed_.emplace_back(stream::kernels().packed(shape, storage_));
    scratch_ = Room(stream::kernels().scratch(shapes_.data(), layers, storage_, B, chunk_));
    const auto options = at::TensorOptions().dtype(wide_);
    if (!own) {
      h_ = at::zeros({2, layers, B, P}, options);
      if (find_cell(cell).states == 2) c_ = at::zeros({layers, B, H}, options);
    }
    if (dtype_ != at::kFloat && dtype_ != at::kDouble) {
      x_ = at::empty({chunk_, B, I}, options);
      y_ = at::empty({chunk_, B, P}, options);
    }
    for (const Room& room : packed_) bytes_ += room.bytes.numel();
  }

  // Packs weights: of each layer w_ih, w_hh, b_ih, b_hh, w_hr in the wide dtype or null; of a cell
  // that is compiled at run time, its loops. `watched`: what they were made of.
  void pack(const std::vector<std::vector<std::optional<Tensor>>>& weights,
            std::vector<OwnLayer> own, const WatchedWeights& watched) {
    {
      const py::gil_scoped_release no_gil;
      const std::lock_guard<std::mutex> lock(mutex_);
      wide_ == at::kDouble ? pack_as<double>(weights, std::move(own))
                           : pack_as<float>(weights, std::move(own));
    }
    watched_ = watched;  // seen before they were read
  }

  // The outputs; none where the weights have changed since they were packed.
  std::optional<Tensor> step(const Tensor& x, const std::optional<Tensor>& out) {
    if (!watched_.same()) return std::nullopt;
    Block block = block_of(x, out);
    const Tensor y = block.y;
    {
      const py::gil_scoped_release no_gil;
      const std::lock_guard<std::mutex> lock(mutex_);
      if (block.T > 0 && B_ > 0) dtype_ == at::kDouble ? run<double>(block) : run<float>(block);
    }
    return y;
  }

  // Sets the states of the sequences of a mask, or of all, to 0.
  void reset(const std::optional<Tensor>& mask) {
    if (mask) {
      TORCH_CHECK_TYPE(mask->scalar_type() == at::kBool, "mask must be torch.bool, got ",
                       mask->scalar_type());
      TORCH_CHECK_VALUE(mask->device().is_cpu() && mask->dim() == 1 && mask->size(0) == B_,
                        "mask must have shape [", B_, "] and be on the CPU, got ", mask->sizes(),
                        " on ", mask->device());
    }
    const Tensor rows = mask ? mask->contiguous() : Tensor();
    const bool* chosen = mask ? rows.const_data_ptr<bool>() : nullptr;
    const py::gil_scoped_release no_gil;
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Tensor& state : states()) {
      char* at = static_cast<char*>(state.mutable_data_ptr());
      const int64_t bytes = state.size(2) * state.element_size();
      for (int64_t i = 0; i < state.size(0) * B_; ++i) {
        if (!chosen || chosen[i % B_]) std::memset(at + i * bytes, 0, bytes);
      }
    }
  }

  std::vector<Tensor> state() {
    const py::gil_scoped_release no_gil;
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Tensor> found = states();
    for (Tensor& state : found) state = state.clone();
    return found;
  }

  void set_state(const std::vector<Tensor>& values) {
    const py::gil_scoped_release no_gil;
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::vector<Tensor> mine = states();
    TORCH_CHECK_VALUE(values.size() == mine.size(), "expected ", mine.size(), " states, got ",
                      values.size());
    for (size_t k = 0; k < mine.size(); ++k) {
      TORCH_CHECK_VALUE(values[k].sizes() == mine[k].sizes(), "state ", k, " must have shape ",
                        mine[k].sizes(), ", got ", values[k].sizes());
      mine[k].copy_(values[k]);
    }
  }

  int64_t chunk() const { return chunk_; }  // the most steps of a layer at a time
  int64_t bytes() const { return bytes_; }
  int threads() const {
    if (!own_layers_.empty() || bytes_ < 2 * kBytesOfAThread) return 1;
    return static_cast<int>(std::min<int64_t>(host_threads(), bytes_ / kBytesOfAThread));
  }

 private:
  static Storage storage_named(const std::string& name) {
    if (name == "float32") return Storage::kFloat32;
    if (name == "float64") return Storage::kFloat64;
    if (name == "bfloat16") return Storage::kBFloat16;
    TORCH_CHECK_VALUE(name == "int8", "no storage is called ", name);
    return Storage::kInt8;
  }

  // Each [L, B, width], as they are now.
  std::vector<Tensor> states() const {
    if (!h_.defined()) return own_states_;
    std::vector<Tensor> found{h_[slot_]};
    if (c_.defined()) found.push_back(c_);
    return found;
  }

  template <class S>
  void pack_as(const std::vector<std::vector<std::optional<Tensor>>>& weights,
               std::vector<OwnLayer> own) {
    own_layers_ = std::move(own);
    Prepared<S>& prepared = std::get<Prepared<S>>(prepared_);
    prepared.own.resize(own_layers_.size());
    prepared.layers.clear();
    for (size_t l = 0; l < shapes_.size(); ++l)
      prepared.layers.push_back(layer<S>(l, prepared.own));
    for (size_t l = 0; l < shapes_.size(); ++l) {
      const auto data = [&](size_t k) {
        return weights[l][k] ? weights[l][k]->const_data_ptr<S>() : nullptr;
      };
      const stream::Weights<S> w{data(0), data(1), data(2), data(3), data(4)};
      if constexpr (sizeof(S) == 8) {
        stream::kernels().pack_f64(shapes_[l], storage_, w, packed_[l].data());
      } else {
        stream::kernels().pack_f32(shapes_[l], storage_, w, packed_[l].data());
      }
    }
  }

  // What a call is about. Raises for an input or an output that does not fit.
  Block block_of(const Tensor& input, const std::optional<Tensor>& out) const {
    Block b;
    TORCH_CHECK_VALUE(input.device().is_cpu(), "input must be on the CPU, got ", input.device());
    b.tokens = input.scalar_type() == at::kLong;
    TORCH_CHECK_VALUE(b.tokens || input.scalar_type() == dtype_, "RNN input dtype (",
                      input.scalar_type(), ") does not match weight dtype (", dtype_, ")");
    TORCH_CHECK(!input.requires_grad(),
                "a Stream records no gradients: give it input.detach(), or use the layer");
    const int64_t given = input.dim() + (b.tokens ? 1 : 0), I = shapes_[0].I;
    TORCH_CHECK_VALUE(given >= 1 && given <= 3, "Stream: Expected input to be ",
                      b.tokens ? "0D, 1D or 2D tokens" : "1D, 2D or 3D", ", got ", input.dim(),
                      "D instead");
    TORCH_CHECK(given > 1 || B_ == 1, "Stream: 1-D input [I] is for batch_size=1, this one has ",
                B_);
    TORCH_CHECK(b.tokens || input.size(-1) == I,
                "input.size(-1) must be equal to input_size. Expected ", I, ", got ",
                input.size(-1));
    const int64_t step = batch_first_ ? 1 : 0, row = given == 3 ? 1 - step : 0;
    TORCH_CHECK(given == 1 || input.size(row) == B_, "Stream: Expected a batch of ", B_, ", got ",
                input.size(row));
    b.x = input.resolve_neg();
    if (!b.tokens && I > 1 && b.x.stride(-1) != 1) b.x = b.x.contiguous();
    if (given == 3) b.T = b.x.size(step), b.x_step = b.x.stride(step);
    if (given > 1) b.x_row = b.x.stride(row);
    if (b.tokens) check_tokens(b.x, I);
    at::DimVector shape(b.x.sizes());
    if (b.tokens) shape.push_back(P_);
    shape.back() = P_;
    b.y = out ? checked(*out, shape, b.x) : at::empty(shape, at::TensorOptions().dtype(dtype_));
    if (given == 3) b.y_step = b.y.stride(step);
    if (given > 1) b.y_row = b.y.stride(row);
    return b;
  }

  const Tensor& checked(const Tensor& out, at::IntArrayRef shape, const Tensor& x) const {
    TORCH_CHECK_VALUE(out.device().is_cpu() && out.scalar_type() == dtype_, "out must be ", dtype_,
                      " on the CPU, got ", out.scalar_type(), " on ", out.device());
    TORCH_CHECK_VALUE(out.sizes() == shape, "out must have shape ", shape, ", got ", out.sizes());
    TORCH_CHECK_VALUE(P_ == 1 || out.stride(-1) == 1, "out must be contiguous in its last axis");
    TORCH_CHECK(!out.requires_grad(), "out must not require gradients");
    at::assert_no_internal_overlap(out);
    at::assert_no_overlap(out, x);
    return out;
  }

  static void check_tokens(const Tensor& tokens, int64_t I) {
    const Tensor all = tokens.contiguous();
    const int64_t* token = all.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < all.numel(); ++i) {
      TORCH_CHECK_INDEX(token[i] >= 0 && token[i] < I, "token ", token[i], " is not in [0, ", I,
                        ")");
    }
  }

  template <class S>
  void run(const Block& b) {
    const auto& layers = std::get<Prepared<S>>(prepared_).layers;
    stream::Run<S> r;
    r.layers = layers.data(), r.count = static_cast<int64_t>(layers.size());
    r.B = B_, r.storage = storage_, r.chunk = chunk_;
    r.threads = threads();
    r.scratch = scratch_.data();
    if constexpr (sizeof(S) == 4) {
      if (x_.defined()) return run_rounded(b, r);
    }
    r.T = b.T, r.slot = slot_;
    input(b, 0, r);
    if (!b.tokens) r.x = b.x.const_data_ptr<S>(), r.x_step = b.x_step, r.x_row = b.x_row;
    r.y = b.y.mutable_data_ptr<S>(), r.y_step = b.y_step, r.y_row = b.y_row;
    if constexpr (sizeof(S) == 8) {
      stream::kernels().run_f64(r);
    } else {
      stream::kernels().run_f32(r);
    }
    slot_ ^= static_cast<int>(b.T & 1);
  }

  template <class S>
  void input(const Block& b, int64_t t, stream::Run<S>& r) const {
    if (!b.tokens) return;
    r.tokens = b.x.const_data_ptr<int64_t>() + t * b.x_step;
    r.x_step = b.x_step, r.x_row = b.x_row;
  }

  // 16-bit storage: in float32, a chunk at a time.
  void run_rounded(const Block& b, stream::Run<float>& r) {
    dtype_ == at::kHalf ? run_rounded<at::Half>(b, r) : run_rounded<at::BFloat16>(b, r);
  }
  template <class T>
  void run_rounded(const Block& b, stream::Run<float>& r) {
    const int64_t I = shapes_[0].I;
    float *x = x_.mutable_data_ptr<float>(), *y = y_.mutable_data_ptr<float>();
    r.round = &round_values<T>;
    for (int64_t t = 0; t < b.T; t += chunk_) {
      r.T = std::min(chunk_, b.T - t), r.slot = slot_;
      if (b.tokens) {
        input(b, t, r);
      } else {
        for (int64_t i = 0; i < r.T * B_; ++i) {
          const int64_t from = (t + i / B_) * b.x_step + i % B_ * b.x_row;
          widen(b.x.const_data_ptr<T>() + from, x + i * I, I);
        }
        r.x = x, r.x_step = B_ * I, r.x_row = I;
      }
      r.y = y, r.y_step = B_ * P_, r.y_row = P_;
      stream::kernels().run_f32(r);
      slot_ ^= static_cast<int>(r.T & 1);
      for (int64_t i = 0; i < r.T * B_; ++i) {
        const int64_t to = (t + i / B_) * b.y_step + i % B_ * b.y_row;
        narrow(y + i * P_, b.y.mutable_data_ptr<T>() + to, P_);
      }
    }
  }

  template <class S>
  stream::Layer<S> layer(size_t l, std::vector<stream::Own<S>>& own) {
    stream::Layer<S> found;
    found.shape = shapes_[l];
    found.packed = packed_[l].data();
    if (!own.empty()) {
      const OwnLayer& mine = own_layers_[l];
      own[l].forward = reinterpret_cast<void (*)(const steps::Arguments*)>(mine.forward);
      own[l].arguments = reinterpret_cast<steps::Arguments*>(mine.arguments);
      own[l].gx = mine.gx.mutable_data_ptr<S>();
      own[l].width = mine.gx.size(-1);
      own[l].y = mine.y.const_data_ptr<S>();
      found.own = &own[l];
      return found;
    }
    const int64_t rows = B_ * P_, layers = static_cast<int64_t>(shapes_.size());
    S* h = h_.mutable_data_ptr<S>();
    for (int64_t s = 0; s < 2; ++s) found.h[s] = h + (s * layers + static_cast<int64_t>(l)) * rows;
    if (c_.defined())
      found.c = c_.mutable_data_ptr<S>() + static_cast<int64_t>(l) * B_ * shapes_[l].H;
    return found;
  }

  const Storage storage_;
  const at::ScalarType dtype_, wide_;
  const int64_t B_, P_;
  const bool batch_first_;
  const int64_t chunk_;
  std::vector<stream::Shape> shapes_;
  std::vector<Room> packed_;
  Room scratch_;
  int64_t bytes_ = 0;
  Tensor h_, c_;  // [2, L, B, P], of which slot_ is the one before the next step; [L, B, H]
  int slot_ = 0;
  const std::vector<Tensor> own_states_;
  std::vector<OwnLayer> own_layers_;
  std::tuple<Prepared<float>, Prepared<double>> prepared_;  // one of them is used
  Tensor x_, y_;                                            // of a chunk, 16-bit storage only
  std::mutex mutex_;        // of all above; never waited for with the GIL
  WatchedWeights watched_;  // with the GIL only
};

}  // namespace
}  // namespace rnnfast

void bind_stream(pybind11::module_& m) {
  namespace py = pybind11;
  using rnnfast::Held;
  using rnnfast::OwnLayer;
  using rnnfast::WatchedWeights;
  py::class_<OwnLayer>(m, "StreamOwnLayer")
      .def(py::init([](intptr_t forward, intptr_t arguments, at::Tensor gx, at::Tensor y) {
             return OwnLayer{forward, arguments, std::move(gx), std::move(y)};
           }),
           py::kw_only(), py::arg("forward"), py::arg("arguments"), py::arg("gx"), py::arg("y"));
  py::class_<WatchedWeights>(m, "StreamWeights")
      .def(py::init<py::dict, const std::vector<std::string>&>());
  py::class_<Held>(m, "Stream")
      .def(py::init([](const std::string& cell, const std::string& storage, at::ScalarType dtype,
                       int64_t B, int64_t I, int64_t H, int64_t P, int64_t layers, bool batch_first,
                       int64_t own_gates, std::vector<at::Tensor> own_states) {
             return std::make_unique<Held>(cell, storage, dtype, B, I, H, P, layers, batch_first,
                                           own_gates, std::move(own_states));
           }),
           py::kw_only(), py::arg("cell"), py::arg("storage"), py::arg("dtype"), py::arg("B"),
           py::arg("I"), py::arg("H"), py::arg("P"), py::arg("layers"), py::arg("batch_first"),
           py::arg("own_gates"), py::arg("own_states"))
      .def("pack", &Held::pack, py::kw_only(), py::arg("weights"), py::arg("own"),
           py::arg("watched"))
      .def("step", &Held::step, py::arg("input"), py::arg("out"))
      .def("reset", &Held::reset, py::arg("mask"))
      .def("state", &Held::state)
      .def("set_state", &Held::set_state)
      .def_property_readonly("chunk", &Held::chunk)
      .def_property_readonly("bytes", &Held::bytes)
      .def_property_readonly("threads", &Held::threads);
}
