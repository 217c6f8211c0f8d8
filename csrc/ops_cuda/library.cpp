// librnnfast_cuda.so: the ops of the CUDA kernels, on torch's stable ABI. rnnfast/backends/cuda and
// rnnfast/clip call them, and librnnfast.so where its op is given CUDA tensors (cuda_scan).
#include "ops/library.h"

#include "ops_cuda/device.h"
#include "ops_cuda/program.h"
#include "ops_cuda/scan.h"
#if !defined(RNNFAST_SIMT)
#include "ops_cuda/clip.h"
#endif

namespace rnnfast::ops {
namespace {

using torch::stable::detail::StableLibrary;

const std::vector<const char*> kSchemas{
    "cuda_forward(str cell, str strategy, str math, int[] choice, Tensor(a!)[] gates, "
    "Tensor[] w_hh, Tensor[] w_hr, Tensor[] h0, Tensor[] c0, Tensor? lengths, Tensor? resets, "
    "bool[] reverse, bool training, bool every_c) "
    "-> (Tensor[] y, Tensor[] h_last, Tensor[] c_last, Tensor[] c, Tensor[] m)",
    "cuda_backward(str cell, str strategy, str math, int[] choice, Tensor[] saved, Tensor[] y, "
    "Tensor[] c, Tensor[] w_hh, Tensor[] w_hr, Tensor[] h0, Tensor[] c0, Tensor? lengths, "
    "Tensor? resets, bool[] reverse, Tensor?[] dy, Tensor?[] dc, Tensor[] dh_last, "
    "Tensor[] dc_last, Tensor? scale, float clip) "
    "-> (Tensor[] dgates, Tensor[] dh0, Tensor[] dc0, Tensor[] dh)",
    "cuda_forward_part(str cell, str strategy, str math, int[] choice, Tensor(a!) gates, "
    "Tensor w_hh, Tensor h0, Tensor? c0, Tensor? lengths, Tensor? resets, bool training, "
    "Tensor[] before, Tensor(b!) y, Tensor(c!) h_last, Tensor(d!)? c_last, Tensor(e!)? c, "
    "Tensor(f!)[] after) -> ()",
    "cuda_backward_part(str cell, str strategy, str math, int[] choice, Tensor? saved, Tensor y, "
    "Tensor? c, Tensor w_hh, Tensor h0, Tensor? c0, Tensor? lengths, Tensor? resets, Tensor? dy, "
    "Tensor dh_last, Tensor? dc_last, float clip, Tensor? c_before, Tensor[] after, "
    "Tensor(a!) dgates, Tensor(b!) dh0, Tensor(c!)? dc0, Tensor(d!)[] before) -> ()",
    "cuda_room(str cell, str strategy, str math, int[] choice, bool backward, int H, int device) "
    "-> int",
    "cuda_device(int index) -> (int, int, int, int, float)",
    "cuda_scan(" RNNFAST_INPUTS
    ") "
    "-> (Tensor y, Tensor[] final, Tensor[] trace, Tensor[] saved)",
#if !defined(RNNFAST_SIMT)
    "cuda_clip_norm(Tensor(a!)[] tensors, float p, bool wide, float? max_norm) -> Tensor?",
    "cuda_clip_scale(Tensor(a!)[] tensors, Tensor norm, float max_norm) -> bool",
    "cuda_clip_value(Tensor(a!)[] tensors, float bound) -> bool",
#endif
};

// Of tensors; on the CPU's the same functions refuse, naming the tensor and why.
void implement(StableLibrary& library) {
  library.impl("cuda_forward", TORCH_BOX(&cuda_forward));
  library.impl("cuda_backward", TORCH_BOX(&cuda_backward));
  library.impl("cuda_forward_part", TORCH_BOX(&cuda_forward_part));
  library.impl("cuda_backward_part", TORCH_BOX(&cuda_backward_part));
  library.impl("cuda_scan", TORCH_BOX(&cuda_scan));
#if !defined(RNNFAST_SIMT)
  library.impl("cuda_clip_norm", TORCH_BOX(&cuda_clip_norm));
  library.impl("cuda_clip_scale", TORCH_BOX(&cuda_clip_scale));
  library.impl("cuda_clip_value", TORCH_BOX(&cuda_clip_value));
#endif
}

void implement_for(const char* key) {
  implement(
      *new StableLibrary(StableLibrary::Kind::IMPL, RNNFAST_LIBRARY, key, __FILE__, __LINE__));
}

// What is registered stays for as long as the process lives.
[[maybe_unused]] const bool registered = [] {
  if (!define(RNNFAST_LIBRARY, kSchemas)) return false;  // another copy of this file was first
  implement_for(RNNFAST_KEY);
  if (std::string(RNNFAST_KEY) != "CPU") implement_for("CPU");
  auto& rest = *new StableLibrary(StableLibrary::Kind::IMPL, RNNFAST_LIBRARY,
                                  "CompositeExplicitAutograd", __FILE__, __LINE__);
  rest.impl("cuda_room", TORCH_BOX(&cuda_room));
  rest.impl("cuda_device", TORCH_BOX(&device_numbers));
  return true;
}();

}  // namespace
}  // namespace rnnfast::ops
