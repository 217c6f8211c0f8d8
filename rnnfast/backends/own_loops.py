"""Cells of one's own by compiled loops, on any device.

Storage of 16 bits is computed in float32 and rounded once, at the end.
"""

from __future__ import annotations

from torch import Tensor

from ..problem import (
    Cotangents,
    Gradients,
    Needs,
    Problem,
    Saved,
    Scan,
    ScanResult,
    cast,
    wide,
)
from ..products.projection import own_projection
from ..steps import passes
from ..steps.layout import Layout
from ..steps.loops import Loops
from . import own_saved
from .base import TensorLike
from .own_products import Left


def saved_like(layout: Layout, problem: Problem) -> list[TensorLike]:
    all_states = problem.options.all_states
    return own_saved.like(layout, problem.T, problem.B, problem.dtype, all_states)


def _check_dtypes(scan: Scan) -> None:
    """RuntimeError unless all weights have the first one's dtype: kernels are given addresses."""
    dtype = scan.dtype
    for weight in scan.weights:
        if weight.dtype != dtype:
            raise RuntimeError(
                f"expected weights of one dtype, but found {dtype} and {weight.dtype}"
            )


def forward(kernel: Loops, scan: Scan, over: bool = False) -> tuple[ScanResult, list[Tensor]]:
    """``over``: it may write over the scan's input."""
    storage = scan.dtype
    own = scan.to(wide(storage))
    _check_dtypes(own)
    training, all_states = own.options.training, own.options.all_states
    found = passes.forward(kernel.layout, training, all_states)
    gx = None if kernel.makes_gates(own) else _gates(own, over)
    made = kernel.run(found, [gx, *own.states], own)
    every = range(len(own.states))
    final = [cast(made[f"last{k}"], storage) for k in every]
    trace = [cast(made[f"new{k}"], storage) for k in every[1:]] if all_states else []
    result = ScanResult(cast(made["new0"], storage), final, trace)
    if not training:
        return result, []
    history = {k: made[f"new{k}"] for k in every if f"new{k}" in made}
    rows = made if gx is None else {"gx": gx, **made}
    return result, own_saved.to_save(kernel.layout, storage, rows, history, all_states)


def _gates(scan: Scan, over: bool) -> Tensor:
    """The input's part of the gates, which a pass overwrites in training only."""
    keeps = scan.kind == "gates" and (over or not scan.options.training)
    return scan.input.contiguous() if keeps else own_projection(scan)


def backward(
    kernel: Loops, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs
) -> Gradients:
    storage, layout = scan.dtype, kernel.layout
    dtype = wide(storage)
    own = scan.to(dtype)
    history = {k: cast(values, dtype) for k, values in enumerate([saved.y, *saved.trace])}
    rows, apart = own_saved.restored(layout, storage, saved.extra, scan.options.all_states)
    history |= apart
    found = passes.backward(layout, tuple(rows))
    given: list[Tensor | None] = [history[k] for k in sorted({0, *layout.history})]
    given += rows.values()
    dys = [cotangents.dy, *cotangents.dtrace]
    for k, (state, dlast) in enumerate(zip(own.states, cotangents.dfinal, strict=True)):
        dy = dys[k] if k < len(dys) else None
        given += [state, cast(dlast, dtype), None if dy is None else cast(dy, dtype)]
    if storage == dtype and (made_at_once := kernel.gradients(found, given, own, needs)):
        return made_at_once
    made = kernel.run(found, given, own)
    dstates = [made[f"dinit{k}"] for k in range(len(own.states))]
    buffers = {v.name: t for v, t in zip(found.given, given, strict=True) if t is not None}
    sums = kernel.sums(own.kind, needs.leading)
    left = Left(own, layout, buffers | made, history, storage, sums)
    return left.gradients(needs, dstates)
