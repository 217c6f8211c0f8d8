// Tensors of torch without its C++ interface: looked at by DLPack's exchange functions in C, which
// torch has from 2.11 on, made by torch's stable ABI, everything else by calling Python. Named as in
// at::Tensor. All with the GIL, but for sizes and data of one that is held.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <ostream>
#include <type_traits>
#include <vector>

#include "python/dlpack.h"
#include "python/object.h"

namespace rnnfast::python {

enum class ScalarType { Float, Double, Half, BFloat16, Short, Long, Bool, Byte, Other };

std::ostream& operator<<(std::ostream& out, ScalarType dtype);

// Whether the host's kernels take it; and what numbers stored so are computed in.
inline bool is_number(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double ||
         dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}
inline ScalarType wide(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half ? ScalarType::Float : dtype;
}

using c10::BFloat16;
using c10::Half;
using Shape = std::vector<int64_t>;

// Those of a tensor, or written down where they are used; nobody's memory.
struct Sizes {
  const int64_t* begin_;
  size_t count;

  Sizes(std::initializer_list<int64_t> sizes) : Sizes(sizes.begin(), sizes.size()) {}
  Sizes(const int64_t* begin, size_t n) : begin_(begin), count(n) {}
  Sizes(const Shape& shape) : begin_(shape.data()), count(shape.size()) {}
  bool operator==(const Sizes& other) const {
    return count == other.count && std::equal(begin_, begin_ + count, other.begin_);
  }
  bool operator!=(const Sizes& other) const { return !(*this == other); }
};

std::ostream& operator<<(std::ostream& out, const Sizes& sizes);  // [2, 3]

class Tensor;

// Asked for when it is shown: cuda:0.
struct Device {
  const Tensor& tensor;
};

std::ostream& operator<<(std::ostream& out, const Device& device);

class Tensor {
 public:
  Tensor() = default;  // undefined
  // TypeError for what is no tensor, torch's own error for one whose memory can't be seen.
  static Tensor of(const Ref& object);
  // None where that is so.
  static std::optional<Tensor> strided(const Ref& object);

  bool defined() const { return bool(object_); }
  const Ref& object() const { return object_; }

  int64_t dim() const { return view_.ndim; }
  Sizes sizes() const { return {view_.shape, size_t(view_.ndim)}; }
  Shape shape() const { return {view_.shape, view_.shape + view_.ndim}; }
  int64_t size(int64_t d) const { return view_.shape[d < 0 ? d + view_.ndim : d]; }
  int64_t stride(int64_t d) const { return view_.strides[d < 0 ? d + view_.ndim : d]; }
  int64_t numel() const;
  int64_t element_size() const { return view_.bits / 8; }
  ScalarType scalar_type() const;
  bool is_cpu() const { return view_.device == dlpack::kCpu; }
  bool is_cuda() const { return view_.device == dlpack::kCuda; }
  bool is_beside(const Tensor& other) const {  // on the same device
    return view_.device == other.view_.device && view_.device_index == other.view_.device_index;
  }
  bool repeats() const;  // an element, by a stride of 0
  bool has_memory() const;
  // Whether it is one of torch's zero tensors, which forward mode makes and which have no memory, or
  // a part of one.
  // TypeError of anything else without memory that can be read.
  bool is_zero() const;
  bool is_contiguous() const;
  bool is_dense() const;  // in whatever order: no gaps, no element twice
  // RuntimeErrors where a write to this would meet itself, or what is read of `other`.
  void check_written() const;
  void check_apart(const Tensor& other) const;

  template <class S>
  const S* const_data_ptr() const {
    return static_cast<const S*>(const_data_ptr());
  }
  template <class S>
  S* mutable_data_ptr() const {
    return static_cast<S*>(mutable_data_ptr());
  }
  const void* const_data_ptr() const { return mutable_data_ptr(); }
  void* mutable_data_ptr() const { return static_cast<char*>(view_.data) + view_.byte_offset; }

  // The k-th along the first axis: what it is a view of stays its object.
  Tensor at(int64_t k) const;
  Tensor contiguous() const;
  Tensor values() const;  // of a negated or a zero tensor: in memory of their own
  Tensor clone() const;
  Device device() const { return {*this}; }
  bool requires_grad() const;

 private:
  explicit Tensor(Ref object) : object_(std::move(object)) {}

  Ref object_;
  dlpack::View view_{};  // its sizes and strides are the tensor's own
};

void check_number(ScalarType dtype);  // TypeError unless float32 or float64

// Dense, if need be by a copy; ValueError or TypeError, by this name, for one that is elsewhere than
// on the CPU, or of another dtype or shape. Of an optional one that is missing: nothing.
Tensor checked(const char* name, const Tensor& tensor, ScalarType dtype, const Sizes& shape);
std::optional<Tensor> checked(const char* name, const std::optional<Tensor>& tensor,
                              ScalarType dtype, const Sizes& shape);

// On the CPU, not initialised.
Tensor empty(const Sizes& shape, ScalarType dtype);

// Of torch.
ScalarType dtype_of(const Ref& dtype);

// At import, once.
void find_torch();

// torch.get_num_threads(), and of these as many as the host's kernels may use.
int host_threads();

}  // namespace rnnfast::python
