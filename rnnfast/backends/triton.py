"""The backend ``triton``: kernels that Triton compiles on the user's machine (rnnfast/triton).

The recurrent loop is theirs; what is one large product over all steps is torch's. Under
``TRITON_INTERPRET=1`` the same kernels run on CPU tensors, slowly, which is what the tests do.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from ..problem import (
    Cotangents,
    Gradients,
    Needs,
    Problem,
    Saved,
    Scan,
    ScanResult,
    device_named,
    problem_of,
)
from ..triton import cells
from ..triton.device import facts_of
from ..triton.plan import STRATEGY, why_not_resident
from . import own_triton
from .base import KernelBackend, TensorLike, why_no_kernel, why_not_limited

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Triton(KernelBackend):
    name = "triton"

    def __init__(self) -> None:
        self._installed = importlib.util.find_spec("triton") is not None  # where no tracer looks on

    def unusable(self) -> str | None:
        if not self._installed:
            return "Triton is not installed"
        if interpreting() or torch.cuda.is_available():
            return None
        return "it needs a GPU, and torch sees none"

    def why_not(self, problem: Problem) -> str | None:
        needed = "cpu" if interpreting() else "cuda"
        if problem.device != needed:
            under = "under TRITON_INTERPRET=1 " if needed == "cpu" else ""
            return f"{under}it computes on {needed} tensors only, not on {problem.device}"
        if problem.dtype == torch.float64:
            return "it has no kernel for torch.float64: its products are float32 at most"
        reason = why_no_kernel(problem, needed, DTYPES) or why_not_limited(problem)
        if reason is None and problem.spec.own:
            return own_triton.why_not(problem.cell, problem.H, problem.bias)
        reason = reason or cells.why_not(problem.spec)
        if reason is None and STRATEGY in os.environ:  # facts_of is not for a tracer
            reason = why_not_resident(problem, facts_of(device_named(problem)))
        return reason

    def strategy(self, problem: Problem) -> str:
        if problem.spec.own:
            return own_triton.strategy(problem)
        return _runner().describe(problem)

    def saved_like(self, problem: Problem) -> list[TensorLike]:
        if problem.spec.own:
            return own_triton.saved_like(problem)
        return super().saved_like(problem)

    def saved_as(self, name: str, problem: Problem) -> TensorLike:
        width = problem.H * (problem.spec.gates if name == "gates" else 1)
        return (problem.T, problem.B, width), torch.float32

    def forward(self, scan: Scan) -> tuple[ScanResult, list[Tensor]]:
        if scan.spec.own:
            return own_triton.forward(scan)
        problem = problem_of(scan)
        out = _runner().forward(scan, problem)
        final = [out.h_last] if out.c_last is None else [out.h_last, out.c_last]
        trace = []
        if scan.options.all_states and out.cells is not None:
            trace = [out.cells.to(problem.dtype)]
        made = {"gates": out.gates, scan.spec.extra: out.extra, "c": out.cells}
        return ScanResult(out.y, final, trace), self.to_save(scan, made)

    def backward(self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs) -> Gradients:
        if scan.spec.own:
            return own_triton.backward(scan, saved, cotangents, needs)
        found = self.kept(scan, saved)
        kept = (found.get("gates"), saved.y, found.get("c"), found.get(scan.spec.extra))
        return _runner().backward(scan, problem_of(scan), kept, cotangents, needs)


def interpreting() -> bool:
    """Whether the kernels run in Triton's interpreter; Triton itself looks when they are made."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _runner() -> Any:
    """The module that imports Triton; not before a scan is run."""
    return importlib.import_module("rnnfast.triton.run")
