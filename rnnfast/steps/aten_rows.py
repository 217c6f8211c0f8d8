"""Aten calls that take a row as a whole: reductions, norms, softmax, products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import rows
from .aten import Context, apply, as_value, aten, handles
from .values import Unsupported, Value, reshaped


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


@handles(aten.max.dim)
def _max(c: Context, x: Any, axis: int, keepdim: bool = False) -> list[Any]:
    return [_first_best(c, as_value(c, x), axis, keepdim, "ge"), None]


@handles(aten.min.dim)
def _min(c: Context, x: Any, axis: int, keepdim: bool = False) -> list[Any]:
    return [_first_best(c, as_value(c, x), axis, keepdim, "le"), None]


def _first_best(c: Context, x: Value, axis: int, keepdim: bool, better: str) -> Value:
    """Of equals the first has the gradient."""

    def both(a: Value, b: Value) -> Value:
        first = apply(c, "or", apply(c, better, a, b), apply(c, "ne", a, a))
        return apply(c, "where", first, a, b)

    name = "amax" if better == "ge" else "amin"
    words = f"of equal units one has the gradient, by its place in the row: use {name}"
    return rows.over_axes(c.g, x, axis, keepdim, both, words)


@handles(aten.aminmax)
def _aminmax(c: Context, x: Any, *, dim: int | None = None, keepdim: bool = False) -> list[Value]:
    axes = () if dim is None else dim
    return [_amin(c, x, axes, keepdim), _amax(c, x, axes, keepdim)]


@handles(aten.prod.dim_int)
def _prod(c: Context, x: Any, axis: int, keepdim: bool = False, **_: Any) -> Value:
    words = "it multiplies the units of a row, which kernels can't"
    return rows.over_axes(
        c.g, as_value(c, x), axis, keepdim, lambda a, b: apply(c, "mul", a, b), words
    )


@handles(aten.any.dim, aten.any.dims)
def _any(c: Context, x: Any, axes: Any = None, keepdim: bool = False) -> Value:
    mask = apply(c, "ne", x, 0.0)
    return apply(c, "ne", rows.reduce(c.g, "rmax", mask, axes, keepdim), 0.0)


@handles(aten.all.dim, aten.all.dims)
def _all(c: Context, x: Any, axes: Any = None, keepdim: bool = False) -> Value:
    return apply(c, "not", _any(c, apply(c, "eq", x, 0.0), axes, keepdim))


def _root(c: Context, x: Value) -> Value:
    """The square root of what is not negative; where it is 0 the gradient is 0."""
    nothing = apply(c, "eq", x, 0.0)
    root = apply(c, "sqrt", apply(c, "where", nothing, 1.0, x))
    return apply(c, "where", nothing, 0.0, root)


@handles(aten.linalg_vector_norm)
def _norm(
    c: Context, x: Any, order: float = 2, axes: Any = None, keepdim: bool = False, **_: Any
) -> Value:
    size = apply(c, "abs", x)
    if order == 2:
        total = rows.reduce(c.g, "rsum", apply(c, "mul", x, x), axes, keepdim)
        nothing = apply(c, "eq", total, 0.0)
        root = apply(c, "sqrt", apply(c, "add", total, apply(c, "where", nothing, 1.0, 0.0)))
        return apply(c, "mul", root, apply(c, "where", nothing, 0.0, 1.0))
    if order == 1:
        return rows.reduce(c.g, "rsum", size, axes, keepdim)
    if order == float("inf"):
        return rows.reduce(c.g, "rmax", size, axes, keepdim)
    if order == -float("inf"):
        return _amin(c, size, axes, keepdim)
    raise Unsupported(f"it is a norm of order {order:g}: 1, 2 and inf can be had")


@handles(aten.logsumexp)
def _logsumexp(c: Context, x: Any, axes: Any, keepdim: bool = False) -> Value:
    value = as_value(c, x)
    top = apply(c, "detach", rows.reduce(c.g, "rmax", value, axes, True))
    infinite = apply(c, "eq", apply(c, "abs", top), float("inf"))
    top = apply(c, "where", infinite, 0.0, top)
    powers = apply(c, "exp", apply(c, "sub", value, top))
    total = rows.reduce(c.g, "rsum", powers, axes, True)
    found = apply(c, "add", apply(c, "log", total), top)
    return found if keepdim else rows.squeeze(found, axes)


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


@handles(aten.std.correction)
def _std(
    c: Context, x: Any, axes: Any = None, correction: Any = None, keepdim: bool = False
) -> Value:
    return _root(c, _var(c, x, axes, correction=correction, keepdim=keepdim))


@handles(aten.std_mean.correction)
def _std_mean(
    c: Context, x: Any, axes: Any = None, correction: Any = None, keepdim: bool = False
) -> list[Value]:
    variance, mean = _var_mean(c, x, axes, correction=correction, keepdim=keepdim)
    return [_root(c, variance), mean]


@handles(aten.native_group_norm)
def _group_norm(
    c: Context, x: Any, weight: Any, bias: Any, n: int, units: int, rest: int, groups: int,
    eps: float,
) -> list[Value]:  # fmt: skip
    value = as_value(c, x)
    if value.dims != 2 or value.batch != 0:
        raise Unsupported("it normalises groups of more than one axis")
    apart = reshaped(c.g, value, (groups, units // groups), 0)
    found, mean, scale = _layer_norm(c, apart, (units // groups,), None, None, eps)
    found = reshaped(c.g, found, (units,), 0)
    if weight is not None:
        found = apply(c, "mul", found, weight)
    return [found if bias is None else apply(c, "add", found, bias), mean, scale]


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
