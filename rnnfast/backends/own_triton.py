"""Cells of one's own on a GPU: what the backend ``triton`` does for them.

Everything on its way is float32; weights are read in their storage dtype, in which products take
their operands, too.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from ..problem import Cotangents, Gradients, Needs, Problem, Saved, Scan, ScanResult, cast
from ..products.projection import wide_projection
from ..rules import alive
from ..steps.gpu import layout_of
from ..steps.layout import Layout
from ..steps.triton_text import Text, text_of
from ..surroundings import constant_while_tracing
from ..triton.plan import STRATEGY, demanded, math_of
from . import own_saved
from .base import TensorLike
from .own_products import Left

Given = dict[str, Tensor | None]


@constant_while_tracing
def why_not(cell: str, hidden: int, bias: bool) -> str | None:
    found = layout_of(cell, hidden, bias, blocks=True)
    if isinstance(found, str):
        return found
    try:
        _text(cell, hidden, bias)
    except Exception as error:  # no text can be made: a fault of ours, but the loop serves
        return f"no Triton kernel can be written for the cell {cell!r}: {error!r}"
    if demanded() == "resident":
        return f"{STRATEGY}=resident, and cells of one's own have stepwise kernels only"
    return None


def _layout(cell: str, hidden: int, bias: bool) -> Layout:
    found = layout_of(cell, hidden, bias, blocks=True)
    assert isinstance(found, Layout), found
    return found


def _text(cell: str, hidden: int, bias: bool) -> Text:
    return _made(_layout(cell, hidden, bias))


@functools.lru_cache(maxsize=256)
def _made(layout: Layout) -> Text:
    return text_of(layout)


def strategy(problem: Problem) -> str:
    text = _text(problem.cell, problem.H, problem.bias)
    launches = f"{len(text.forward)} a step forward"
    if problem.options.training:
        launches += f", {len(text.backward)} backward"
    return f"stepwise, made from the step (launches: {launches})"


def saved_like(problem: Problem) -> list[TensorLike]:
    layout = _layout(problem.cell, problem.H, problem.bias)
    all_states = problem.options.all_states
    return own_saved.like(layout, problem.T, problem.B, problem.dtype, all_states)


def forward(scan: Scan) -> tuple[ScanResult, list[Tensor]]:
    layout, storage = _layout_of(scan), scan.dtype
    options, training = scan.options, scan.options.training
    gx = wide_projection(scan)
    T, B, _ = gx.shape
    H, count = scan.states[0].shape[1], len(scan.spec.states)
    history = {0: gx.new_empty(T, B, H, dtype=storage)}
    for k in range(1, count):
        if options.all_states or (training and k in layout.history):
            history[k] = gx.new_empty(T, B, H)
    leading = (T, B) if training else (B,)
    given: Given = {"gx": gx}
    given |= {n: gx.new_empty(*leading, layout.widths[n]) for n in ("saved", "scalars")}
    last = [torch.empty_like(s, memory_format=torch.contiguous_format) for s in scan.states]
    given |= {f"last{k}": s for k, s in enumerate(last)}
    given |= {f"new{k}": history.get(k) for k in range(count)}
    _run("forward", scan, given, list(given), [gx])
    trace = [cast(history[k], storage) for k in range(1, count)] if options.all_states else []
    result = ScanResult(history[0], last, trace)
    if not training:
        return result, []
    live = alive(scan)
    if live is not None and any(m.operand.buffer == "gx" for m in layout.matrices):
        # what the kernels did not write there may be anything, and is multiplied by zeros
        gx.masked_fill_(~live[:, :, None], 0)
    rows = {n: row for n in ("gx", "saved", "scalars") if (row := given[n]) is not None}
    return result, own_saved.to_save(layout, storage, rows, history, options.all_states)


def backward(scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs) -> Gradients:
    layout, wide = _layout_of(scan), scan.to(torch.float32)
    T, B, H = saved.y.shape
    count = len(scan.spec.states)
    history = {0: saved.y}
    history |= dict(enumerate(saved.trace, start=1))
    history = {k: cast(values, torch.float32).contiguous() for k, values in history.items()}
    rows, apart = own_saved.restored(layout, scan.dtype, saved.extra, scan.options.all_states)
    history |= apart
    like = history[0]
    buffers = {n: like.new_empty(T, B, layout.widths[n]) for n in ("dgx", "dproduct")}
    buffers |= {n: like.new_zeros(B, layout.widths[n]) for n in ("acc", "acc1")}
    dstates = [like.new_empty(B, H) for _ in range(count)]
    given: Given = {**buffers}
    given |= {f"dinit{k}": d for k, d in enumerate(dstates)}
    written, sums = list(given), [buffers["acc"], buffers["acc1"]]
    buffers |= rows
    dys = [cotangents.dy, *cotangents.dtrace]
    for k in range(count):
        dy = dys[k] if k < len(dys) else None
        given[f"dy{k}"] = None if dy is None else dy.contiguous()
        given[f"dlast{k}"] = cotangents.dfinal[k].contiguous()
        given[f"init{k}"] = scan.states[k].contiguous()
        given[f"new{k}"] = history.get(k)
    given |= rows
    _run("backward", scan, given, written, sums)
    return Left(wide, layout, buffers, history, scan.dtype).gradients(needs, dstates)


def _layout_of(scan: Scan) -> Layout:
    return _layout(scan.cell, scan.states[0].shape[1], scan.has_bias)


def _run(
    direction: str, scan: Scan, given: Given, written: list[str], changed: list[Tensor]
) -> None:
    H = scan.states[0].shape[1]
    runner = _runner()
    names = scan.spec.weight_names(scan.kind, scan.has_bias)
    weights = dict(zip(names, scan.weights, strict=True))
    text = _text(scan.cell, H, scan.has_bias)
    given |= {f"weight{k}": weights[name].contiguous() for k, name in enumerate(text.weights)}
    if direction == "forward":
        given |= {f"init{k}": s.contiguous() for k, s in enumerate(scan.states)}
    given["lengths"] = None if scan.lengths is None else scan.lengths.contiguous()
    resets = scan.resets
    given["resets"] = None if resets is None else resets.contiguous().view(torch.uint8)
    own = runner.Pass(
        text,
        direction,
        len(scan.states),
        *scan.input.shape[:2],
        scan.dtype.itemsize,
        scan.options.reverse,
        scan.options.training,
        runner.Clip.of(scan.options.grad_clip_time),
        "tf32" if math_of(scan.dtype) == "tf32" else "ieee",
    )
    runner.run(own, given, written, changed)


def _runner() -> Any:
    """The module that imports Triton; not before a scan is run."""
    return importlib.import_module("rnnfast.triton.own")
