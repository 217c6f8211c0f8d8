"""What each aten call does to the values of a step: the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from . import rows
from .graph import Graph
from .operators import clamp_keeps_bound, clamp_shares_ties, fitting, number
from .values import Unsupported, Value, broadcast, constant, reshaped, without_batch
from .weights import Weight

aten = torch.ops.aten


class Context(NamedTuple):
    """``dtypes``: what numbers have. ``shape``: of the result, with the batch's axis."""

    g: Graph
    grain: int
    func: Any
    dtypes: tuple[torch.dtype, ...]
    shape: tuple[int, ...]


Handler = Callable[..., Any]
HANDLERS: dict[Any, Handler] = {}


def handles(*targets: Any) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for target in targets:
            HANDLERS[target] = handler
        return handler

    return register


def call(c: Context, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of a call.

    Raises:
        Unsupported: it is outside the vocabulary.
    """
    handler = HANDLERS.get(c.func) or HANDLERS.get(c.func.overloadpacket)
    if handler is None and c.func._schema.is_mutable:
        name = c.func.overloadpacket.__name__.removesuffix("_")
        handler = HANDLERS.get(getattr(aten, name, None))
    if handler is None:
        raise Unsupported("it is not in the vocabulary of kernels (docs/step-vocabulary.md)")
    return handler(c, *args, **kwargs)


def as_value(c: Context, arg: Any) -> Value:
    if isinstance(arg, Value):
        return arg
    if isinstance(arg, Weight):
        return arg.value(c.g, c.grain)
    if isinstance(arg, (bool, int, float)):
        return constant(c.g, float(arg), (), None)
    raise Unsupported(f"an argument is {arg!r}")


def apply(c: Context, op: str, *args: Any) -> Value:
    values = [as_value(c, arg) for arg in args]
    return broadcast(lambda nodes: c.g(op, *fitting(c.g, op, nodes)), c.g, values)


# --- pointwise -------------------------------------------------------------------------------

_SAME = {
    "neg": aten.neg,
    "abs": aten.abs,
    "sign": (aten.sign, aten.sgn),
    "floor": aten.floor,
    "ceil": aten.ceil,
    "round": aten.round.default,  # not to a number of digits
    "trunc": aten.trunc,
    "sigmoid": aten.sigmoid,
    "tanh": aten.tanh,
    "relu": aten.relu,
    "exp": aten.exp,
    "exp2": aten.exp2,
    "expm1": aten.expm1,
    "log": aten.log,
    "log2": aten.log2,
    "log10": aten.log10,
    "log1p": aten.log1p,
    "sqrt": aten.sqrt,
    "rsqrt": aten.rsqrt,
    "erf": aten.erf,
    "sin": aten.sin,
    "cos": aten.cos,
    "sinh": aten.sinh,
    "cosh": aten.cosh,
    "atan": aten.atan,
    "detach": aten.detach,
    "not": (aten.logical_not, aten.bitwise_not),
    "mul": aten.mul,
    "maximum": aten.maximum,
    "minimum": aten.minimum,
    "pow": aten.pow,
    "lt": aten.lt,
    "le": aten.le,
    "gt": aten.gt,
    "ge": aten.ge,
    "eq": aten.eq,
    "ne": aten.ne,
    "and": (aten.logical_and, aten.bitwise_and),
    "or": (aten.logical_or, aten.bitwise_or),
    "where": aten.where,
}


def _plain(op: str) -> Handler:
    def handler(c: Context, *args: Any) -> Value:
        return apply(c, op, *args)

    return handler


for _op, _targets in _SAME.items():
    _all = _targets if isinstance(_targets, tuple) else (_targets,)
    handles(*_all)(_plain(_op))


@handles(aten.bitwise_xor, aten.logical_xor)
def _xor(c: Context, a: Any, b: Any) -> Value:
    return apply(c, "ne", apply(c, "not", a), apply(c, "not", b))


@handles(aten.add, aten.sub)
def _add(c: Context, a: Any, b: Any, alpha: float = 1) -> Value:
    op = "add" if "add" in str(c.func) else "sub"
    return apply(c, op, a, b if alpha == 1 else apply(c, "mul", b, alpha))


@handles(aten.div)
def _div(c: Context, a: Any, b: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode == "floor":
        return HANDLERS[aten.floor_divide](c, a, b)
    found = apply(c, "div", a, b)
    return found if rounding_mode is None else apply(c, "trunc", found)


@handles(aten.reciprocal)
def _reciprocal(c: Context, x: Any) -> Value:
    return apply(c, "div", 1.0, x)


@handles(aten.square)
def _square(c: Context, x: Any) -> Value:
    return apply(c, "mul", x, x)


@handles(aten.pow.Tensor_Scalar)
def _pow(c: Context, x: Any, exponent: float) -> Value:
    known: dict[float, Callable[[], Value]] = {
        0.0: lambda: apply(c, "add", apply(c, "mul", apply(c, "detach", x), 0.0), 1.0),
        0.5: lambda: apply(c, "sqrt", x),
        1.0: lambda: as_value(c, x),
        2.0: lambda: apply(c, "mul", x, x),
        3.0: lambda: apply(c, "mul", apply(c, "mul", x, x), x),
        -0.5: lambda: apply(c, "rsqrt", x),
        -1.0: lambda: apply(c, "div", 1.0, x),
    }
    return known[exponent]() if exponent in known else apply(c, "pow", x, float(exponent))


@handles(aten.clamp)
def _clamp(c: Context, x: Any, low: Any = None, high: Any = None) -> Value:
    found = x if low is None else _clamp_min(c, x, low)
    return found if high is None else _clamp_max(c, found, high)


@handles(aten.clamp_min)
def _clamp_min(c: Context, x: Any, low: Any) -> Value:
    return _bounded(c, "maximum", "ge", "gt", x, low)


@handles(aten.clamp_max)
def _clamp_max(c: Context, x: Any, high: Any) -> Value:
    return _bounded(c, "minimum", "le", "lt", x, high)


def _bounded(c: Context, op: str, at_bound: str, within: str, x: Any, bound: Any) -> Value:
    """At the bound the gradient goes where this torch has it go."""
    if not isinstance(bound, (int, float)):
        if clamp_shares_ties():
            return apply(c, op, x, bound)
        inside = apply(c, at_bound, x, bound)
    else:
        inside = apply(c, at_bound if clamp_keeps_bound() else within, x, float(bound))
    return apply(c, "where", inside, x, bound)


@handles(aten.masked_fill)
def _masked_fill(c: Context, x: Any, mask: Any, value: Any) -> Value:
    return apply(c, "where", mask, value, x)


# --- constants and copies ----------------------------------------------------------------------


def _constant_like(number: float | None) -> Handler:
    def handler(
        c: Context, *args: Any, dtype: torch.dtype | None = None, fill_value: Any = None, **_: Any
    ) -> Value:
        value = number if fill_value is None else fill_value
        if value is None:
            value = next(a for a in reversed(args) if isinstance(a, (bool, int, float)))
        sizes, batch = without_batch(c.shape)
        found = constant(c.g, float(value), sizes, batch)
        return found if dtype is None else _to_copy(c, found, dtype)

    return handler


handles(aten.zeros_like, aten.zeros, aten.new_zeros)(_constant_like(0.0))
handles(aten.ones_like, aten.ones, aten.new_ones)(_constant_like(1.0))
handles(aten.full_like, aten.full, aten.new_full, aten.scalar_tensor)(_constant_like(None))


@handles(aten.clone, aten.alias, aten.contiguous)
def _same(c: Context, x: Any, **_: Any) -> Any:
    return x


@handles(aten.to.dtype)
def _to_dtype(c: Context, x: Any, dtype: torch.dtype, *_: Any) -> Value:
    return _to_copy(c, x, dtype)


@handles(aten._to_copy)
def _to_copy(c: Context, x: Any, dtype: torch.dtype | None = None, **_: Any) -> Value:
    if dtype == torch.bool:
        return apply(c, "ne", x, 0.0)
    if dtype not in (None, *c.dtypes):
        raise Unsupported(f"it changes the dtype to {dtype}")
    return broadcast(lambda nodes: number(c.g, nodes[0]), c.g, [as_value(c, x)])


# --- shapes --------------------------------------------------------------------------------------


@handles(aten.view, aten._unsafe_view, aten.reshape)
def _view(c: Context, x: Any, _: Any) -> Any:
    if isinstance(x, Weight):
        return x.viewed(c.shape)
    sizes, batch = without_batch(c.shape)
    before = 0 if x.batch is None else math.prod(x.features[: x.batch])
    after = 0 if batch is None else math.prod(sizes[:batch])
    if (batch is None) != (x.batch is None) or before != after:
        raise Unsupported("it lays the batch out in another order")
    return reshaped(c.g, x, sizes, batch)


@handles(aten.permute)
def _permute(c: Context, x: Any, order: Sequence[int]) -> Any:
    return rows.permute(x, order)


@handles(aten.transpose)
def _transpose(c: Context, x: Any, a: int, b: int) -> Any:
    order = list(range(rows.dims_of(x)))
    order[a], order[b] = order[b], order[a]
    return rows.permute(x, order)


@handles(aten.t)
def _t(c: Context, x: Any) -> Any:
    return x if rows.dims_of(x) < 2 else _transpose(c, x, 0, 1)


@handles(aten.unsqueeze)
def _unsqueeze(c: Context, x: Any, axis: int) -> Any:
    return rows.unsqueeze(x, axis)


@handles(aten.squeeze)
def _squeeze(c: Context, x: Any, axis: Any = None) -> Any:
    return rows.squeeze(x, axis)


@handles(aten.expand)
def _expand(c: Context, x: Any, sizes: Sequence[int], **_: Any) -> Value:
    target, batch = without_batch(c.shape)
    return broadcast(lambda n: n[1], c.g, [constant(c.g, 0.0, target, batch), as_value(c, x)])


@handles(aten.slice)
def _slice(
    c: Context, x: Any, axis: int = 0, first: Any = None, last: Any = None, step: int = 1
) -> Any:
    if step != 1:
        raise Unsupported("it takes every second unit or fewer")
    return rows.narrow(c.g, x, axis, first, last)


@handles(aten.narrow)
def _narrow(c: Context, x: Any, axis: int, first: int, size: int) -> Any:
    return rows.narrow(c.g, x, axis, first, first + size)


@handles(aten.select)
def _select(c: Context, x: Any, axis: int, index: int) -> Any:
    return rows.select(c.g, x, axis, index)


@handles(aten.unbind)
def _unbind(c: Context, x: Any, axis: int = 0) -> list[Any]:
    return [rows.select(c.g, x, axis, index) for index in range(rows.size(x, axis))]


@handles(aten.split, aten.split_with_sizes)
def _split(c: Context, x: Any, sizes: Any, axis: int = 0) -> list[Any]:
    whole = rows.size(x, axis)
    if isinstance(sizes, int):
        sizes = [min(sizes, whole - at) for at in range(0, whole, sizes)]
    found, at = [], 0
    for size in sizes:
        found.append(rows.narrow(c.g, x, axis, at, at + size))
        at += size
    return found


@handles(aten.cat)
def _cat(c: Context, values: Sequence[Any], axis: int = 0) -> Value:
    return rows.cat([as_value(c, value) for value in values], axis)


@handles(aten.repeat)
def _repeat(c: Context, x: Any, times: Sequence[int]) -> Value:
    value = as_value(c, x)
    while value.dims < len(times):
        value = rows.unsqueeze(value, 0)
    for axis, count in enumerate(times):
        if count != 1 and axis == value.batch:
            raise Unsupported("it repeats the batch")
        if count != 1:
            value = rows.cat([value] * count, axis)
    return value


@handles(aten.roll)
def _roll(c: Context, x: Any, shifts: Any, axes: Any = ()) -> Value:
    value = as_value(c, x)
    shifts, axes = ([v] if isinstance(v, int) else v for v in (shifts, axes))
    if not axes:
        raise Unsupported("it rolls the batch's axis, too")
    for by, axis in zip(shifts, axes, strict=True):
        value = rows.rolled(c.g, value, axis, by)
    return value


@handles(aten.constant_pad_nd)
def _pad(c: Context, x: Any, padding: Sequence[int], value: float = 0) -> Value:
    found = as_value(c, x)
    for index in range(len(padding) // 2):
        axis = found.dims - 1 - index
        before, after = padding[2 * index : 2 * index + 2]
        if before == after == 0:
            continue
        first, last = max(-before, 0), rows.size(found, axis) - max(-after, 0)
        parts = [rows.narrow(c.g, found, axis, first, last)]
        if before > 0:
            parts.insert(0, _filled(c, found, axis, before, value))
        if after > 0:
            parts.append(_filled(c, found, axis, after, value))
        found = rows.cat(parts, axis)
    return found


def _filled(c: Context, like: Value, axis: int, size: int, value: float) -> Value:
    """As ``like``, but for the size of one axis."""
    sizes = list(like.features)
    sizes[like.feature_of(axis)] = size
    return constant(c.g, float(value), sizes, like.batch)


@handles(aten.stack)
def _stack(c: Context, values: Sequence[Any], axis: int = 0) -> Value:
    return rows.cat([rows.unsqueeze(as_value(c, v), axis) for v in values], axis)
