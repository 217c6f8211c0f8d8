"""Cells of one's own on a GPU: what the backend ``cuda`` does for them.

A pass is resident, one launch for all steps, where a block has room for the cell's one product and
all its hidden units (steps/resident.py), else stepwise. ``kind`` and ``device`` say on which,
as ``run_cuda.KINDS`` has it.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch

from ..cells import CELLS
from ..problem import Problem
from ..steps import run_cuda
from ..steps.gpu import layout_of
from ..steps.layout import Layout
from ..steps.resident import PASSES, Shape, math_of
from ..steps.run_cuda import CudaKernel, ResidentKernel
from ..surroundings import constant_while_tracing

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Key(NamedTuple):
    """What kernels of a cell are chosen by."""

    kind: str
    device: int
    cell: str
    hidden: int
    bias: bool
    dtype: torch.dtype


def key(kind: str, problem: Problem) -> Key:
    hidden = int(problem.H)
    return Key(kind, problem.device_index, problem.cell, hidden, problem.bias, problem.dtype)


@constant_while_tracing
def why_not(training: bool, *given: Any) -> str | None:
    """Why there is no kernel for the cell of a Key's fields. Compiles it, the first time."""
    of = Key(*given)
    if of.kind not in run_cuda.KINDS:
        return f"cells of one's own are not compiled for {of.kind}"
    for pass_name in PASSES if training else PASSES[:1]:
        found = _kernel(of, pass_name)
        if isinstance(found, str):
            return found
    return None


def kernel(of: Key, pass_name: str) -> CudaKernel:
    found = _kernel(of, pass_name)
    assert isinstance(found, CudaKernel), found
    return found


def _kernel(of: Key, pass_name: str) -> CudaKernel | str:
    spec = CELLS[of.cell]
    layout = layout_of(of.cell, of.hidden, of.bias, blocks=True)
    if isinstance(layout, str):
        return layout
    chosen = _shape(of, layout, pass_name)
    if isinstance(chosen, str):
        return run_cuda.kernel(of.kind, of.device, spec, of.hidden, of.bias)
    return run_cuda.resident_kernel(of.kind, of.device, spec, layout, pass_name, chosen)


def _shape(of: Key, layout: Layout, pass_name: str) -> Shape | str:
    """Of the resident kernel; why it is not, RNNFAST_PLAN among the reasons.

    Raises ValueError where that asks for what can't be.
    """
    asked = os.environ.get("RNNFAST_PLAN", "").partition(":")[0]
    if asked == "stepwise":
        return "RNNFAST_PLAN asks for it"
    budget = run_cuda.KINDS[of.kind].budget(of.device)
    found = run_cuda.shape(layout, pass_name, math_of(of.dtype), budget)
    if asked == "resident" and isinstance(found, str):
        raise ValueError(f"RNNFAST_PLAN={asked}: {pass_name} of {of.cell!r} can't be: {found}")
    return found


def layout(of: Key) -> Layout:
    found = layout_of(of.cell, of.hidden, of.bias, blocks=True)
    assert isinstance(found, Layout), found
    return found


def strategy(of: Key, training: bool) -> str:
    passes = PASSES if training else PASSES[:1]
    each = {name: _described(of, name) for name in passes}
    own = kernel(of, "forward").describe()
    if len(set(each.values())) == 1:
        return f"{each['forward']}; compiled from the step ({own})"
    words = "; ".join(f"{name} {text}" for name, text in each.items())
    return f"{words}; compiled from the step ({own})"


def _described(of: Key, pass_name: str) -> str:
    found = kernel(of, pass_name)
    if not isinstance(found, ResidentKernel):
        return f"stepwise (not resident: {_shape(of, layout(of), pass_name)})"
    shape = found.shape
    return (
        f"resident, {shape.math}, {shape.groups}x{shape.held} in registers, "
        f"{shape.shared / 1024:.0f} KiB of shared memory"
    )
