"""Cells of one's own on the CPU: what the backend ``cpu`` does for them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Cotangents, Gradients, Needs, Problem, Saved, Scan, ScanResult, wide
from ..steps import run
from ..steps.run import Kernel
from ..surroundings import constant_while_tracing
from . import own_loops
from .base import TensorLike
from .own_layer import OwnLayer


@constant_while_tracing
def why_not(cell: str, hidden: int, bias: bool, dtype: torch.dtype) -> str | None:
    """Why there is no kernel for the cell. Makes it, the first time."""
    found = run.kernel(cell, int(hidden), bias, wide(dtype))
    return found if isinstance(found, str) else None


def _kernel(cell: str, hidden: int, bias: bool, dtype: torch.dtype) -> Kernel:
    found = run.kernel(cell, int(hidden), bias, wide(dtype))
    assert isinstance(found, Kernel), found
    return found


def _kernel_of(scan: Scan) -> Kernel:
    return _kernel(scan.cell, scan.states[0].shape[1], scan.has_bias, scan.dtype)


def strategy(problem: Problem) -> str:
    kernel = _kernel(problem.cell, problem.H, problem.bias, problem.dtype)
    return f"compiled from the step ({kernel.describe()}); {kernel.split(problem.B)[2]}"


def layer(problem: Problem) -> OwnLayer | None:
    """A layer of one direction like ``problem``; None in training where its gradients are more than
    one call."""
    kernel = _kernel(problem.cell, problem.H, problem.bias, problem.dtype)
    if problem.options.training and not kernel.sums_up("dense"):
        return None
    return OwnLayer(kernel, problem.options.training, problem.options.reverse)


def saved_like(problem: Problem) -> list[TensorLike]:
    kernel = _kernel(problem.cell, problem.H, problem.bias, problem.dtype)
    return own_loops.saved_like(kernel.layout, problem)


def forward(scan: Scan, over: bool = False) -> tuple[ScanResult, list[Tensor]]:
    return own_loops.forward(_kernel_of(scan), scan, over)


def backward(scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs) -> Gradients:
    return own_loops.backward(_kernel_of(scan), scan, saved, cotangents, needs)
