"""Cells of one's own on a GPU: what the backend ``cuda`` does for them.

``kind`` and ``index`` say on which device, as ``run_cuda.KINDS`` has it.
"""

from __future__ import annotations

import torch

from ..cells import CELLS
from ..problem import Problem, Scan
from ..steps import run_cuda
from ..steps.run_cuda import CudaKernel
from ..surroundings import constant_while_tracing

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@constant_while_tracing
def why_not(kind: str, index: int, cell: str, hidden: int, bias: bool) -> str | None:
    """Why there is no kernel for the cell. Compiles it, the first time."""
    found = run_cuda.kernel(kind, index, CELLS[cell], hidden, bias)
    return found if isinstance(found, str) else None


def kernel(kind: str, index: int, cell: str, hidden: int, bias: bool) -> CudaKernel:
    found = run_cuda.kernel(kind, index, CELLS[cell], hidden, bias)
    assert isinstance(found, CudaKernel), found
    return found


def kernel_of(kind: str, scan: Scan) -> CudaKernel:
    H = scan.states[0].shape[1]
    return kernel(kind, scan.states[0].device.index or 0, scan.cell, H, scan.has_bias)


def strategy(kind: str, problem: Problem) -> str:
    own = kernel(kind, problem.device_index, problem.cell, problem.H, problem.bias)
    return f"stepwise, compiled from the step ({own.describe()})"
