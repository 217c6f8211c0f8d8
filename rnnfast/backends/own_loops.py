"""Cells of one's own by compiled loops: the memory that a pass reads and writes, on any device.

Storage of 16 bits is computed in float32 and rounded once, at the end.
"""

from __future__ import annotations

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
    cast,
    wide,
)
from ..products.projection import own_projection
from ..steps import run
from ..steps.layout import Layout
from ..steps.run import Loop, Loops, Rows
from . import own_saved
from .base import TensorLike
from .own_products import Left


def saved_like(layout: Layout, problem: Problem) -> list[TensorLike]:
    all_states = problem.options.all_states
    return own_saved.like(layout, problem.T, problem.B, problem.dtype, all_states)


def _check_dtypes(scan: Scan) -> None:
    """RuntimeError unless all weights have the first one's dtype: kernels are given addresses."""
    for weight in scan.weights:
        if weight.dtype != scan.dtype:
            raise RuntimeError(
                f"expected weights of one dtype, but found {scan.dtype} and {weight.dtype}"
            )


def forward(kernel: Loops, scan: Scan, over: bool = False) -> tuple[ScanResult, list[Tensor]]:
    """``over``: it may write over the scan's input."""
    storage = scan.dtype
    own = scan.to(wide(storage))
    _check_dtypes(own)
    layout, training = kernel.layout, own.options.training
    keeps = own.kind == "gates" and (over or not training)  # then nothing is written to it
    gx = own.input.contiguous() if keeps else own_projection(own)
    T, B, _ = gx.shape
    H, count = own.states[0].shape[1], len(own.spec.states)
    init = [state.contiguous() for state in own.states]
    last = [torch.empty_like(state) for state in init]
    y = gx.new_empty(T, B, H)
    history = {0: y}
    for k in range(1, count):
        if own.options.all_states or (training and k in layout.history):
            history[k] = gx.new_empty(T, B, H)
    rows = {"gx": Rows(gx, run.STEP, gx.shape[2], clear=training)}
    for name in ("saved", "scalars"):
        width = layout.widths[name]
        shape = (T, B, width) if training else (B, width)
        kind = run.STEP if training else run.SEQUENCE
        made = gx.new_empty(shape) if width else None
        rows[name] = Rows(made, kind, width, clear=training)
    rows["tmp"] = _sequence(gx, B, layout.forward.temporary)
    for k in range(count):
        values = history.get(k)
        if values is not None:
            rows[f"state{k}"] = Rows(values, run.OLD, H, init[k])
            rows[f"new{k}"] = Rows(values, run.NEW, H, init[k], last[k], clear=True)
        else:
            slots = gx.new_empty(2, B, H)
            rows[f"state{k}"] = Rows(slots, run.OLD_SLOT, H, init[k])
            rows[f"new{k}"] = Rows(slots, run.NEW_SLOT, H, init[k], last[k])
    if B > 0:
        kernel.forward(_loop(own, T, B), rows)
    trace = [cast(history[k], storage) for k in range(1, count)] if own.options.all_states else []
    result = ScanResult(cast(y, storage), [cast(s, storage) for s in last], trace)
    if not training:
        return result, []
    bases = {name: rows[name].base for name in ("gx", "saved", "scalars")}
    return result, own_saved.to_save(layout, storage, bases, history, own.options.all_states)


def _loop(own: Scan, T: int, B: int) -> Loop:
    names = own.spec.weight_names(own.kind, own.has_bias)
    weights = {n: w.contiguous() for n, w in zip(names, own.weights, strict=True)}
    lengths = None if own.lengths is None else own.lengths.contiguous()
    resets = None if own.resets is None else own.resets.contiguous()
    options = own.options
    return Loop(
        T, B, weights, lengths, resets, options.reverse, options.training, options.grad_clip_time
    )


def _sequence(like: Tensor, B: int, width: int) -> Rows:
    return Rows(like.new_empty(B, width) if width else None, run.SEQUENCE, width)


def backward(
    kernel: Loops, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs
) -> Gradients:
    return _Backward(kernel, scan, saved, cotangents).gradients(needs)


class _Backward:
    def __init__(self, kernel: Loops, scan: Scan, saved: Saved, cotangents: Cotangents) -> None:
        self.storage = scan.dtype
        self.dtype = wide(self.storage)
        self.scan = scan.to(self.dtype)
        self.H, self.count = scan.states[0].shape[1], len(scan.spec.states)
        self.kernel, self.layout = kernel, kernel.layout
        self.history = {0: cast(saved.y, self.dtype).contiguous()}
        for k, trace in enumerate(saved.trace, start=1):
            self.history[k] = cast(trace, self.dtype).contiguous()
        self.buffers, apart = own_saved.restored(
            self.layout, self.storage, saved.extra, scan.options.all_states
        )
        self.history |= apart
        self.dstates = self._run(cotangents)

    def _run(self, cotangents: Cotangents) -> list[Tensor]:
        y, layout = self.history[0], self.layout
        T, B, _ = y.shape
        rows = {n: Rows(t, run.STEP, t.shape[2]) for n, t in self.buffers.items()}
        for name in ("dgx", "dproduct"):
            if layout.widths[name]:
                self.buffers[name] = made = y.new_empty(T, B, layout.widths[name])
                rows[name] = Rows(made, run.STEP, made.shape[2], clear=True)
        for name in ("acc", "acc1"):
            if layout.widths[name]:
                self.buffers[name] = made = y.new_zeros(B, layout.widths[name])
                rows[name] = Rows(made, run.SEQUENCE, made.shape[1])
        rows["tmp"] = _sequence(y, B, layout.backward.temporary)
        found = [torch.empty_like(y[0]) for _ in range(self.count)]
        init = [state.contiguous() for state in self.scan.states]
        dys = [cotangents.dy, *cotangents.dtrace]
        for k in range(self.count):
            slots = y.new_empty(2, B, self.H)
            dlast = cast(cotangents.dfinal[k], self.dtype).contiguous()
            dy = dys[k] if k < len(dys) else None
            dy = None if dy is None else cast(dy, self.dtype).contiguous()
            values = self.history.get(k)
            rows[f"dstate{k}"] = Rows(slots, run.INCOMING, self.H, dlast)
            rows[f"dold{k}"] = Rows(slots, run.OUTGOING, self.H, dlast, found[k])
            rows[f"dy{k}"] = Rows(dy, run.STEP, self.H)
            rows[f"state{k}"] = Rows(values, run.OLD, self.H, init[k])
            rows[f"new{k}"] = Rows(values, run.STEP, self.H)
        if B > 0:
            self.kernel.backward(_loop(self.scan, T, B), rows)
        return found

    def gradients(self, needs: Needs) -> Gradients:
        left = Left(self.scan, self.layout, self.buffers, self.history, self.storage)
        return left.gradients(needs, self.dstates)
