// The parts of the module rnnfast._cpu.
#pragma once

#include <vector>

#include "python/object.h"

namespace rnnfast::python {

void bind_cpu(std::vector<PyMethodDef>& functions);        // cpu.cpp
void bind_gemm(std::vector<PyMethodDef>& functions);       // gemm.cpp
void bind_gradients(std::vector<PyMethodDef>& functions);  // gradients.cpp
void bind_steps(std::vector<PyMethodDef>& functions);      // steps.cpp
void bind_sums(std::vector<PyMethodDef>& functions);       // sums.cpp
void bind_clip(std::vector<PyMethodDef>& functions);       // clip.cpp
void bind_plan(std::vector<PyMethodDef>& functions);       // plan.cpp
void bind_stream(std::vector<PyMethodDef>& functions);     // stream.cpp

}  // namespace rnnfast::python
