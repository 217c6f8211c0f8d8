"""Every operator that kernels are made of: the graph of a step that uses it, and its derivative,
are those of the step, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import rnnfast
from rnnfast.cells import CELLS, OwnCell
from rnnfast.cells.step_error import StepError
from rnnfast.steps.check import check
from rnnfast.steps.trace import trace

H = 12
Expression = Callable[[Tensor, Tensor], Tensor]

POINTWISE: dict[str, Expression] = {
    "arithmetic": lambda a, b: 2 * a - b / 3 + a * b - (1 - a) / (b.abs() + 2) + 0.5,
    "reciprocal": lambda a, b: torch.reciprocal(a.abs() + 1) * b,
    "neg": lambda a, b: -a * torch.neg(b),
    "sigmoid": lambda a, b: torch.sigmoid(a) * b,
    "tanh": lambda a, b: torch.tanh(a) + b,
    "relu": lambda a, b: torch.relu(a) + b,
    "relu6": lambda a, b: F.relu6(3 * a) + b,
    "leaky_relu": lambda a, b: F.leaky_relu(a, 0.1) + b,
    "elu": lambda a, b: F.elu(a, 1.5) + b,
    "celu": lambda a, b: F.celu(a, 0.7) + b,
    "selu": lambda a, b: F.selu(a) + b,
    "silu": lambda a, b: F.silu(a) + b,
    "mish": lambda a, b: F.mish(a) + b,
    "gelu": lambda a, b: F.gelu(a) + F.gelu(b, approximate="tanh"),
    "softplus": lambda a, b: F.softplus(a) + F.softplus(3 * b, beta=2, threshold=3),
    "softsign": lambda a, b: F.softsign(a) + b,
    "logsigmoid": lambda a, b: F.logsigmoid(a) + b,
    "hardtanh": lambda a, b: F.hardtanh(a, -0.5, 0.7) + b,
    "hardsigmoid": lambda a, b: F.hardsigmoid(4 * a) + b,
    "hardswish": lambda a, b: F.hardswish(4 * a) + b,
    "threshold": lambda a, b: F.threshold(a, 0.1, 0.3) + b,
    "tanhshrink": lambda a, b: F.tanhshrink(a) + b,
    "exp": lambda a, b: torch.exp(a) + torch.exp2(b) + torch.expm1(a),
    "log": lambda a, b: torch.log(a.abs() + 1) + torch.log2(b.abs() + 1) + torch.log10(a**2 + 1),
    "log1p": lambda a, b: torch.log1p(a.abs()) + b,
    "sqrt": lambda a, b: torch.sqrt(a.abs() + 0.1) + torch.rsqrt(b.abs() + 0.1),
    "square": lambda a, b: torch.square(a) + b,
    "pow": lambda a, b: a**2 + b**3 + (a.abs() + 0.5) ** 1.7 + (b.abs() + 0.5) ** -1 + a**0,
    "pow of both": lambda a, b: (a.abs() + 0.5) ** b + 2**a,
    "abs, sign": lambda a, b: a.abs() * torch.sign(b) + b.sgn(),
    "rounding": lambda a, b: (
        a * torch.floor(2 * b) + a * torch.ceil(b) + torch.round(a) + b.trunc()
    ),
    "sin": lambda a, b: torch.sin(a) * torch.cos(b),
    "sinh": lambda a, b: torch.sinh(a) + torch.cosh(b) + torch.atan(a),
    "erf": lambda a, b: torch.erf(a) + b,
    "clamp": lambda a, b: a.clamp(-0.5, 0.5) + b.clamp(min=0.1) + a.clamp(max=0.2),
    "clamp by tensors": lambda a, b: torch.clamp(a, min=b) + torch.clamp(a, max=b),
    "maximum": lambda a, b: torch.maximum(a, b) + torch.minimum(a, 2 * b),
    "ties": lambda a, b: torch.maximum(a, a.detach()) + torch.minimum(b, b * 1),
    "where": lambda a, b: torch.where(a > b, a * b, b) + torch.where(a <= 0, 1.0, a),
    "comparisons": lambda a, b: (a < b).to(a.dtype) * b + torch.where(a.ge(0) & ~b.eq(1), a, b),
    "or": lambda a, b: torch.where((a > 1) | (b != 0), a, b),
    "masked_fill": lambda a, b: a.masked_fill(b > 0, 2.0),
    "detach": lambda a, b: a * b.detach(),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3) + torch.lerp(a, b, torch.sigmoid(b)),
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=0.5) + torch.addcdiv(a, b, a.abs() + 1),
    "rsub": lambda a, b: 3 - a - torch.rsub(b, 2, alpha=2),
    "constants": lambda a, b: a + torch.ones_like(a) * 2 + torch.zeros_like(b) + a.new_full((), 3),
    "a number": lambda a, b: a * torch.tensor(0.5, dtype=a.dtype) + b,
    "in place on its own": lambda a, b: (a * b).add_(b).mul_(2),
    "whole quotients": lambda a, b: a * torch.div(b, 0.3, rounding_mode="trunc"),
    "masks as numbers": lambda a, b: (
        torch.tanh(a) * (b > 0) + (a > 0).float() + ((a > 0) == (b > 0))
    ),
    "masks of masks": lambda a, b: (
        torch.where(((a > 0) < (b > 0)) ^ (a > 1), a, b) + (a > b).sum(-1, True)
    ),
    "numbers as masks": lambda a, b: torch.where(torch.logical_and(a > 0, b.round()), a, b),
    "a mask of ones": lambda a, b: torch.where(torch.ones_like(a, dtype=torch.bool), a, b),
}
ROWS: dict[str, Expression] = {
    "chunk": lambda a, b: torch.cat(a.chunk(2, -1)[::-1], -1) * b,
    "split": lambda a, b: torch.cat([a.split((4, 8), -1)[1], b[:, :4]], -1),
    "slices": lambda a, b: torch.cat([a[:, 3:], b[:, -3:]], -1),
    "unbind": lambda a, b: torch.cat([t * 2 for t in a.unflatten(-1, (3, 4)).unbind(1)], -1) + b,
    "stack": lambda a, b: torch.stack([a, b], 1).sum(1) + torch.stack((a, b), 0).amax(0),
    "view": lambda a, b: (a.view(-1, 3, 4) * b.view(-1, 3, 4)).reshape(-1, 12),
    "axes": lambda a, b: (a.unsqueeze(1) + b.unsqueeze(0).transpose(0, 1)).squeeze(1),
    "select": lambda a, b: (
        a + b.unflatten(-1, (2, 6))[:, 1].repeat_interleave(1, -1).mean(-1)[:, None]
    ),
    "sum": lambda a, b: a * b.sum(-1, keepdim=True) + b.mean(1).unsqueeze(-1),
    "amax": lambda a, b: a * b.amax(-1, keepdim=True) + a.amin(-1, keepdim=True),
    "parts": lambda a, b: (
        a.view(-1, 3, 4)
        - b.view(-1, 3, 4).mean(-1, keepdim=True) * a.view(-1, 3, 4).amax((1, 2), True)
    ).flatten(1),
    "softmax": lambda a, b: torch.softmax(a, -1) * b + torch.log_softmax(b, -1),
    "softmax of parts": lambda a, b: torch.softmax(a.view(-1, 3, 4), 1).flatten(1) * b,
    "layer_norm": lambda a, b: (
        F.layer_norm(a, (H,)) + F.layer_norm(b.view(-1, 3, 4), (4,)).flatten(1)
    ),
    "rms_norm": lambda a, b: F.rms_norm(a, (H,), eps=1e-5) * b,
    "var": lambda a, b: a / (b.var(-1, keepdim=True) + 1) + torch.var_mean(b, -1, keepdim=True)[1],
    "glu": lambda a, b: F.glu(torch.cat([a, b], -1), -1),
    "expand": lambda a, b: a.mean(-1, keepdim=True).expand(-1, H) * b,
}


def cell_of(expression: Expression) -> OwnCell:
    def step(gx, states, w):
        return (expression(gx, states[0]),)

    return rnnfast.cell(step, gates=1, recurrent=None)


@pytest.mark.parametrize("name", [*POINTWISE, *ROWS])
def test_operator(name: str) -> None:
    cell = cell_of({**POINTWISE, **ROWS}[name])
    try:
        check(cell, H, True)
    finally:
        del CELLS[cell.name]


PRODUCTS = {
    "linear": lambda a, h, w: F.linear(h, w.m, a[0]) + F.linear(a, w.m),
    "rows of a matrix": lambda a, h, w: torch.cat([F.linear(h, p) for p in w.m.split(6)], -1),
    "of a sum": lambda a, h, w: F.linear(torch.tanh(a) * h, w.m) + F.linear(h, w.m),
    "the other side": lambda a, h, w: h @ w.m + a.mm(w.m.t()),
    "one after the other": lambda a, h, w: F.linear(torch.relu(F.linear(h, w.m)), w.m) + a,
    "blocks": lambda a, h, w: rnnfast.block_linear(h, w.b) + rnnfast.block_linear(a, w.b),
    "batched": lambda a, h, w: (
        torch.bmm(h.view(-1, 3, 4).transpose(0, 1), w.b[0]).transpose(0, 1).flatten(1) * a
    ),
    "vectors": lambda a, h, w: a * w.v + h * w.s + F.layer_norm(h, (H,), w.v, w.v),
}


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
    assert f"{__file__}:" in str(raised.value)
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
    ):
        cell = cell_of(expression)
        check(cell, H, True)
        del CELLS[cell.name]
    cell = cell_of(lambda a, h: a + h.unflatten(-1, (3, 4)).amax(1).repeat_interleave(3, -1))
    try:
        with pytest.raises(StepError):
            check(cell, H, True)
    finally:
        del CELLS[cell.name]
