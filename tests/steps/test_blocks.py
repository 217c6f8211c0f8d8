"""Products by heads are one block-diagonal product, whose text does not grow with the heads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import rnnfast
from rnnfast.cells import CELLS, OwnCell
from rnnfast.steps.check import check
from rnnfast.steps.layout import layout
from rnnfast.steps.source import source
from rnnfast.steps.trace import trace

H = 24
Step = Callable[..., Tensor]


def cell_of(step: Step, heads: int) -> OwnCell:
    return rnnfast.cell(
        lambda gx, states, w: (step(gx, states[0], w),),
        gates=2,
        params={"m": f"2, {heads}, H/{heads}, H/{heads}", "k": "H, H"},
        recurrent=None,
    )


def linear(x: Tensor, w: rnnfast.cells.StepWeights) -> Tensor:
    return rnnfast.block_linear(x, w.m)


def of_gates(gx: Tensor, h: Tensor, w: rnnfast.cells.StepWeights) -> Tensor:
    a, b = (gx + linear(h, w)).chunk(2, -1)
    return torch.tanh(a) * b


def of_what_is_made(gx: Tensor, h: Tensor, w: rnnfast.cells.StepWeights) -> Tensor:
    a, b = gx.chunk(2, -1)
    found = linear(torch.sigmoid(a) * h, w) + linear(b, w)
    return found[:, :H] * found[:, H:]


def with_a_whole_one(gx: Tensor, h: Tensor, w: rnnfast.cells.StepWeights) -> Tensor:
    a, b = linear(h, w).chunk(2, -1)
    return a + F.linear(h, w.k) * torch.relu(b) + gx[:, :H]


def across(gx: Tensor, h: Tensor, w: rnnfast.cells.StepWeights) -> Tensor:
    """A part of what is made that goes across the blocks."""
    found = linear(h, w)[:, :H]
    return torch.cat([found[:, 10:], torch.tanh(found[:, :10])], -1) + gx[:, H:]


def parts_of_a_whole_one(gx: Tensor, h: Tensor, w: rnnfast.cells.StepWeights) -> Tensor:
    """A dense product, taken apart head by head."""
    heads = (gx[:, :H] + F.linear(h, w.k)).unflatten(-1, (4, -1))
    return torch.tanh(F.layer_norm(heads, heads.shape[-1:]).flatten(-2)) + gx[:, H:]


def layout_of(cell: OwnCell, blocks: bool):
    return layout(trace(cell, H, True, torch.float64, blocks=blocks), 2)


@pytest.mark.parametrize("step", [of_gates, of_what_is_made, with_a_whole_one])
@pytest.mark.parametrize("heads", [2, 3, 8])
def test_heads_are_blocks(step: Step, heads: int) -> None:
    cell = cell_of(step, heads)
    try:
        check(cell, H, True)
        assert layout_of(cell, True).has_blocks()
        assert not layout_of(cell, False).has_blocks()
    finally:
        del CELLS[cell.name]


@pytest.mark.parametrize("step", [across, parts_of_a_whole_one])
def test_what_goes_across_the_blocks_is_done_one_by_one(step: Step) -> None:
    cell = cell_of(step, 3)
    try:
        check(cell, H, True)
        assert not layout_of(cell, True).has_blocks()
    finally:
        del CELLS[cell.name]


def test_the_text_does_not_grow_with_the_heads() -> None:
    lines = []
    for heads in (2, 8):
        cell = cell_of(of_gates, heads)
        try:
            text = source(cell, H, True, torch.float32).text
        finally:
            del CELLS[cell.name]
        assert f", {heads}}}" in text
        lines.append(len(text.splitlines()))
    assert lines[0] == lines[1]
