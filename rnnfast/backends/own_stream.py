"""Layers of cells that are compiled from a step, a few steps at a time: the memory that one holds
between the calls of a ``rnnfast.Stream``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..steps import passes
from ..steps.loops import Call, Loop, Rows
from ..steps.run import Kernel


class Held(NamedTuple):
    """``gx`` [T, B, width] is to be filled before ``call``, which leaves its outputs in ``y``
    [T, B, H]; ``weights`` are what it reads."""

    call: Call
    gx: Tensor
    y: Tensor
    weights: Mapping[str, Tensor]


def held(
    kernel: Kernel,
    weights: Mapping[str, Tensor],
    states: Sequence[Tensor],
    chunk: int,
    constants: Sequence[float] = (),
) -> Held:
    """A layer whose states [B, H] go on from call to call, of ``chunk`` steps at most.

    ``constants``: what each of the last H gates of gx are, where the cell has masks.
    """
    B, H = states[0].shape
    layout = kernel.layout
    weights = {name: weight.contiguous() for name, weight in weights.items()}
    gx = states[0].new_zeros(chunk, B, layout.widths["gx"])
    for index, value in enumerate(reversed(constants)):
        end = gx.shape[2] - index * H
        gx[..., end - H : end] = value
    y = states[0].new_zeros(chunk, B, H)
    rows = {"gx": Rows(gx, passes.STEP, gx.shape[2])}
    widths = {name: layout.widths[name] for name in ("saved", "scalars")}
    widths["tmp"] = layout.forward.temporary
    for name, width in widths.items():
        made = y.new_zeros(B, width) if width else None
        rows[name] = Rows(made, passes.SEQUENCE, width)
    rows["state0"] = Rows(y, passes.OLD, H, states[0])
    rows["new0"] = Rows(y, passes.NEW, H, states[0], states[0])
    for k, state in enumerate(states[1:], start=1):
        slots = y.new_zeros(2, B, H)
        rows[f"state{k}"] = Rows(slots, passes.OLD_SLOT, H, state)
        rows[f"new{k}"] = Rows(slots, passes.NEW_SLOT, H, state, state)
    loop = Loop(chunk, B, weights, None, None, False, False)
    call = kernel.prepared("forward", loop, rows)
    workspace = torch.zeros(
        kernel.bytes("forward", call.arguments) + 64, dtype=torch.uint8, device="cpu"
    )
    call.arguments.workspace = (workspace.data_ptr() + 63) & ~63
    call.kept.extend([workspace, *rows.values()])
    return Held(call, gx, y, weights)
