"""The scratch loop: one direction of one layer, step by step in plain torch.

It is the specification and the oracle of every kernel, and the backend ``reference``. Only
differentiable, functional torch calls, so that autograd of any order, vmap and forward-mode AD work
through it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .problem import Scan, ScanResult
from .time_clip import limited_in_time


def project_input(scan: Scan) -> Tensor:
    """gx [T, B, G*H] = x W_ihᵀ + b_ih, for every kind of input."""
    if scan.kind == "gates":
        return scan.input
    w_ih, b_ih = scan.weight("w_ih"), scan.weight("b_ih")
    assert w_ih is not None
    if scan.kind == "dense":
        return F.linear(scan.input, w_ih, b_ih)
    rows = _columns(w_ih, scan.input)  # a one-hot row times Wᵀ is a column of W
    return rows if b_ih is None else rows + b_ih


def _columns(w_ih: Tensor, tokens: Tensor) -> Tensor:
    """[T, B, G*H]: column tokens[t, b] of w_ih [G*H, I]."""
    if not w_ih.requires_grad:
        return F.embedding(tokens, w_ih.t())
    # so that its gradient is laid out like w_ih, not transposed
    return w_ih.index_select(1, tokens.flatten()).t().unflatten(0, tokens.shape)


def scratch_scan(scan: Scan) -> ScanResult:
    """Runs ``scan`` with the cell's step in a loop over T.

    16-bit storage is computed in float32 and rounded once, at the end.

    Semantics of the options: from ``lengths[b]`` on, sequence b's outputs (and traced states) are 0
    and its state is frozen, in both directions, so a reversed scan starts at its own last step.
    Where ``resets[t, b]``, the state is replaced by 0 before x[t] is consumed. What stands in the
    input past an end is never read, be it NaN or a token out of range. ``grad_clip_time`` limits
    the gradient of the states that a step begins with.
    """
    scan = without_padding(scan)
    storage = scan.weights[0].dtype
    if storage in (torch.bfloat16, torch.float16):
        wide = _converted(scan, torch.float32)
        y, final, trace = _loop(wide)
        return ScanResult(
            y.to(storage), [s.to(storage) for s in final], [s.to(storage) for s in trace]
        )
    return _loop(scan)


def _converted(scan: Scan, dtype: torch.dtype) -> Scan:
    input = scan.input if scan.kind == "tokens" else scan.input.to(dtype)
    return scan._replace(
        input=input,
        states=[s.to(dtype) for s in scan.states],
        weights=[w.to(dtype) for w in scan.weights],
    )


def _loop(scan: Scan) -> ScanResult:
    step, weights = scan.spec.step, scan.step_weights()
    T = scan.input.shape[0]
    gx = project_input(scan).unbind(0)
    alive = _alive(scan)
    states = tuple(scan.states)
    visited: list[tuple[Tensor, ...]] = []
    order = range(T - 1, -1, -1) if scan.options.reverse else range(T)
    for t in order:
        before = states
        states = tuple(limited_in_time(s, scan.options.grad_clip_time) for s in states)
        if scan.resets is not None:
            keep = scan.resets[t].logical_not().unsqueeze(-1)
            states = tuple(torch.where(keep, s, torch.zeros_like(s)) for s in states)
        states = step(gx[t], states, weights)
        shown = states
        if alive is not None:
            live = alive[t].unsqueeze(-1)
            shown = tuple(torch.where(live, s, torch.zeros_like(s)) for s in states)
            states = tuple(
                torch.where(live, s, old) for s, old in zip(states, before, strict=False)
            )
        visited.append(shown)
    if scan.options.reverse:
        visited.reverse()
    y = torch.stack([shown[0] for shown in visited])
    trace = []
    if scan.options.all_states:
        trace = [torch.stack(series) for series in list(zip(*visited, strict=False))[1:]]
    return ScanResult(y, list(states), trace)


def without_padding(scan: Scan) -> Scan:
    """``scan`` with zeros in the input past each end, so that no padding reaches a product."""
    alive = _alive(scan)
    if alive is None:
        return scan
    if scan.kind != "tokens":
        alive = alive.unsqueeze(-1)
    return scan._replace(input=torch.where(alive, scan.input, torch.zeros_like(scan.input)))


def _alive(scan: Scan) -> Tensor | None:
    if scan.lengths is None:
        return None
    steps = torch.arange(scan.input.shape[0], device=scan.input.device)
    return steps.unsqueeze(-1) < scan.lengths
