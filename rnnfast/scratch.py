"""The scratch loop: one direction of one layer, step by step in plain torch.

It is the specification and the oracle of every kernel, and the backend ``reference``. Only
differentiable, functional torch calls, so that autograd of any order, vmap and forward-mode AD work
through it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cells import CellSpec, StepWeights
from .problem import Scan, ScanResult, wide
from .products.projection import project_input
from .rules import alive, without_padding
from .time_clip import limited_in_time


def scratch_scan(scan: Scan) -> ScanResult:
    """Runs ``scan`` with the cell's step in a loop over T.

    16-bit storage is computed in float32 and rounded once, at the end.

    Semantics of the options: from ``lengths[b]`` on, sequence b's outputs (and traced states) are 0
    and its state is frozen, in both directions, so a reversed scan starts at its own last step.
    Where ``resets[t, b]``, the state is replaced by 0 before x[t] is consumed. What stands in the
    input past an end is never read, be it NaN or a token out of range. ``grad_clip_time`` limits
    the gradient of the states that a step begins with.
    """
    storage = scan.dtype
    result = scratch_loop(without_padding(scan).to(wide(storage)))
    return result if storage == wide(storage) else result.to(storage)


def one_step(
    spec: CellSpec,
    gx: Tensor,
    states: tuple[Tensor, ...],
    weights: StepWeights,
    live: Tensor | None,
    reset: Tensor | None,
    grad_clip_time: float = 0.0,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(the states after a step from ``gx`` [B, G*H], what the outputs show of them).

    ``live``, ``reset``: bool [B], at this step.
    """
    before = states
    states = tuple(limited_in_time(s, grad_clip_time) for s in states)
    if reset is not None:
        keep = reset.logical_not().unsqueeze(-1)
        states = tuple(torch.where(keep, s, torch.zeros_like(s)) for s in states)
    states = spec.step(gx, states, weights)
    if live is None:
        return states, states
    live = live.unsqueeze(-1)
    shown = tuple(torch.where(live, s, torch.zeros_like(s)) for s in states)
    frozen = tuple(torch.where(live, s, old) for s, old in zip(states, before, strict=False))
    return frozen, shown


def scratch_loop(scan: Scan) -> ScanResult:
    """The loop itself, every step in the dtype of the tensors."""
    weights = scan.step_weights()
    T = scan.input.shape[0]
    gx = project_input(scan).unbind(0)
    live_at = alive(scan)
    states = tuple(scan.states)
    visited: list[tuple[Tensor, ...]] = []
    order = range(T - 1, -1, -1) if scan.options.reverse else range(T)
    for t in order:
        live = None if live_at is None else live_at[t]
        reset = None if scan.resets is None else scan.resets[t]
        clip = scan.options.grad_clip_time
        states, shown = one_step(scan.spec, gx[t], states, weights, live, reset, clip)
        visited.append(shown)
    if scan.options.reverse:
        visited.reverse()
    y = torch.stack([shown[0] for shown in visited])
    trace = []
    if scan.options.all_states:
        trace = [torch.stack(series) for series in list(zip(*visited, strict=False))[1:]]
    return ScanResult(y, list(states), trace)
