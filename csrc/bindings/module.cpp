// The Python module rnnfast._C. pybind11's headers are those that torch ships: one version in the
// process.
#include <omp.h>
#include <pybind11/pybind11.h>

void bind_cpu(pybind11::module_& m);        // cpu.cpp
void bind_clip(pybind11::module_& m);       // clip.cpp
void bind_gemm(pybind11::module_& m);       // gemm.cpp
void bind_gradients(pybind11::module_& m);  // gradients.cpp
void bind_plan(pybind11::module_& m);       // plan.cpp
void bind_model(pybind11::module_& m);      // model.cpp
void bind_stream(pybind11::module_& m);     // stream.cpp
#ifdef RNNFAST_WITH_CUDA
void bind_cuda(pybind11::module_& m);       // cuda.cpp
void bind_cuda_clip(pybind11::module_& m);  // cuda_clip.cpp
#endif

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "rnnfast's compiled part; rnnfast._ext.load() imports it";
  m.attr("torch_version") = RNNFAST_TORCH_VERSION;
  // Follows torch.set_num_threads() where both use one OpenMP runtime, which is what its test looks
  // at.
  m.def("openmp_max_threads", &omp_get_max_threads);
  bind_cpu(m);
  bind_clip(m);
  bind_gemm(m);
  bind_gradients(m);
  bind_plan(m);
  bind_model(m);
  bind_stream(m);
#ifdef RNNFAST_WITH_CUDA
  m.attr("with_cuda") = true;
  bind_cuda(m);
  bind_cuda_clip(m);
#else
  m.attr("with_cuda") = false;
#endif
}
