// The Python module rnnfast._cpu: the host's kernels and the plan of the CUDA ones, for every CPython
// from 3.10 and every torch from TORCH_TARGET_VERSION on.
#include "python/module.h"

#include <omp.h>

#include "python/bind.h"

namespace rnnfast::python {
namespace {

// Follows torch.set_num_threads() where both use one OpenMP runtime, which is what its test looks
// at.
int openmp_max_threads() { return omp_get_max_threads(); }

PyObject* make() {
  find_torch();
  auto& functions = *new std::vector<PyMethodDef>;  // for as long as the process lives
  bind<&openmp_max_threads>(functions, "openmp_max_threads", "");
  bind_cpu(functions);
  bind_gemm(functions);
  bind_gradients(functions);
  bind_steps(functions);
  bind_sums(functions);
  bind_clip(functions);
  bind_plan(functions);
  bind_stream(functions);
  functions.push_back({});
  static PyModuleDef definition{PyModuleDef_HEAD_INIT,
                                "_cpu",
                                "rnnfast's kernels for the CPU; rnnfast._ext.cpu() imports it",
                                -1,
                                functions.data(),
                                nullptr,
                                nullptr,
                                nullptr,
                                nullptr};
  return PyModule_Create(&definition);
}

}  // namespace
}  // namespace rnnfast::python

PyMODINIT_FUNC PyInit__cpu() {
  return rnnfast::python::guarded([] { return rnnfast::python::make(); });
}
