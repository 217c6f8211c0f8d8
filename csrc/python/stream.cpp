// rnnfast.Stream's compiled part (rnnfast/stream.py): packed weights, states and scratch of layers
// stacked, and one call for a step or a block of steps.
#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/crowd.h"
#include "cpu/kernels.h"
#include "cpu/stream/kernels.h"
#include "python/module.h"
#include "python/stream_weights.h"
#include "python/type.h"

namespace rnnfast::python {
namespace {

namespace stream = cpu::stream;
using stream::Storage;

constexpr int64_t kChunkRows = 48;  // rows of x that are multiplied at once, where so many come
constexpr int64_t kBytesOfAThread = int64_t(1) << 21;  // of packed weights that pay for another

// Memory of zeros on a cache line of its own.
class Room {
 public:
  explicit Room(int64_t size = 0) : bytes_(static_cast<size_t>(size) + 64) {}
  template <class T = void>
  T* data() const {
    const auto begin = reinterpret_cast<uintptr_t>(bytes_.data());
    return reinterpret_cast<T*>((begin + 63) & ~uintptr_t(63));
  }
  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }

 private:
  std::vector<char> bytes_;
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

// Of layers whose cell is compiled at run time: addresses that Python keeps alive, and gx and y.
using OwnLayer = std::tuple<int64_t, int64_t, Tensor, Tensor>;

// A state of all layers, [L, B, width], wherever it is.
struct State {
  char* data;
  Shape shape;
};

template <class S>
struct Prepared {
  std::vector<stream::Layer<S>> layers;
  std::vector<stream::Own<S>> own;
};

class Held {
 public:
  Held(const std::string& cell, const std::string& storage, ScalarType dtype, int64_t B, int64_t I,
       int64_t H, int64_t P, int64_t layers, bool batch_first, int64_t own_gates,
       std::vector<Tensor> own_states)
      : storage_(storage_named(storage)),
        dtype_(dtype),
        wide_(dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float),
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
    const int64_t each = wide_ == ScalarType::Double ? 8 : 4;
    if (!own) {
      h_ = Room(2 * layers * B * P * each);
      has_c_ = find_cell(cell).states == 2;
      if (has_c_) c_ = Room(layers * B * H * each);
    }
    rounds_ = dtype_ != ScalarType::Float && dtype_ != ScalarType::Double;
    if (rounds_) x_ = Room(chunk_ * B * I * each), y_ = Room(chunk_ * B * P * each);
    for (const Room& room : packed_) bytes_ += room.size();
  }

  // Looks at a layer's parameters, from which `pack` is then given the weights.
  void watch(const Ref& parameters, const std::vector<std::string>& names) {
    coming_ = WatchedWeights(parameters, names);
  }

  // Packs weights: of each layer w_ih, w_hh, b_ih, b_hh, w_hr in the wide dtype or null; of a cell
  // that is compiled at run time, its loops.
  void pack(const std::vector<std::vector<std::optional<Tensor>>>& weights,
            std::vector<OwnLayer> own) {
    {
      const WithoutGil no_gil;
      const std::lock_guard<std::mutex> lock(mutex_);
      own_layers_.swap(own);  // those before are let go of with the GIL
      wide_ == ScalarType::Double ? pack_as<double>(weights) : pack_as<float>(weights);
    }
    watched_ = coming_;
  }

  // The outputs; none where the weights have changed since they were packed.
  std::optional<Tensor> step(const Tensor& x, const std::optional<Tensor>& out) {
    if (!watched_.same()) return std::nullopt;
    Block block = block_of(x, out);
    const Tensor y = block.y;
    {
      const WithoutGil no_gil;
      const std::lock_guard<std::mutex> lock(mutex_);
      if (block.T > 0 && B_ > 0)
        dtype_ == ScalarType::Double ? run<double>(block) : run<float>(block);
    }
    return y;
  }

  // Sets the states of the sequences of a mask, or of all, to 0.
  void reset(const std::optional<Tensor>& mask) {
    if (mask) {
      check_type(mask->scalar_type() == ScalarType::Bool, "mask must be torch.bool, got ",
                 mask->scalar_type());
      check_value(mask->is_cpu() && mask->dim() == 1 && mask->size(0) == B_,
                  "mask must have shape [", B_, "] and be on the CPU, got ", mask->sizes(), " on ",
                  mask->device());
    }
    const Tensor rows = mask ? mask->contiguous() : Tensor();
    const bool* chosen = mask ? rows.const_data_ptr<bool>() : nullptr;
    const WithoutGil no_gil;
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const State& state : states()) {
      const int64_t bytes = state.shape[2] * each();
      for (int64_t i = 0; i < state.shape[0] * B_; ++i) {
        if (!chosen || chosen[i % B_]) std::memset(state.data + i * bytes, 0, bytes);
      }
    }
  }

  // Copies.
  std::vector<Tensor> state() {
    std::vector<Tensor> found;
    for (const Shape& shape : state_shapes()) found.push_back(empty(shape, wide_));
    const WithoutGil no_gil;
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::vector<State> mine = states();
    for (size_t k = 0; k < mine.size(); ++k)
      std::memcpy(found[k].mutable_data_ptr(), mine[k].data, found[k].numel() * each());
    return found;
  }

  // In the wide dtype, on the CPU.
  void set_state(const std::vector<Tensor>& values) {
    const std::vector<Shape> shapes = state_shapes();
    check_value(values.size() == shapes.size(), "expected ", shapes.size(), " states, got ",
                values.size());
    std::vector<Tensor> given;
    for (size_t k = 0; k < values.size(); ++k) {
      check_value(values[k].sizes() == shapes[k], "state ", k, " must have shape ",
                  Sizes(shapes[k]), ", got ", values[k].sizes());
      check_type(values[k].is_cpu() && values[k].scalar_type() == wide_, "state ", k, " must be ",
                 wide_, " on the CPU, got ", values[k].scalar_type(), " on ", values[k].device());
      given.push_back(values[k].values().contiguous());
    }
    const WithoutGil no_gil;
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::vector<State> mine = states();
    for (size_t k = 0; k < mine.size(); ++k)
      std::memcpy(mine[k].data, given[k].const_data_ptr(), given[k].numel() * each());
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
    check_value(name == "int8", "no storage is called ", name);
    return Storage::kInt8;
  }

  int64_t each() const { return wide_ == ScalarType::Double ? 8 : 4; }

  std::vector<Shape> state_shapes() const {
    std::vector<Shape> found;
    for (const Tensor& state : own_states_)
      found.push_back({state.size(0), state.size(1), state.size(2)});
    if (!own_states_.empty()) return found;
    const int64_t layers = static_cast<int64_t>(shapes_.size());
    found.push_back({layers, B_, P_});
    if (has_c_) found.push_back({layers, B_, shapes_[0].H});
    return found;
  }

  // As they are now.
  std::vector<State> states() const {
    std::vector<State> found;
    for (const Shape& shape : state_shapes()) found.push_back({nullptr, shape});
    for (size_t k = 0; k < own_states_.size(); ++k)
      found[k].data = own_states_[k].mutable_data_ptr<char>();
    if (!own_states_.empty()) return found;
    const Shape& h = found[0].shape;
    found[0].data = h_.data<char>() + slot_ * h[0] * h[1] * h[2] * each();
    if (has_c_) found[1].data = c_.data<char>();
    return found;
  }

  template <class S>
  void pack_as(const std::vector<std::vector<std::optional<Tensor>>>& weights) {
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
    check_value(input.is_cpu(), "input must be on the CPU, got ", input.device());
    b.tokens = input.scalar_type() == ScalarType::Long;
    check_value(b.tokens || input.scalar_type() == dtype_, "RNN input dtype (", input.scalar_type(),
                ") does not match weight dtype (", dtype_, ")");
    check(!input.requires_grad(),
          "a Stream records no gradients: give it input.detach(), or use the layer");
    const int64_t given = input.dim() + (b.tokens ? 1 : 0), I = shapes_[0].I;
    check_value(given >= 1 && given <= 3, "Stream: Expected input to be ",
                b.tokens ? "0D, 1D or 2D tokens" : "1D, 2D or 3D", ", got ", input.dim(),
                "D instead");
    check(given > 1 || B_ == 1, "Stream: 1-D input [I] is for batch_size=1, this one has ", B_);
    check(b.tokens || input.size(-1) == I, "input.size(-1) must be equal to input_size. Expected ",
          I, ", got ", input.size(-1));
    const int64_t step = batch_first_ ? 1 : 0, row = given == 3 ? 1 - step : 0;
    check(given == 1 || input.size(row) == B_, "Stream: Expected a batch of ", B_, ", got ",
          input.size(row));
    b.x = input.values();
    if (!b.tokens && I > 1 && b.x.stride(-1) != 1) b.x = b.x.contiguous();
    if (given == 3) b.T = b.x.size(step), b.x_step = b.x.stride(step);
    if (given > 1) b.x_row = b.x.stride(row);
    if (b.tokens) check_tokens(b.x, I);
    Shape shape = b.x.shape();
    if (b.tokens) shape.push_back(P_);
    shape.back() = P_;
    b.y = out ? checked(*out, shape, b.x) : empty(shape, dtype_);
    if (given == 3) b.y_step = b.y.stride(step);
    if (given > 1) b.y_row = b.y.stride(row);
    return b;
  }

  const Tensor& checked(const Tensor& out, const Shape& shape, const Tensor& x) const {
    check_value(out.is_cpu() && out.scalar_type() == dtype_, "out must be ", dtype_,
                " on the CPU, got ", out.scalar_type(), " on ", out.device());
    check_value(out.sizes() == shape, "out must have shape ", Sizes(shape), ", got ", out.sizes());
    check_value(P_ == 1 || out.stride(-1) == 1, "out must be contiguous in its last axis");
    check(!out.requires_grad(), "out must not require gradients");
    out.check_written();
    out.check_apart(x);
    return out;
  }

  static void check_tokens(const Tensor& tokens, int64_t I) {
    const Tensor all = tokens.contiguous();
    const int64_t* token = all.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < all.numel(); ++i) {
      require(PyExc_IndexError, token[i] >= 0 && token[i] < I, "token ", token[i],
              " is not in [0, ", I, ")");
    }
  }

  template <class S>
  void run(const Block& b) {
    const auto& layers = std::get<Prepared<S>>(prepared_).layers;
    stream::Run<S> r;
    r.layers = layers.data(), r.count = static_cast<int64_t>(layers.size());
    r.B = B_, r.storage = storage_, r.chunk = chunk_;
    r.threads = crowd().known() ? 1 : threads();
    r.scratch = scratch_.data();
    if constexpr (sizeof(S) == 4) {
      if (rounds_) return run_rounded(b, r);
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
    dtype_ == ScalarType::Half ? run_rounded<Half>(b, r) : run_rounded<BFloat16>(b, r);
  }
  template <class T>
  void run_rounded(const Block& b, stream::Run<float>& r) {
    const int64_t I = shapes_[0].I;
    float *x = x_.data<float>(), *y = y_.data<float>();
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
      const auto& [forward, arguments, gx, y] = own_layers_[l];
      own[l].forward = reinterpret_cast<steps::HostPass>(forward);
      own[l].arguments = reinterpret_cast<steps::Arguments*>(arguments);
      own[l].gx = gx.template mutable_data_ptr<S>();
      own[l].width = gx.size(-1);
      own[l].y = y.template const_data_ptr<S>();
      found.own = &own[l];
      return found;
    }
    const int64_t rows = B_ * P_, layers = static_cast<int64_t>(shapes_.size());
    S* h = h_.data<S>();
    for (int64_t s = 0; s < 2; ++s) found.h[s] = h + (s * layers + static_cast<int64_t>(l)) * rows;
    if (has_c_) found.c = c_.data<S>() + static_cast<int64_t>(l) * B_ * shapes_[l].H;
    return found;
  }

  const Storage storage_;
  const ScalarType dtype_, wide_;
  const int64_t B_, P_;
  const bool batch_first_;
  const int64_t chunk_;
  std::vector<stream::Shape> shapes_;
  std::vector<Room> packed_;
  Room scratch_;
  int64_t bytes_ = 0;
  Room h_, c_;  // [2, L, B, P], of which slot_ is the one before the next step; [L, B, H]
  bool has_c_ = false, rounds_ = false;
  int slot_ = 0;
  const std::vector<Tensor> own_states_;
  std::vector<OwnLayer> own_layers_;
  std::tuple<Prepared<float>, Prepared<double>> prepared_;  // one of them is used
  Room x_, y_;                                              // of a chunk, 16-bit storage only
  std::mutex mutex_;                 // of all above; never waited for with the GIL
  WatchedWeights watched_, coming_;  // with the GIL only
};

Ref make(const std::string& cell, const std::string& storage, ScalarType dtype, int64_t B,
         int64_t I, int64_t H, int64_t P, int64_t layers, bool batch_first, int64_t own_gates,
         std::vector<Tensor> own_states) {
  return Type<Held>::make(std::make_unique<Held>(cell, storage, dtype, B, I, H, P, layers,
                                                 batch_first, own_gates, std::move(own_states)));
}

}  // namespace

void bind_stream(std::vector<PyMethodDef>& functions) {
  auto& type = *new Type<Held>;
  type.method<&Held::watch>("watch", "parameters, names")
      .method<&Held::pack>("pack", "*, weights, own")
      .method<&Held::step>("step", "input, out")
      .method<&Held::reset>("reset", "mask")
      .method<&Held::state>("state", "")
      .method<&Held::set_state>("set_state", "values")
      .property<&Held::chunk>("chunk")
      .property<&Held::bytes>("bytes")
      .property<&Held::threads>("threads");
  Type<Held>::add("rnnfast._cpu.StreamHeld", type);
  bind<&make>(functions, "Stream",
              "*, cell, storage, dtype, B, I, H, P, layers, batch_first, own_gates, own_states");
}

}  // namespace rnnfast::python
