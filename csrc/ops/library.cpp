// librnnfast.so: the op rnnfast::scan_forward for processes without Python. RNNFAST_SCHEMAS are the
// strings of rnnfast/_build/schemas.py, which is where both languages have them from. Where Python
// imports rnnfast beside this library, its kernels take the place of the one here
// (rnnfast/schema.py).
#include <torch/csrc/stable/library.h>

#include "cpu/host.h"
#include "ops/scan.h"

namespace rnnfast::ops {
namespace {

Outputs scan_forward(std::string cell, std::string kind, Tensor input, std::vector<Tensor> states,
                     std::vector<Tensor> weights, Optional lengths, Optional resets, bool reverse,
                     bool all_states, bool training, int64_t checkpoint_every, double,
                     std::string backend) {
  const WithoutGrad without_grad;
  return forward(checked(cell, kind, input, states, weights, lengths, resets, reverse, all_states,
                         training, checkpoint_every, backend));
}

// Defines the ops, unless Python's rnnfast or another copy of this file did so before: then they
// stay what they are, and torch logs that. The definitions last as long as the process.
bool define() {
  TorchLibraryHandle library = nullptr;
  if (aoti_torch_library_init_fragment("rnnfast", __FILE__, __LINE__, &library) != TORCH_SUCCESS)
    return false;
  for (const char* schema : {RNNFAST_SCHEMAS}) {
    if (aoti_torch_library_def(library, schema) == TORCH_SUCCESS) continue;
    aoti_torch_delete_library_object(library);
    return false;
  }
  return true;
}

// As Python's kernel is registered, so that a later one replaces it.
[[maybe_unused]] const bool registered = [] {
  if (!define()) return false;
  using torch::stable::detail::StableLibrary;
  static StableLibrary kernels(StableLibrary::Kind::IMPL, "rnnfast", "CompositeExplicitAutograd",
                               __FILE__, __LINE__);
  kernels.impl("scan_forward", TORCH_BOX(&scan_forward));
  cpu::watch_forks();
  return true;
}();

}  // namespace
}  // namespace rnnfast::ops
