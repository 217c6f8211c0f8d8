// librnnfast.so: the ops rnnfast::scan_forward and scan_backward for processes without Python.
// RNNFAST_SCHEMAS are the strings of rnnfast/_build/schemas.py, which is where both languages have
// them from. Where Python imports rnnfast beside this library, its kernels take the place of those
// here (rnnfast/schema.py).
#include "ops/library.h"

#include <dlfcn.h>

#include "cpu/host.h"
#include "ops/scan.h"

namespace rnnfast::ops {
namespace {

constexpr Place kHost{"the CPU", "cpu", [](const Tensor& tensor) { return tensor.is_cpu(); },
                      /*looks=*/true};

Outputs scan_forward(std::string cell, std::string kind, Tensor input, std::vector<Tensor> states,
                     std::vector<Tensor> weights, Optional lengths, Optional resets, bool reverse,
                     bool all_states, bool training, int64_t checkpoint_every, double,
                     std::string backend) {
  const WithoutGrad without_grad;
  return forward(checked(kHost, cell, kind, input, states, weights, lengths, resets, reverse,
                         all_states, training, checkpoint_every, backend));
}

Gradients scan_backward(std::string cell, std::string kind, Tensor input,
                        std::vector<Tensor> states, std::vector<Tensor> weights, Optional lengths,
                        Optional resets, bool reverse, bool all_states, bool training,
                        int64_t checkpoint_every, double grad_clip_time, std::string backend,
                        Optional dy, std::vector<Tensor> dfinal, std::vector<Tensor> dtrace,
                        Tensor y, std::vector<Tensor> trace, std::vector<Tensor> saved,
                        std::vector<bool> needs, int64_t groups) {
  const WithoutGrad without_grad;
  const Scan scan = checked(kHost, cell, kind, input, states, weights, lengths, resets, reverse,
                            all_states, training, checkpoint_every, backend);
  require(training, "scan_backward is of a scan that was recorded for training");
  require(needs.size() == 3 && groups == 0, "gradients of parts of the batch are not served");
  return backward(scan, {dy, dfinal, dtrace, y, trace, saved, grad_clip_time},
                  {needs[0], needs[1], needs[2]});
}

// The op for tensors on a GPU, of a library beside this one (ops_cuda/library.cpp): called as the
// dispatcher calls it, so that errors keep their words.
using Boxed = void (*)(StableIValue* stack, uint64_t inputs, uint64_t outputs);
constexpr char kCuda[] = "librnnfast_cuda.so";

Boxed on_cuda() {
  static std::string problem;
  static const Boxed found = [] {
    Dl_info here{};
    const std::string path = dladdr(kCuda, &here) ? here.dli_fname : "";
    const std::string beside = path.substr(0, path.rfind('/') + 1) + kCuda;
    void* library = dlopen(beside.c_str(), RTLD_NOW | RTLD_LOCAL);
    void* function = library ? dlsym(library, "rnnfast_cuda_scan") : nullptr;
    if (!function) problem = dlerror();
    return reinterpret_cast<Boxed>(function);
  }();
  require(found, "tensors on a GPU need ", kCuda, " beside librnnfast.so: ", problem);
  return found;
}

// By the device of the input, which is argument 2.
void on_any_device(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  int32_t device = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_device_type(torch::stable::detail::to<AtenTensorHandle>(stack[2]), &device));
  const bool on_host = device != aoti_torch_device_type_cuda();
  (on_host ? TORCH_BOX(&scan_forward) : on_cuda())(stack, inputs, outputs);
}

// As Python's kernel is registered, so that a later one replaces it.
[[maybe_unused]] const bool registered = [] {
  if (!define("rnnfast", {RNNFAST_SCHEMAS})) return false;
  using torch::stable::detail::StableLibrary;
  static StableLibrary kernels(StableLibrary::Kind::IMPL, "rnnfast", "CompositeExplicitAutograd",
                               __FILE__, __LINE__);
  kernels.impl("scan_forward", &on_any_device);
  kernels.impl("scan_backward", TORCH_BOX(&scan_backward));
  cpu::watch_forks();
  return true;
}();

}  // namespace
}  // namespace rnnfast::ops
