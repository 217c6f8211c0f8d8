"""Functions that are made of the operators: their values and gradients are torch's, at 0 too."""

from __future__ import annotations

import math
from typing import Any

from .aten import Context, apply, as_value, aten, handles
from .values import Unsupported, Value

_INF = float("inf")


@handles(aten.tan)
def _tan(c: Context, x: Any) -> Value:
    return apply(c, "div", apply(c, "sin", x), apply(c, "cos", x))


@handles(aten.asin)
def _asin(c: Context, x: Any) -> Value:
    return apply(c, "atan2", x, _other_side(c, x))


@handles(aten.acos)
def _acos(c: Context, x: Any) -> Value:
    return apply(c, "atan2", _other_side(c, x), x)


def _other_side(c: Context, x: Any) -> Value:
    """Of a right triangle with hypotenuse 1."""
    product = apply(c, "mul", apply(c, "sub", 1.0, x), apply(c, "add", x, 1.0))
    return apply(c, "sqrt", product)


@handles(aten.asinh)
def _asinh(c: Context, x: Any) -> Value:
    negative = apply(c, "lt", x, 0.0)
    size = apply(c, "where", negative, apply(c, "neg", x), x)
    square = apply(c, "mul", size, size)
    root = apply(c, "sqrt", apply(c, "add", square, 1.0))
    rest = apply(c, "div", square, apply(c, "add", root, 1.0))
    found = apply(c, "log1p", apply(c, "add", size, rest))
    return apply(c, "where", negative, apply(c, "neg", found), found)


@handles(aten.acosh)
def _acosh(c: Context, x: Any) -> Value:
    beyond = apply(c, "sub", x, 1.0)
    root = apply(c, "sqrt", apply(c, "mul", beyond, apply(c, "add", x, 1.0)))
    return apply(c, "log1p", apply(c, "add", beyond, root))


@handles(aten.atanh)
def _atanh(c: Context, x: Any) -> Value:
    ratio = apply(c, "div", apply(c, "mul", x, 2.0), apply(c, "sub", 1.0, x))
    return apply(c, "mul", apply(c, "log1p", ratio), 0.5)


@handles(aten.logit)
def _logit(c: Context, x: Any, eps: float | None = None) -> Value:
    held = as_value(c, x)
    if eps is not None:
        low, high = float(eps), 1 - float(eps)
        held = apply(c, "where", apply(c, "lt", x, low), low, held)
        held = apply(c, "where", apply(c, "gt", x, high), high, held)
    return apply(c, "log", apply(c, "div", held, apply(c, "sub", 1.0, held)))


@handles(aten.atan2)
def _atan2(c: Context, a: Any, b: Any) -> Value:
    return apply(c, "atan2", a, b)


@handles(aten.hypot)
def _hypot(c: Context, a: Any, b: Any) -> Value:
    """It overflows where the squares do."""
    squares = apply(c, "add", apply(c, "mul", a, a), apply(c, "mul", b, b))
    return apply(c, "sqrt", squares)


def _log_of_sum(c: Context, a: Any, b: Any, scale: float) -> Value:
    same = apply(c, "eq", a, b)  # where both are infinite their difference is no number
    away = apply(c, "abs", apply(c, "where", same, 0.0, apply(c, "sub", a, b)))
    bent = apply(c, "softplus", apply(c, "mul", away, -scale))
    return apply(c, "add", apply(c, "maximum", a, b), apply(c, "div", bent, scale))


@handles(aten.logaddexp)
def _logaddexp(c: Context, a: Any, b: Any) -> Value:
    return _log_of_sum(c, a, b, 1.0)


@handles(aten.logaddexp2)
def _logaddexp2(c: Context, a: Any, b: Any) -> Value:
    return _log_of_sum(c, a, b, math.log(2))


@handles(aten.xlogy, aten.special_xlogy)
def _xlogy(c: Context, a: Any, b: Any) -> Value:
    return _times_log(c, "log", a, b, 0.0)


@handles(aten.special_xlog1py)
def _xlog1py(c: Context, a: Any, b: Any) -> Value:
    return _times_log(c, "log1p", a, b, -1.0)


def _times_log(c: Context, log: str, a: Any, b: Any, lowest: float) -> Value:
    nothing = apply(c, "and", apply(c, "eq", a, 0.0), apply(c, "le", b, lowest))
    return apply(c, "mul", a, apply(c, log, apply(c, "where", nothing, 1.0, b)))


@handles(aten.sinc, aten.special_sinc)
def _sinc(c: Context, x: Any) -> Value:
    middle = apply(c, "eq", x, 0.0)
    turn = apply(c, "mul", apply(c, "where", middle, 1.0, x), math.pi)
    return apply(c, "where", middle, 1.0, apply(c, "div", apply(c, "sin", turn), turn))


@handles(aten.frac)
def _frac(c: Context, x: Any) -> Value:
    return apply(c, "sub", x, apply(c, "trunc", x))


@handles(aten.ldexp)
def _ldexp(c: Context, a: Any, b: Any) -> Value:
    return apply(c, "mul", a, apply(c, "exp2", b))


@handles(aten.deg2rad)
def _deg2rad(c: Context, x: Any) -> Value:
    return apply(c, "mul", x, math.pi / 180)


@handles(aten.rad2deg)
def _rad2deg(c: Context, x: Any) -> Value:
    return apply(c, "mul", x, 180 / math.pi)


# --- quotients -----------------------------------------------------------------------------------


@handles(aten.fmod)
def _fmod(c: Context, a: Any, b: Any) -> Value:
    return apply(c, "fmod", a, b)


def _turned(c: Context, rest: Value, b: Any) -> Value:
    """Whether the rest of a division that rounds to 0 has not the divisor's sign."""
    signs = apply(c, "ne", apply(c, "lt", b, 0.0), apply(c, "lt", rest, 0.0))
    return apply(c, "and", apply(c, "ne", rest, 0.0), signs)


@handles(aten.remainder)
def _remainder(c: Context, a: Any, b: Any) -> Value:
    rest = apply(c, "fmod", a, b)
    return apply(c, "where", _turned(c, rest, b), apply(c, "add", rest, b), rest)


@handles(aten.floor_divide)
def floor_divide(c: Context, a: Any, b: Any) -> Value:
    """By way of the rest: a quotient that is rounded may reach a whole number."""
    a, b = apply(c, "detach", a), apply(c, "detach", b)
    rest = apply(c, "fmod", a, b)
    whole = apply(c, "round", apply(c, "div", apply(c, "sub", a, rest), b))
    found = apply(c, "where", _turned(c, rest, b), apply(c, "sub", whole, 1.0), whole)
    return apply(c, "where", apply(c, "eq", b, 0.0), apply(c, "div", a, b), found)


# --- choices -------------------------------------------------------------------------------------


@handles(aten.fmax)
def _fmax(c: Context, a: Any, b: Any) -> Value:
    return _unless_no_number(c, "maximum", a, b)


@handles(aten.fmin)
def _fmin(c: Context, a: Any, b: Any) -> Value:
    return _unless_no_number(c, "minimum", a, b)


def _unless_no_number(c: Context, op: str, a: Any, b: Any) -> Value:
    found = apply(c, "where", apply(c, "ne", b, b), a, apply(c, op, a, b))
    return apply(c, "where", apply(c, "ne", a, a), b, found)


@handles(aten.isnan)
def _isnan(c: Context, x: Any) -> Value:
    return apply(c, "ne", x, x)


@handles(aten.isinf)
def _isinf(c: Context, x: Any) -> Value:
    return apply(c, "eq", apply(c, "abs", x), _INF)


@handles(aten.heaviside)
def _heaviside(c: Context, x: Any, at_zero: Any) -> Value:
    step = apply(c, "where", apply(c, "gt", x, 0.0), 1.0, 0.0)
    found = apply(c, "where", apply(c, "eq", x, 0.0), apply(c, "detach", at_zero), step)
    return apply(c, "where", apply(c, "ne", x, x), apply(c, "detach", x), found)


@handles(aten._prelu_kernel)
def _prelu(c: Context, x: Any, slope: Any) -> Value:
    return apply(c, "where", apply(c, "gt", x, 0.0), x, apply(c, "mul", slope, x))


@handles(aten.hardshrink)
def _hardshrink(c: Context, x: Any, bound: float = 0.5) -> Value:
    inside = apply(c, "and", apply(c, "ge", x, -float(bound)), apply(c, "le", x, float(bound)))
    return apply(c, "where", inside, 0.0, x)


@handles(aten.softshrink)
def _softshrink(c: Context, x: Any, bound: float = 0.5) -> Value:
    bound = float(bound)
    above, below = apply(c, "gt", x, bound), apply(c, "lt", x, -bound)
    low = apply(c, "where", below, apply(c, "add", x, bound), apply(c, "mul", x, 0.0))
    return apply(c, "where", above, apply(c, "sub", x, bound), low)


def _random(c: Context, *_: Any, **__: Any) -> Value:
    raise Unsupported("it draws random numbers: recurrent_dropout= and zoneout= draw masks outside")


handles(
    aten.rand_like,
    aten.randn_like,
    aten.rand,
    aten.randn,
    aten.bernoulli,
    aten.native_dropout,
    aten.empty_like,
    aten.randint,
    aten.randint_like,
    aten.normal,
    aten.multinomial,
)(_random)
