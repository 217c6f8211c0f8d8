// The Python module rnnfast._C. pybind11's headers are those that torch ships: one version in the
// process.
#include <pybind11/pybind11.h>

void bind_plan(pybind11::module_& m);   // plan.cpp
void bind_model(pybind11::module_& m);  // model.cpp
#ifdef RNNFAST_WITH_CUDA
void bind_cuda(pybind11::module_& m);       // cuda.cpp
void bind_cuda_clip(pybind11::module_& m);  // cuda_clip.cpp
#endif

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "rnnfast's compiled part; rnnfast._ext.load() imports it";
  m.attr("torch_version") = RNNFAST_TORCH_VERSION;
  bind_plan(m);
  bind_model(m);
#ifdef RNNFAST_WITH_CUDA
  m.attr("with_cuda") = true;
  bind_cuda(m);
  bind_cuda_clip(m);
#else
  m.attr("with_cuda") = false;
#endif
}
