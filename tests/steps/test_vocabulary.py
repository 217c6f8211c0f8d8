"""Every operator that kernels are made of: the graph of a step that uses it, and its derivative,
are those of the step, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import rnnfast
from rnnfast.cells import CELLS
from rnnfast.cells.step_error import StepError
from rnnfast.steps.check import check
from rnnfast.steps.trace import trace
from tests.steps import vocabulary
from tests.steps.vocabulary import (
    PAGE,
    POINTWISE,
    PRODUCTS,
    REFUSED,
    ROWS,
    H,
    cell_of,
    page,
    words,
)


def gives_ties_to_the_first() -> bool:
    """Whether this torch, like 2.11, has another gradient of fmax and fmin than of maximum where
    both are equal: no kernel is made of them then."""
    a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    return bool(torch.autograd.grad(torch.fmax(a, b), a)[0] == 1)


def differentiates_aminmax() -> bool:
    try:
        torch.aminmax(torch.zeros(2, requires_grad=True)).min.backward()
    except RuntimeError:  # of 2.11
        return False
    return True


@pytest.mark.parametrize("name", [*POINTWISE, *ROWS])
def test_operator(name: str) -> None:
    if name == "fmax" and gives_ties_to_the_first():
        pytest.skip("this torch gives the gradient of equal operands to the first")
    if name == "aminmax" and not differentiates_aminmax():
        pytest.skip("this torch has no gradient of aminmax")
    cell = cell_of({**POINTWISE, **ROWS}[name])
    try:
        check(cell, H, True)
    finally:
        del CELLS[cell.name]


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_refused_runs_in_torch(name: str) -> None:
    """So that it is the kernels that refuse it; in place it would change what it is given."""
    assert words(REFUSED[name])
    if name != "complex numbers":
        assert REFUSED[name](torch.rand(5, H), torch.rand(5, H)).shape == (5, H)


def test_the_page_says_what_was_tried() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("name", list(PRODUCTS))
def test_product(name: str) -> None:
    def step(gx, states, w):
        bias = None if name != "linear" else w.v
        first = F.linear(states[0], w.m, bias) if name == "linear" else 0
        return (
            first + (F.linear(gx, w.m) if name == "linear" else PRODUCTS[name](gx, *states, w)),
        )

    params = {"m": "H, H", "b": "1, 3, H/3, H/3", "v": "H", "s": "1"}
    cell = rnnfast.cell(step, gates=1, recurrent=None, params=params)
    try:
        check(cell, H, True)
    finally:
        del CELLS[cell.name]


OUTSIDE = {
    "it is not in the vocabulary": lambda a, h: torch.cumsum(a, -1) + h,
    "it works along the batch": lambda a, h: a + h.sum(0, keepdim=True),
    "it takes every second unit": lambda a, h: torch.cat([a[:, ::2], h[:, ::2]], -1),
    "a value decides": lambda a, h: a if h.new_zeros(()) else h,
    "it writes in place": lambda a, h: a.add_(h),
    "a tensor \\[12\\] from outside": lambda a, h, own=torch.ones(12): a * own + h,  # noqa: B008
}


@pytest.mark.parametrize("words", list(OUTSIDE))
def test_what_is_outside_is_an_error_that_says_where(words: str) -> None:
    cell = cell_of(OUTSIDE[words])
    try:
        with pytest.raises(StepError, match=words) as raised:
            trace(cell, H, True)
    finally:
        del CELLS[cell.name]
    assert f"{vocabulary.__file__}:" in str(raised.value)
    assert 'backend="reference"' in str(raised.value)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, d):
        return 2 * d


@pytest.mark.parametrize("how", ["a function of one's own", "no_grad"])
def test_a_derivative_that_the_tracer_does_not_see_is_refused(how: str) -> None:
    def expression(a: Tensor, h: Tensor) -> Tensor:
        if how == "no_grad":
            with torch.no_grad():
                h = torch.tanh(h)
            return a + h
        return a + Doubled.apply(h)

    cell = cell_of(expression)
    try:
        with pytest.raises(StepError, match="gradient of state0 is another than torch's"):
            check(cell, H, True)
    finally:
        del CELLS[cell.name]


# --- states that are no vector of their own ------------------------------------------------------

HANDED = {
    "gx": lambda gx, h, c, w: (torch.sigmoid(torch.tanh(gx + F.linear(h, w.w_hh)) * gx) * gx, gx),
    "the other state": lambda gx, h, c, w: (c, torch.tanh(gx + F.linear(h, w.w_hh, w.b_hh)) * c),
    "the same state": lambda gx, h, c, w: (torch.tanh(gx + F.linear(h, w.w_hh)) * c, c),
    "one number": lambda gx, h, c, w: (
        torch.tanh(F.linear(torch.tanh(F.linear(h, w.w_hh)), w.w_hh)) * gx.mean(-1, True),
        gx.mean(-1, True).expand_as(gx),
    ),
    "a parameter": lambda gx, h, c, w: (torch.tanh(gx + c), w.v.expand_as(gx)),
    "nothing": lambda gx, h, c, w: (torch.tanh(gx + c + h), torch.zeros_like(gx)),
    "read in part": lambda gx, h, c, w: (
        torch.tanh(gx + (c > 0)),
        torch.cat([c[:, :5], h[:, 5:]], -1),
    ),
    "never read": lambda gx, h, c, w: (torch.ones_like(gx), torch.zeros_like(gx)),
    "twice the same": lambda gx, h, c, w: (torch.tanh(gx + h * c),) * 2,
}


@pytest.mark.parametrize("name", list(HANDED))
def test_a_state_may_be_what_was_read(name: str) -> None:
    cell = rnnfast.cell(
        lambda gx, states, w: HANDED[name](gx, *states, w),
        gates=1,
        states=("h", "c"),
        params={"v": "H"},
    )
    try:
        check(cell, H, True)
    finally:
        del CELLS[cell.name]


@pytest.mark.parametrize("units", [1, 61, 122])
def test_any_number_of_units(units: int) -> None:
    """Also that of the batch while a step is traced."""
    cell = cell_of(lambda a, h: a.view(-1, 1, units).mul(h[:, None]).sum(1) + torch.zeros_like(h))
    try:
        check(cell, units, True)
    finally:
        del CELLS[cell.name]


def test_nothing_is_taken_for_right_because_it_is_no_number() -> None:
    cell = cell_of(lambda a, h: Doubled.apply(a) * torch.log(-1 - h.square()))
    try:
        with pytest.raises(StepError, match="could not be compared"):
            check(cell, H, True)
    finally:
        del CELLS[cell.name]


def test_ties_are_torchs_or_refused() -> None:
    """At the first step, where h is 0, they are there."""
    for expression in (
        lambda a, h: h.clamp(0, 1) + h.clamp(min=0) + torch.clamp(h, max=a * 0),
        lambda a, h: torch.maximum(h, h * 2) * a + F.relu(h) + F.elu(h) + F.hardtanh(h, 0, 1),
        lambda a, h: (
            a + h.unflatten(-1, (3, 4)).amax(1).tile(3) * h.view(-1, 4, 3).amax((1, 2))[:, None]
        ),
    ):
        cell = cell_of(expression)
        check(cell, H, True)
        del CELLS[cell.name]
