#include "python/tensor.h"

#include <torch/csrc/stable/c/shim.h>

#include <array>
#include <cstring>

#include "clip/dense.h"
#include "cpu/host.h"

// torch 2.14 has it; before that it is null.
extern "C" __attribute__((weak, visibility("default"))) AOTITorchError
torch_tensor_to_pyobject(AtenTensorHandle, void*, void**);

namespace rnnfast::python {
namespace {

// What is asked of torch: found once, never let go of.
struct Torch {
  const dlpack::Exchange* exchange = nullptr;
  Ref tensor, contiguous, resolve_neg, requires_grad, is_zerotensor;
  std::array<Ref, 8> dtypes;  // by ScalarType
};

Torch& torch() {
  static Torch& found = *new Torch;
  return found;
}

struct Known {
  ScalarType type;
  uint8_t code, bits;
  const char *name, *shown;
  int32_t (*number)();
};

constexpr Known kKnown[] = {
    {ScalarType::Float, dlpack::kFloat, 32, "float32", "Float", aoti_torch_dtype_float32},
    {ScalarType::Double, dlpack::kFloat, 64, "float64", "Double", aoti_torch_dtype_float64},
    {ScalarType::Half, dlpack::kFloat, 16, "float16", "Half", aoti_torch_dtype_float16},
    {ScalarType::BFloat16, dlpack::kBfloat, 16, "bfloat16", "BFloat16", aoti_torch_dtype_bfloat16},
    {ScalarType::Short, dlpack::kInt, 16, "int16", "Short", aoti_torch_dtype_int16},
    {ScalarType::Long, dlpack::kInt, 64, "int64", "Long", aoti_torch_dtype_int64},
    {ScalarType::Bool, dlpack::kBool, 8, "bool", "Bool", aoti_torch_dtype_bool},
    {ScalarType::Byte, dlpack::kUInt, 8, "uint8", "Byte", aoti_torch_dtype_uint8},
};

const Known& known(ScalarType dtype) { return kKnown[static_cast<int>(dtype)]; }

// Before torch 2.14. Memory of a tensor that came by DLPack can't be resized.
Ref made_by_dlpack(const Sizes& shape, int64_t* strides, ScalarType dtype) {
  dlpack::View like{};
  like.device = dlpack::kCpu, like.ndim = static_cast<int32_t>(shape.count);
  like.code = known(dtype).code, like.bits = known(dtype).bits, like.lanes = 1;
  like.shape = const_cast<int64_t*>(shape.begin_), like.strides = strides;
  dlpack::Managed* made = nullptr;
  void* object = nullptr;
  const auto ignore = [](void*, const char*, const char*) {};
  check(torch().exchange->allocate(&like, &made, nullptr, ignore) == 0,
        "no memory for a tensor of ", shape);
  if (torch().exchange->to_python(made, &object) != 0) throw Raised();
  return Ref::owned(static_cast<PyObject*>(object));
}

// The name of its class.
std::string type_of(const Ref& object) {
  const Ref type = Ref::borrowed(reinterpret_cast<PyObject*>(Py_TYPE(object.get())));
  const Ref name = type.attribute("__name__");
  const char* text = PyUnicode_AsUTF8AndSize(name.get(), nullptr);
  if (!text) throw Raised();
  return text;
}

}  // namespace

std::ostream& operator<<(std::ostream& out, ScalarType dtype) {
  return out << (dtype == ScalarType::Other ? "another dtype" : known(dtype).shown);
}

std::ostream& operator<<(std::ostream& out, const Sizes& sizes) {
  out << "[";
  for (size_t i = 0; i < sizes.count; ++i) out << (i ? ", " : "") << sizes.begin_[i];
  return out << "]";
}

std::optional<Tensor> Tensor::strided(const Ref& object) {
  Tensor tensor(object);
  if (torch().exchange->view_of(object.get(), &tensor.view_) == 0) return tensor;
  PyErr_Clear();
  return std::nullopt;
}

Tensor Tensor::of(const Ref& object) {
  Tensor tensor(object);
  if (torch().exchange->view_of(object.get(), &tensor.view_) == 0) return tensor;
  PyObject *type, *value, *trace;  // torch's error, which is of no use for what is elsewhere
  PyErr_Fetch(&type, &value, &trace);
  const Ref error = Ref::taken(type), of_error = Ref::taken(value), at = Ref::taken(trace);
  const int is_tensor = PyObject_IsInstance(object.get(), torch().tensor.get());
  if (is_tensor < 0) throw Raised();
  check_type(is_tensor, "expected a tensor");
  std::ostringstream device;
  device << tensor.device();
  check_value(device.str() == "cpu", "tensors must be on the CPU, got ", device.str());
  PyErr_SetObject(error.get(), of_error.get());
  throw Raised();
}

int64_t Tensor::numel() const {
  int64_t n = 1;
  for (int d = 0; d < view_.ndim; ++d) n *= view_.shape[d];
  return n;
}

ScalarType Tensor::scalar_type() const {
  for (const Known& k : kKnown)
    if (k.code == view_.code && k.bits == view_.bits) return k.type;
  return ScalarType::Other;
}

bool Tensor::has_memory() const {
  // a zero tensor begins at null, and a part of one at its distance from there
  constexpr uintptr_t kFarthest = uintptr_t(1) << 32, kNobodys = uintptr_t(1) << 16;
  const auto address = reinterpret_cast<uintptr_t>(const_data_ptr());
  if (address >= kFarthest || numel() == 0) return true;
  return address >= kNobodys && !object_.call(torch().is_zerotensor).is_true();
}

bool Tensor::is_contiguous() const {
  return rnnfast::is_contiguous(view_.shape, view_.strides, view_.ndim);
}

bool Tensor::is_dense() const { return rnnfast::is_dense(view_.shape, view_.strides, view_.ndim); }

bool Tensor::repeats() const {
  for (int d = 0; d < view_.ndim; ++d)
    if (view_.shape[d] > 1 && view_.strides[d] == 0) return true;
  return false;
}

void Tensor::check_written() const {
  check(!repeats(),
        "unsupported operation: more than one element of the written-to tensor refers to a single "
        "memory location");
}

void Tensor::check_apart(const Tensor& other) const {
  if (!is_dense() || !other.is_dense() || numel() == 0 || other.numel() == 0) return;
  const auto end = [](const Tensor& t) {
    return t.const_data_ptr<char>() + t.numel() * t.element_size();
  };
  check(end(*this) <= other.const_data_ptr<char>() || end(other) <= const_data_ptr<char>(),
        "unsupported operation: some elements of the input tensor and the written-to tensor refer "
        "to a single memory location");
}

Tensor Tensor::at(int64_t k) const {
  Tensor part = *this;
  part.view_.byte_offset += k * stride(0) * element_size();
  --part.view_.ndim, ++part.view_.shape, ++part.view_.strides;
  return part;
}

Tensor Tensor::contiguous() const {
  return is_contiguous() ? *this : of(object_.call(torch().contiguous));
}

bool Tensor::is_zero() const {
  if (has_memory()) return false;
  const bool found = object_.call(torch().is_zerotensor).is_true();
  check_type(found, "expected a tensor whose values kernels can read, got ", type_of(object_));
  return true;
}

Tensor Tensor::values() const {
  if (is_zero()) {
    const Tensor zeros = empty(sizes(), scalar_type());
    std::memset(zeros.mutable_data_ptr(), 0, numel() * element_size());
    return zeros;
  }
  const Ref values = object_.call(torch().resolve_neg);
  return values.get() == object_.get() ? *this : of(values);
}

Tensor Tensor::clone() const {
  const Tensor from = contiguous();
  const Tensor copy = empty(sizes(), scalar_type());
  if (numel() > 0)
    std::memcpy(copy.mutable_data_ptr(), from.const_data_ptr(), numel() * element_size());
  return copy;
}

bool Tensor::requires_grad() const {
  return Ref::owned(PyObject_GetAttr(object_.get(), torch().requires_grad.get())).is_true();
}

std::ostream& operator<<(std::ostream& out, const Device& device) {
  const Ref found = device.tensor.object().attribute("device");
  const Ref text = Ref::owned(PyObject_Str(found.get()));
  const char* name = PyUnicode_AsUTF8AndSize(text.get(), nullptr);
  if (!name) throw Raised();
  return out << name;
}

void check_number(ScalarType dtype) {
  check_type(dtype == ScalarType::Float || dtype == ScalarType::Double,
             "expected float32 or float64, got ", dtype);
}

Tensor checked(const char* name, const Tensor& tensor, ScalarType dtype, const Sizes& shape) {
  check_value(tensor.is_cpu(), name, " must be on the CPU, got ", tensor.device());
  check_type(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ",
             tensor.scalar_type());
  check_value(tensor.sizes() == shape, name, " must have shape ", shape, ", got ", tensor.sizes());
  return tensor.values().contiguous();
}

std::optional<Tensor> checked(const char* name, const std::optional<Tensor>& tensor,
                              ScalarType dtype, const Sizes& shape) {
  if (!tensor) return std::nullopt;
  return checked(name, *tensor, dtype, shape);
}

Tensor empty(const Sizes& shape, ScalarType dtype) {
  constexpr size_t kMost = 4;
  check(shape.count <= kMost, "more than ", kMost, " axes");
  int64_t strides[kMost] = {1, 1, 1, 1};
  for (size_t d = shape.count; d-- > 1;)
    strides[d - 1] = strides[d] * std::max<int64_t>(shape.begin_[d], 1);
  if (!torch_tensor_to_pyobject) return Tensor::of(made_by_dlpack(shape, strides, dtype));
  AtenTensorHandle handle = nullptr;
  void* object = nullptr;
  AOTITorchError failed =
      aoti_torch_empty_strided(static_cast<int64_t>(shape.count), shape.begin_, strides,
                               known(dtype).number(), aoti_torch_device_type_cpu(), 0, &handle);
  if (!failed) {
    failed = torch_tensor_to_pyobject(handle, nullptr, &object);
    aoti_torch_delete_tensor_object(handle);
  }
  check(!failed, "no memory for a tensor of ", shape);
  return Tensor::of(Ref::owned(static_cast<PyObject*>(object)));
}

ScalarType dtype_of(const Ref& dtype) {
  const auto& dtypes = torch().dtypes;
  for (size_t i = 0; i < dtypes.size(); ++i)
    if (dtypes[i].get() == dtype.get()) return static_cast<ScalarType>(i);
  throw Error(PyExc_TypeError, "expected a torch.dtype that the kernels know");
}

void find_torch() {
  Torch& t = torch();
  const Ref module = import("torch");
  t.tensor = module.attribute("Tensor");
  const Ref capsule = t.tensor.attribute("__dlpack_c_exchange_api__");
  auto* exchange =
      static_cast<dlpack::Exchange*>(PyCapsule_GetPointer(capsule.get(), "dlpack_exchange_api"));
  if (!exchange) throw Raised();
  while (exchange->major > dlpack::kMajor && exchange->older) exchange = exchange->older;
  check(exchange->major == dlpack::kMajor && exchange->view_of,
        "torch's tensors are described by DLPack ", exchange->major, ", which is not known here");
  t.exchange = exchange;
  t.contiguous = interned("contiguous"), t.resolve_neg = interned("resolve_neg");
  t.requires_grad = interned("requires_grad"), t.is_zerotensor = interned("_is_zerotensor");
  for (size_t i = 0; i < t.dtypes.size(); ++i) t.dtypes[i] = module.attribute(kKnown[i].name);
}

int host_threads() {
  uint32_t asked = 1;
  check(torch_get_num_threads(&asked) == AOTI_TORCH_SUCCESS, "torch has no number of threads");
  return cpu::threads_of(static_cast<int>(asked));
}

}  // namespace rnnfast::python
