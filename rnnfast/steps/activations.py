"""Activations that torch computes in one call, by their formulas."""

from __future__ import annotations

import math
from typing import Any

from .aten import Context, apply, as_value, aten, handles
from .values import Value


@handles(aten.silu)
def _silu(c: Context, x: Any) -> Value:
    return apply(c, "mul", x, apply(c, "sigmoid", x))


@handles(aten.gelu)
def _gelu(c: Context, x: Any, approximate: str = "none") -> Value:
    if approximate == "none":
        bend = apply(c, "erf", apply(c, "mul", x, math.sqrt(0.5)))
    else:
        cube = apply(c, "mul", apply(c, "mul", x, x), x)
        inner = apply(c, "add", x, apply(c, "mul", cube, 0.044715))
        bend = apply(c, "tanh", apply(c, "mul", inner, math.sqrt(2 / math.pi)))
    return apply(c, "mul", apply(c, "mul", x, 0.5), apply(c, "add", bend, 1.0))


@handles(aten.softplus)
def _softplus(c: Context, x: Any, beta: float = 1, threshold: float = 20) -> Value:
    scaled = apply(c, "mul", x, float(beta))
    bent = apply(c, "div", apply(c, "softplus", scaled), float(beta))
    return apply(c, "where", apply(c, "gt", scaled, float(threshold)), x, bent)


@handles(aten.log_sigmoid_forward)
def _log_sigmoid(c: Context, x: Any) -> list[Value]:
    found = apply(c, "neg", apply(c, "softplus", apply(c, "neg", x)))
    return [found, found]


@handles(aten.mish)
def _mish(c: Context, x: Any) -> Value:
    return apply(c, "mul", x, apply(c, "tanh", apply(c, "softplus", x)))


@handles(aten.elu)
def _elu(c: Context, x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    held = apply(
        c, "where", apply(c, "gt", x, 0.0), 0.0, x
    )  # above 0 it would overflow, and its gradient be 0 · inf
    below = apply(c, "expm1", apply(c, "mul", held, float(input_scale)))
    below = apply(c, "mul", below, float(alpha) * float(scale))
    above = apply(c, "mul", x, float(scale))
    return apply(c, "where", apply(c, "gt", x, 0.0), above, below)


@handles(aten.celu)
def _celu(c: Context, x: Any, alpha: float = 1) -> Value:
    return _elu(c, x, alpha, 1, 1 / float(alpha))


@handles(aten.selu)
def _selu(c: Context, x: Any) -> Value:
    return _elu(c, x, 1.6732632423543772, 1.0507009873554805)


@handles(aten.leaky_relu)
def _leaky_relu(c: Context, x: Any, slope: float = 0.01) -> Value:
    return apply(c, "where", apply(c, "gt", x, 0.0), x, apply(c, "mul", x, float(slope)))


@handles(aten.threshold)
def _threshold(c: Context, x: Any, threshold: float, value: float) -> Value:
    return apply(c, "where", apply(c, "le", x, float(threshold)), float(value), x)


@handles(aten.hardtanh)
def _hardtanh(c: Context, x: Any, low: float = -1, high: float = 1) -> Value:
    inside = apply(c, "and", apply(c, "gt", x, float(low)), apply(c, "lt", x, float(high)))
    held = apply(c, "minimum", apply(c, "maximum", x, float(low)), float(high))
    return apply(c, "where", inside, x, apply(c, "detach", held))


@handles(aten.relu6)
def _relu6(c: Context, x: Any) -> Value:
    return _hardtanh(c, x, 0.0, 6.0)


def _hard_sixth(c: Context, x: Any) -> Value:
    return apply(c, "div", _hardtanh(c, apply(c, "add", x, 3.0), 0.0, 6.0), 6.0)


@handles(aten.hardsigmoid)
def _hardsigmoid(c: Context, x: Any) -> Value:
    return _hard_sixth(c, x)


@handles(aten.hardswish)
def _hardswish(c: Context, x: Any) -> Value:
    below, above = apply(c, "le", x, -3.0), apply(c, "ge", x, 3.0)
    middle = apply(c, "mul", x, apply(c, "div", apply(c, "add", x, 3.0), 6.0))
    held = apply(c, "where", above, x, middle)
    return apply(c, "where", below, 0.0, held)


@handles(aten.rsub)
def _rsub(c: Context, a: Any, b: Any, alpha: float = 1) -> Value:
    return apply(c, "sub", b, a if alpha == 1 else apply(c, "mul", a, alpha))


@handles(aten.lerp)
def _lerp(c: Context, start: Any, end: Any, weight: Any) -> Value:
    away = apply(c, "sub", end, start)
    return apply(c, "add", start, apply(c, "mul", weight, away))


@handles(aten.addcmul)
def _addcmul(c: Context, x: Any, a: Any, b: Any, value: float = 1) -> Value:
    product = apply(c, "mul", a, b)
    return apply(c, "add", x, product if value == 1 else apply(c, "mul", product, value))


@handles(aten.addcdiv)
def _addcdiv(c: Context, x: Any, a: Any, b: Any, value: float = 1) -> Value:
    quotient = apply(c, "div", a, b)
    return apply(c, "add", x, quotient if value == 1 else apply(c, "mul", quotient, value))


@handles(aten.glu)
def _glu(c: Context, x: Any, axis: int = -1) -> Value:
    from . import rows

    value = as_value(c, x)
    half = rows.size(value, axis) // 2
    a, b = (rows.narrow(c.g, value, axis, at, at + half) for at in (0, half))
    return apply(c, "mul", a, apply(c, "sigmoid", b))
