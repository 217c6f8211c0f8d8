"""The operators that were tried in a step: what kernels can be made of, and what is refused with
which words. docs/step-vocabulary.md is made of it:

    python -m tests.steps.vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rnnfast
from rnnfast.cells import CELLS, OwnCell
from rnnfast.cells.step_error import StepError
from rnnfast.steps.trace import trace

H = 12
Expression = Callable[[Tensor, Tensor], Tensor]
PAGE = Path(__file__).parents[2] / "docs" / "step-vocabulary.md"

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
    "min, max of two": lambda a, b: torch.max(a, b) + torch.min(b, a * a),
    "fmax": lambda a, b: torch.fmax(a, b) + torch.fmin(a, 2 * b),
    "heaviside": lambda a, b: torch.heaviside(a.detach(), b.new_full((), 0.5)) * b,
    "isfinite, isnan, isinf": lambda a, b: torch.where(
        torch.isfinite(a / b) & ~torch.isnan(a) & ~torch.isinf(b), a, b
    ),
    "prelu": lambda a, b: F.prelu(a, b.new_full((1,), 0.2)) + b,
    "softshrink": lambda a, b: F.softshrink(a, 0.3) + b,
    "hardshrink": lambda a, b: F.hardshrink(a, 0.3) + b,
    "hypot": lambda a, b: torch.hypot(a, b) + a,
    "atan2": lambda a, b: torch.atan2(a, b) + torch.atan2(b, a.abs()),
    "tan": lambda a, b: torch.tan(a) * b,
    "asin": lambda a, b: torch.asin(torch.tanh(a)) + torch.acos(torch.sigmoid(b)),
    "asinh": lambda a, b: torch.asinh(a) + torch.acosh(b.abs() + 1.5) + torch.asinh(-b),
    "atanh": lambda a, b: torch.atanh(0.9 * torch.tanh(a)) * b,
    "logit": lambda a, b: torch.logit(torch.sigmoid(a), eps=0.3) + torch.logit(torch.sigmoid(b)),
    "logaddexp": lambda a, b: torch.logaddexp(a, b) + torch.logaddexp2(a, b),
    "xlogy": lambda a, b: torch.xlogy(a, b.abs() + 1) + torch.special.xlog1py(a, b.abs()),
    "sinc": lambda a, b: torch.sinc(a) + torch.sinc(b),
    "ndtr": lambda a, b: torch.special.ndtr(a) + b,
    "ldexp": lambda a, b: torch.ldexp(a, b),
    "deg2rad": lambda a, b: torch.deg2rad(a) + torch.rad2deg(b),
    "frac": lambda a, b: torch.frac(a) * b,
    "fmod": lambda a, b: torch.fmod(a, 0.7) + torch.fmod(b, a.abs() + 0.1),
    "remainder": lambda a, b: a % 0.7 + torch.remainder(b, -a.abs() - 0.1),
    "whole quotients, rounded down": lambda a, b: (
        b * torch.div(a.detach(), 0.7, rounding_mode="floor") + a * (b.detach() // -0.3)
    ),
    "clip": lambda a, b: torch.clip(a, -1, 1) + b,
    "dropout in evaluation": lambda a, b: F.dropout(a, 0.5, False) + b,
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
    "ties of a row": lambda a, b: a * torch.cat([b, a, b.relu()], -1).amax(-1, keepdim=True),
    "ties of parts": lambda a, b: (
        a
        + b.unflatten(-1, (3, 4)).relu().amax(1).repeat(1, 3)
        + a.view(-1, 3, 4).amin((1, 2))[:, None]
    ),
    "max, min": lambda a, b: (
        torch.stack([a, b, a * b], 1).max(1)[0] + torch.stack([a, b], -1).min(-1).values
    ),
    "maxout": lambda a, b: torch.stack(a.chunk(2, -1), -1).amax(-1).repeat(1, 2) + b,
    "aminmax": lambda a, b: a * torch.aminmax(b, dim=-1, keepdim=True).max,
    "prod": lambda a, b: torch.stack([a, b, a + b], 1).prod(1),
    "std": lambda a, b: (
        a * b.std(-1, keepdim=True) + a.view(-1, 3, 4).std(2, correction=0).repeat_interleave(4, -1)
    ),
    "std_mean": lambda a, b: a * torch.std_mean(b, -1, keepdim=True)[0],
    "norm": lambda a, b: (
        a * b.norm(dim=-1, keepdim=True) / (1 + a.norm(p=1, dim=-1, keepdim=True))
        + torch.linalg.vector_norm(b, float("inf"), -1, True)
    ),
    "normalize": lambda a, b: F.normalize(a, dim=-1) + F.normalize(b, p=1, dim=-1),
    "cosine_similarity": lambda a, b: a * F.cosine_similarity(a, b, -1)[:, None],
    "logsumexp": lambda a, b: a * b.logsumexp(-1, keepdim=True) + torch.logsumexp(a, 1)[:, None],
    "softmin": lambda a, b: F.softmin(a, -1) * b,
    "group_norm": lambda a, b: F.group_norm(a, 3) + F.group_norm(b, 2, eps=0.1),
    "any, all": lambda a, b: torch.where(
        (a > 1).any(-1, keepdim=True) & ~(b > 0).all(-1, keepdim=True), a, b
    ),
    "repeat, tile": lambda a, b: a[:, :4].repeat(1, 3) * b[:, 6:].tile(2),
    "repeat_interleave of parts": lambda a, b: (
        a.view(-1, 3, 4).mean(-1).repeat_interleave(4, -1) * b
    ),
    "roll": lambda a, b: a.roll(4, -1) * b.roll((-1,), (1,)),
    "pad": lambda a, b: F.pad(a[:, :8], (2, 2), value=0.5) * F.pad(b, (-2, 2)),
    "diff": lambda a, b: torch.cat([a.diff(dim=-1), b[:, :1]], -1),
    "broadcast_to": lambda a, b: torch.broadcast_to(a.mean(-1, keepdim=True), b.shape) * b,
    "hstack, tensor_split": lambda a, b: torch.hstack(a.tensor_split(3, -1)[::-1]) * b,
    "movedim": lambda a, b: a.view(-1, 3, 4).movedim(1, 2).swapaxes(1, 2).flatten(1) * b,
}
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
REFUSED: dict[str, Expression] = {
    "cumsum": lambda a, b: torch.cumsum(a, -1) + b,
    "cumprod": lambda a, b: torch.cumprod(a, -1) + b,
    "logcumsumexp": lambda a, b: torch.logcumsumexp(a, -1) + b,
    "max of a row": lambda a, b: a * b.max(-1, keepdim=True)[0],
    "argmax": lambda a, b: a * b.argmax(-1, keepdim=True),
    "prod of a row": lambda a, b: a * b.prod(-1, keepdim=True),
    "norm of order 3": lambda a, b: a * b.norm(p=3, dim=-1, keepdim=True),
    "sort": lambda a, b: a.sort(-1)[0] * b,
    "topk": lambda a, b: a * b.topk(2, -1)[0].sum(-1, True),
    "median": lambda a, b: a * b.median(-1, keepdim=True)[0],
    "gather": lambda a, b: a.gather(-1, torch.zeros_like(b, dtype=torch.long)) * b,
    "a list as an index": lambda a, b: a[:, [1, 0]].repeat(1, 6) * b,
    "every second unit": lambda a, b: torch.cat([a[:, ::2], b[:, ::2]], -1),
    "flip": lambda a, b: a.flip(-1) * b,
    "units in another order": lambda a, b: a.view(-1, 3, 4).transpose(1, 2).flatten(1) * b,
    "repeat_interleave of units": lambda a, b: a[:, :4].repeat_interleave(3, -1) * b,
    "one unit for many": lambda a, b: a[:, :1] * b,
    "a product of two values": lambda a, b: a * torch.einsum("bi,bi->b", a, b)[:, None],
    "convolution": lambda a, b: F.conv1d(a[:, None], b.new_ones(1, 1, 3), padding=1)[:, 0] * b,
    "avg_pool1d": lambda a, b: F.avg_pool1d(a[:, None], 4)[:, 0].repeat_interleave(4, -1) * b,
    "instance_norm": lambda a, b: F.instance_norm(a.view(-1, 3, 4)).flatten(1) * b,
    "a sum over the batch": lambda a, b: a + b.sum(0, keepdim=True),
    "given numbers": lambda a, b: a * torch.tensor([1.0, 2.0, 3.0] * 4, dtype=a.dtype) + b,
    "arange": lambda a, b: a * torch.arange(H, dtype=a.dtype) + b,
    "random numbers": lambda a, b: a * torch.rand_like(a) + b,
    "dropout": lambda a, b: F.dropout(a, 0.5, True) + b,
    "whole numbers": lambda a, b: a.int().to(a.dtype) * b,
    "another dtype": lambda a, b: a.half().to(a.dtype) * b,
    "complex numbers": lambda a, b: torch.view_as_complex(a.view(-1, 6, 2)).abs().repeat(1, 2) * b,
    "erfc": lambda a, b: torch.erfc(a) * b,
    "erfinv": lambda a, b: torch.erfinv(torch.tanh(a)) * b,
    "lgamma": lambda a, b: torch.lgamma(a.abs() + 1) * b,
    "i0": lambda a, b: torch.i0(a) * b,
    "copysign": lambda a, b: torch.copysign(a, b),
    "a loss": lambda a, b: F.mse_loss(a, b, reduction="none"),
    "an `if` on a value": lambda a, b: a if b.sum() > 0 else b,
    "writing in place": lambda a, b: a.add_(b),
    "a tensor from outside": lambda a, b, own=torch.ones(H): a * own + b,  # noqa: B008
}


def cell_of(expression: Expression) -> OwnCell:
    def step(gx, states, w):
        return (expression(gx, states[0]),)

    return rnnfast.cell(step, gates=1, recurrent=None)


def words(expression: Expression) -> str:
    """Why no kernel can be made of it."""
    cell = cell_of(expression)
    try:
        trace(cell, H, True)
    except StepError as error:
        _, _, told = str(error).partition(f"the step of {cell.name!r}: ")
        call, _, why = told.partition(f" at {__file__}:")
        return f"`{call}`: {why.partition(': ')[2].partition('. backend=')[0]}"
    finally:
        del CELLS[cell.name]
    raise AssertionError("it is not refused")


class Calls(TorchDispatchMode):
    """The names of the operators that torch calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def called(expressions: Iterable[Expression]) -> set[str]:
    """By these expressions, after torch has taken apart what consists of others."""
    a, b = torch.ones(5, H), torch.ones(5, H)
    with torch.no_grad(), Calls() as calls:
        for expression in expressions:
            expression(a, b)
    return {name for name in calls.names if not name.endswith("_")}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names, key=lambda name: name.strip("_")))


def page() -> str:
    own = called(POINTWISE.values())
    return HEAD.format(
        own=_listed(own),
        rows=_listed(called(ROWS.values()) - own),
        products=", ".join(PRODUCTS),
        refused="\n".join(f"| {name} | {words(tried)} |" for name, tried in REFUSED.items()),
    )


HEAD = """\
# What a step may call

The operators that were tried in a step ([your-own-cell.md](your-own-cell.md)), by torch's own
names for them. This page is made of the tests that try them (`python -m tests.steps.vocabulary`),
and one of them reads it again.

## Kernels are made of these

Values and gradients are torch's, where two are equally large, at 0 and where a function jumps, too.
What torch itself makes of others (`F.normalize`, `F.softsign`, `torch.hstack`) is served with them.

| of | |
|---|---|
| units by themselves | {own} |
| rows and their parts | {rows} |
| products with a cell's matrices | {products} |

## These are refused

The backend `reference` runs them all the same, and `auto` takes it by itself.

| what | the error's words |
|---|---|
{refused}
"""

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
