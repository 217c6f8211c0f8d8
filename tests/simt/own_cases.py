"""Cells of one's own that the CUDA C++ is tried with, on the executor and on a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import rnnfast
from rnnfast.cells import CELLS, CellSpec

from .. import own_cells
from ..steps import test_own_cpu as own

MANY = 20  # heads; more operands than a launch takes, if each were one


@rnnfast.cell(gates=1)
def many_heads(gx, states, w):
    """A dense product of what is made head by head."""
    (h,) = states
    heads = h.unflatten(-1, (MANY, -1))
    h = (heads - heads.amax(-1, keepdim=True)).flatten(-2)
    return (torch.tanh(gx + F.linear(h, w.w_hh, w.b_hh)),)


@rnnfast.cell(gates=1)
def shuffled(gx, states, w):
    """The same where they don't lie side by side."""
    h = torch.cat(states[0].chunk(MANY, -1)[::-1], -1)
    return (torch.tanh(gx + F.linear(h, w.w_hh, w.b_hh)),)


# Beyond what a layer lets through: nothing is asked of those that lie on a GPU.
LENGTHS = torch.tensor([own.T + 1, -1, 2**40, -(2**40), own.T])
BLOCKS = CELLS["block_gru"].with_settings(heads=4)
CELLS_HERE: list[CellSpec] = [
    own_cells.lstm,
    own_cells.gru,
    own_cells.peephole,
    own_cells.three_states,
    CELLS["layer_norm_lstm"],
    CELLS["slstm"],
    BLOCKS,
    CELLS["min_lstm"],
    own.everything,
    own.handed,
]


def name_of(spec: CellSpec) -> str:
    return spec.name.rpartition(":")[2]


def check(spec: CellSpec, dtype: torch.dtype = torch.float32, **call: object) -> None:
    own.check(spec, dtype, "executed", **call)


def check_lengths(spec: CellSpec, how: str, reverse: bool, device: str = "cpu") -> None:
    """Lengths out of range count as within [0, T]: the same results and gradients, bit by bit."""
    scan = own.scan_of(spec, torch.float32, ends=True, all_states=True, reverse=reverse)
    found, expected = (
        own.results(own.on(scan._replace(lengths=lengths), device), how)
        for lengths in (LENGTHS, LENGTHS.clamp(0, own.T))
    )
    for value, right in zip(found, expected, strict=True):
        assert torch.equal(value, right)
