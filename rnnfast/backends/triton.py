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

from ..problem import Problem, Scan, ScanResult, problem_of
from ..triton import cells
from ..triton.plan import STRATEGY, device_of, why_not_resident
from .base import Backend, Cotangents, Gradients, Needs, Saved, TensorLike, reserved

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Triton(Backend):
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
        if problem.dtype not in DTYPES:
            return f"it has no kernel for {problem.dtype}: its products are float32 at most"
        unknown = cells.why_not(problem.spec)
        if unknown is not None:
            return unknown
        if problem.transformed:
            return "its kernels have no rules for vmap and forward-mode AD"
        if STRATEGY in os.environ:  # device_of is not for a tracer
            reason = why_not_resident(problem, device_of())
            if reason is not None:
                return reason
        return reserved(problem, grad_clip_time=True)

    def strategy(self, problem: Problem) -> str:
        return _runner().describe(problem)

    def saved_like(self, problem: Problem) -> list[TensorLike]:
        T, B, H, spec = problem.T, problem.B, problem.H, problem.spec
        shapes: list[tuple[int, ...]] = []
        if spec.gates > 1:  # an RNN's only gate is its output
            shapes.append((T, B, spec.gates * H))
        if spec.extra:
            shapes.append((T, B, H))
        if _keeps_cells(problem):
            shapes.append((T, B, H))
        return [(shape, torch.float32) for shape in shapes]

    def forward(self, scan: Scan) -> tuple[ScanResult, list[Tensor]]:
        problem = problem_of(scan)
        out = _runner().forward(scan, problem)
        storage, keeps = problem.dtype, _keeps_cells(problem)
        final = [out.h_last] if out.c_last is None else [out.h_last, out.c_last]
        trace = []
        if scan.options.all_states and out.cells is not None:
            trace = [out.cells.to(storage)]
        saved: list[Tensor] = []
        if scan.options.training:
            saved = [out.gates] if scan.spec.gates > 1 else []
            saved += [out.extra] if out.extra is not None else []
            saved += [out.cells] if keeps and out.cells is not None else []
        return ScanResult(out.y, final, trace), saved

    def backward(self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs) -> Gradients:
        rest = list(saved.extra)
        gates = rest.pop(0) if scan.spec.gates > 1 else None
        extra = rest.pop(0) if scan.spec.extra else None
        cells = None
        if len(scan.states) == 2:
            cells = rest.pop(0) if rest else saved.trace[0]
        kept = (gates, saved.y, cells, extra)
        return _runner().backward(scan, problem_of(scan), kept, cotangents, needs)


def interpreting() -> bool:
    """Whether the kernels run in Triton's interpreter; Triton itself looks when they are made."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _runner() -> Any:
    """The module that imports Triton; not before a scan is run."""
    return importlib.import_module("rnnfast.triton.run")


def _keeps_cells(problem: Problem) -> bool:
    """Whether the cell states are saved apart: they are no output, or one of another dtype."""
    is_output = problem.options.all_states and problem.dtype == torch.float32
    return problem.cell.startswith("lstm") and not is_output
