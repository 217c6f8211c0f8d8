"""From a step in plain torch to kernels. It knows no cell by name.

trace      the step runs once, and what it calls becomes a small graph of one sequence's values
           (trace, aten, aten_rows, activations; values, rows and weights are its tensors)
derive     the graph of backward, and what forward saves for it
stages     cuts both at what needs a whole row: products and reductions
layout     which rows of memory hold what
cpp        C++ of it, over csrc/cpu/steps/loop.h; source makes the file, run compiles and calls it
cuda_text  CUDA C++, over csrc/cuda/steps/loop.h; run_cuda compiles and calls it
resident   which passes are one launch, in which shape; resident_text is their CUDA C++
code       what both say
triton_text   Triton of it (a function: triton_code), over rnnfast/triton/vocabulary.py
check      all of it run by torch (evaluate), against the step and torch's gradients
"""

from __future__ import annotations

import torch

from .. import library
from ..cells import CellSpec
from ..problem import wide
from .resident import math_of
from .run import Kernel, kernel
from .run_cuda import cuda_library

__all__ = ["Kernel", "compile_ahead", "kernel"]


def compile_ahead(
    spec: CellSpec, hidden_size: int, dtype: torch.dtype, target: str = library.HOST
) -> None:
    """Compiles what layers of ``hidden_size`` units, with and without bias, need on the CPU, or on
    GPUs of an architecture (``sm_90``).

    Raises:
        RuntimeError: no kernel can be made of the step, or it can't be compiled here.
    """
    for bias in (True, False):
        if target == library.HOST:
            found: object = kernel(spec.name, hidden_size, bias, wide(dtype))
        elif wide(dtype) == torch.float32:
            found = cuda_library(spec, hidden_size, bias, target, math_of(dtype))
        else:
            found = f"kernels for GPUs compute in float32, not in {dtype}"
        if isinstance(found, str):
            raise RuntimeError(found)
