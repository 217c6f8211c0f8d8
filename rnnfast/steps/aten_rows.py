"""Aten calls that take a row as a whole: reductions, norms, softmax, products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import rows
from .aten import Context, apply, as_value, aten, handles
from .values import Value


@handles(aten.sum)
def _sum(c: Context, x: Any, axes: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return rows.reduce(c.g, "rsum", as_value(c, x), axes, keepdim)


@handles(aten.mean)
def _mean(c: Context, x: Any, axes: Any = None, keepdim: bool = False, **_: Any) -> Value:
    value = as_value(c, x)
    total = rows.reduce(c.g, "rsum", value, axes, keepdim)
    return apply(c, "div", total, rows.count(value, axes))


@handles(aten.amax)
def _amax(c: Context, x: Any, axes: Any = (), keepdim: bool = False) -> Value:
    return rows.reduce(c.g, "rmax", as_value(c, x), axes, keepdim)


@handles(aten.amin)
def _amin(c: Context, x: Any, axes: Any = (), keepdim: bool = False) -> Value:
    negative = apply(c, "neg", x)
    return apply(c, "neg", rows.reduce(c.g, "rmax", negative, axes, keepdim))


def _centred(c: Context, x: Value, axes: Sequence[int]) -> tuple[Value, Value, Value]:
    """The mean, the distance from it, and the mean of that one's square."""
    n = rows.count(x, axes)
    mean = apply(c, "div", rows.reduce(c.g, "rsum", x, axes, True), n)
    away = apply(c, "sub", x, mean)
    square = rows.reduce(c.g, "rsum", apply(c, "mul", away, away), axes, True)
    return mean, away, square


@handles(aten.var.correction)
def _var(
    c: Context, x: Any, axes: Any = None, correction: Any = None, keepdim: bool = False
) -> Value:
    value = as_value(c, x)
    n = rows.count(value, axes)
    _, _, square = _centred(c, value, axes)
    found = apply(c, "div", square, n - (1 if correction is None else correction))
    return found if keepdim else rows.squeeze(found, axes)


@handles(aten.var_mean.correction)
def _var_mean(
    c: Context, x: Any, axes: Any = None, correction: Any = None, keepdim: bool = False
) -> list[Value]:
    mean = _centred(c, as_value(c, x), axes)[0]
    variance = _var(c, x, axes, correction=correction, keepdim=keepdim)
    return [variance, mean if keepdim else rows.squeeze(mean, axes)]


@handles(aten.native_layer_norm)
def _layer_norm(
    c: Context, x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> list[Value]:
    value = as_value(c, x)
    axes = list(range(value.dims - len(shape), value.dims))
    mean, away, square = _centred(c, value, axes)
    variance = apply(c, "div", square, rows.count(value, axes))
    scale = apply(c, "rsqrt", apply(c, "add", variance, eps))
    found = apply(c, "mul", away, scale)
    if weight is not None:
        found = apply(c, "mul", found, weight)
    return [found if bias is None else apply(c, "add", found, bias), mean, scale]


@handles(aten._softmax)
def _softmax(c: Context, x: Any, axis: int, half_to_float: bool = False) -> Value:
    powers, total = _powers(c, x, axis)
    return apply(c, "div", powers, total)


@handles(aten._log_softmax)
def _log_softmax(c: Context, x: Any, axis: int, half_to_float: bool = False) -> Value:
    value = as_value(c, x)
    top = apply(c, "detach", rows.reduce(c.g, "rmax", value, [axis], True))
    _, total = _powers(c, x, axis)
    return apply(c, "sub", apply(c, "sub", value, top), apply(c, "log", total))


def _powers(c: Context, x: Any, axis: int) -> tuple[Value, Value]:
    value = as_value(c, x)
    top = apply(c, "detach", rows.reduce(c.g, "rmax", value, [axis], True))
    powers = apply(c, "exp", apply(c, "sub", value, top))
    return powers, rows.reduce(c.g, "rsum", powers, [axis], True)


# --- products ------------------------------------------------------------------------------------


@handles(aten.mm, aten.bmm)
def _mm(c: Context, a: Any, b: Any) -> Value:
    return rows.matmul(c.g, c.grain, a, b)


@handles(aten.addmm, aten.baddbmm)
def _addmm(c: Context, bias: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Value:
    product = rows.matmul(c.g, c.grain, a, b)
    if alpha != 1:
        product = apply(c, "mul", product, alpha)
    return apply(c, "add", product, bias if beta == 1 else apply(c, "mul", bias, beta))
