"""The rules of a scan in plain torch: lengths, resets, the state that a step begins with.

From its end on a sequence's outputs are 0 and its state is frozen; a reversed scan begins with each
sequence's own last step. A reset makes the state 0 before its step. csrc/scan/rules.h and
rnnfast/triton/rules.py say the same to the kernels.

Shapes: T steps, B batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .problem import Scan


def alive(scan: Scan) -> Tensor | None:
    """bool [T, B]: which steps are before their sequence's end; None: all."""
    if scan.lengths is None:
        return None
    return _steps(scan.input) < scan.lengths


def without_padding(scan: Scan) -> Scan:
    """``scan`` with zeros in the input past each end, so that no padding reaches a product."""
    live = alive(scan)
    if live is None:
        return scan
    if scan.kind != "tokens":
        live = live.unsqueeze(-1)
    return scan._replace(input=torch.where(live, scan.input, torch.zeros_like(scan.input)))


def states_between(scan: Scan, y: Tensor) -> tuple[slice, Tensor]:
    """The steps that begin with another's output, and these outputs [T-1, B, P].

    Of ``y`` [T, B, P] as the scan gave it. 0 where a step begins with nothing: after a reset, and
    past an end, where an inf would make a NaN of the gradient's 0. The first step of each sequence
    begins with the initial state: ``at_first_step``, ``initial_h``.
    """
    later, earlier = (slice(1, None), slice(None, -1))
    if scan.options.reverse:
        later, earlier = earlier, later
    live = alive(scan)
    nothing = None if live is None else live[later].logical_not()
    if scan.resets is not None:
        after_reset = scan.resets[later]
        nothing = after_reset if nothing is None else nothing.logical_or_(after_reset)
    h = y[earlier]
    return later, h if nothing is None else h.masked_fill(nothing.unsqueeze(-1), 0)


def at_first_step(scan: Scan, values: Tensor) -> Tensor:
    """[B, N]: of ``values`` [T, B, N] those of the step that each sequence begins with."""
    if not scan.options.reverse:
        return values[0]
    if scan.lengths is None:
        return values[-1]
    T, B, N = values.shape
    at = (scan.lengths.clamp(1, T) - 1).view(1, B, 1).expand(1, B, N)
    return values.gather(0, at).squeeze(0)


def initial_h(scan: Scan) -> Tensor:
    """[B, P]: the h that each sequence begins with; 0 where it begins with a reset, or has no
    step."""
    h = scan.states[0]
    if scan.resets is not None:
        h = h.masked_fill(at_first_step(scan, scan.resets.unsqueeze(-1)), 0)
    if scan.lengths is not None:
        h = h.masked_fill((scan.lengths <= 0).unsqueeze(-1), 0)
    return h


def cut_lengths(lengths: Tensor | None, T: int, steps: int) -> Sequence[Tensor | None]:
    """``lengths`` [B] within each part of ``steps`` steps. A sequence that has ended before a part,
    or in reverse has not begun, has length 0 in it: its state passes through."""
    starts = range(0, T, steps)
    if lengths is None:
        return [None] * len(starts)
    begin = torch.arange(0, T, steps, device=lengths.device).unsqueeze(-1)
    in_part = (T - begin).clamp(max=steps)
    return (lengths - begin).clamp(min=0).minimum(in_part).unbind(0)


def reverse_time(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x [T, B, N] with each sequence reversed within its own length; its own inverse."""
    if lengths is None:
        return x.flip(0)
    T, steps = x.shape[0], _steps(x)
    source = torch.where(steps < lengths, lengths.clamp(0, T) - 1 - steps, steps)
    return x.gather(0, source.unsqueeze(-1).expand_as(x))


def _steps(of: Tensor) -> Tensor:
    """int64 [T, 1]: 0, 1, …"""
    return torch.arange(of.shape[0], device=of.device).unsqueeze(-1)
