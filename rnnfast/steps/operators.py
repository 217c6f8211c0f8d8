"""The pointwise operators: what each one is in torch and in generated code, what it costs, its
derivative.

A derivative is a function (graph, node, gradient of the node) -> a gradient for each argument, None
for one that has none. Ties, and the points where a derivative jumps, are as in torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .graph import Graph, Node

Derivative = Callable[[Graph, Node, Node], Sequence[Node | None]]


@dataclass(frozen=True)
class Operator:
    """``text``: an expression of {0}, {1}, …, each a vector or a scalar, that every language
    understands; each has the functions that it names (C++: csrc/cpu/steps/math.h). ``cheap``: one
    instruction or two, so that backward makes the value again instead of reading it from memory."""

    evaluate: Callable[..., Any]
    text: str
    derivative: Derivative
    cheap: bool = True


def _nothing(g: Graph, node: Node, d: Node) -> Sequence[Node | None]:
    return [None] * len(node.args)


def _add(g: Graph, node: Node, d: Node) -> Sequence[Node | None]:
    return d, d


def _sub(g: Graph, node: Node, d: Node) -> Sequence[Node | None]:
    return d, g("neg", d)


def _mul(g: Graph, node: Node, d: Node) -> Sequence[Node | None]:
    a, b = node.args
    return g("mul", d, b), g("mul", d, a)


def _div(g: Graph, node: Node, d: Node) -> Sequence[Node | None]:
    _, b = node.args
    da = g("div", d, b)
    return da, g("neg", g("mul", da, node))


def _where(g: Graph, node: Node, d: Node) -> Sequence[Node | None]:
    zero, condition = g.const(0.0), node.args[0]
    return None, g("where", condition, d, zero), g("where", condition, zero, d)


def _larger(better: str) -> Derivative:
    """Of maximum and minimum: half to each where they are equal."""

    def derivative(g: Graph, node: Node, d: Node) -> Sequence[Node | None]:
        a, b = node.args
        zero, half = g.const(0.0), g("mul", d, g.const(0.5))
        tie = g("eq", a, b)

        def share(x: Node, y: Node) -> Node:
            return g("where", tie, half, g("where", g(better, x, y), d, zero))

        return share(a, b), share(b, a)

    return derivative


def _most(g: Graph, node: Node, d: Node) -> Sequence[Node | None]:
    """Of the largest of several, made two by two: what are equally large share alike."""
    counts = [_count_of(g, arg, node) for arg in node.args]
    share = g("div", d, g("add", *counts))
    return [g("mul", share, count) for count in counts]


def _count_of(g: Graph, node: Node, largest: Node) -> Node:
    """How many of those that ``node`` is the largest of are as large as ``largest``."""
    if node.op == "most":
        return g("add", *(_count_of(g, arg, largest) for arg in node.args))
    if node.op == "rmax":
        x = node.args[0]
        return g.reduce("rsum", number(g, g("eq", x, largest)), x.width)
    return number(g, g("eq", node, largest))


def _atan2(g: Graph, node: Node, d: Node) -> Sequence[Node | None]:
    a, b = node.args
    length, zero = g("add", _square(g, a), _square(g, b)), g.const(0.0)
    share = g("where", g("eq", length, zero), zero, g("div", d, length))
    return g("mul", share, b), g("neg", g("mul", share, a))


def _fmod(g: Graph, node: Node, d: Node) -> Sequence[Node | None]:
    a, b = node.args
    return d, g("neg", g("mul", d, g("trunc", g("div", a, b))))


def _pow(g: Graph, node: Node, d: Node) -> Sequence[Node | None]:
    a, b = node.args
    one, zero = g.const(1.0), g.const(0.0)
    slope = g("mul", b, g("pow", a, g("sub", b, one)))
    da = g("mul", d, g("where", g("eq", b, zero), zero, slope))
    if b.op == "const":
        return da, None
    nothing = g("and", g("eq", a, zero), g("ge", b, zero))
    return da, g("mul", d, g("where", nothing, zero, g("mul", node, g("log", a))))


def _times(slope: Callable[[Graph, Node, Node], Node]) -> Derivative:
    """Of one argument: ``slope(graph, x, y)`` times the gradient."""

    def derivative(g: Graph, node: Node, d: Node) -> Sequence[Node | None]:
        return (g("mul", d, slope(g, node.args[0], node)),)

    return derivative


def _one(g: Graph) -> Node:
    return g.const(1.0)


def _relu(g: Graph, node: Node, d: Node) -> Sequence[Node | None]:
    zero = g.const(0.0)
    return (g("where", g("le", node, zero), zero, d),)


def _square(g: Graph, x: Node) -> Node:
    return g("mul", x, x)


def _over(g: Graph, a: float, x: Node) -> Node:
    return g("div", g.const(a), x)


def _function(
    evaluate: Callable[..., Any], name: str, slope: Callable[[Graph, Node, Node], Node]
) -> Operator:
    return Operator(evaluate, name + "({0})", _times(slope), cheap=False)


def _compare(evaluate: Callable[..., Any], sign: str) -> Operator:
    return Operator(evaluate, "({0} " + sign + " {1})", _nothing)


def _sign_of(g: Graph, x: Node, y: Node) -> Node:
    return g("sign", x)


OPERATORS: dict[str, Operator] = {
    "add": Operator(torch.add, "({0} + {1})", _add),
    "sub": Operator(torch.sub, "({0} - {1})", _sub),
    "mul": Operator(torch.mul, "({0} * {1})", _mul),
    "div": Operator(torch.div, "({0} / {1})", _div),
    "neg": Operator(torch.neg, "(-{0})", lambda g, node, d: (g("neg", d),)),
    # a scalar, for each unit; made by Graph.spread
    "spread": Operator(lambda a: a, "{0}", lambda g, node, d: (d,)),
    "detach": Operator(torch.Tensor.detach, "{0}", _nothing),
    "abs": Operator(torch.abs, "abs({0})", _times(_sign_of)),
    "sign": Operator(torch.sign, "sign({0})", _nothing),
    "floor": Operator(torch.floor, "floor({0})", _nothing),
    "ceil": Operator(torch.ceil, "ceil({0})", _nothing),
    "round": Operator(torch.round, "round({0})", _nothing),
    "trunc": Operator(torch.trunc, "trunc({0})", _nothing),
    "lt": _compare(torch.lt, "<"),
    "le": _compare(torch.le, "<="),
    "gt": _compare(torch.gt, ">"),
    "ge": _compare(torch.ge, ">="),
    "eq": _compare(torch.eq, "=="),
    "ne": _compare(torch.ne, "!="),
    "and": Operator(torch.logical_and, "({0} & {1})", _nothing),
    "or": Operator(torch.logical_or, "({0} | {1})", _nothing),
    "not": Operator(torch.logical_not, "negated({0})", _nothing),
    "where": Operator(torch.where, "where({0}, {1}, {2})", _where),
    "maximum": Operator(torch.maximum, "maximum({0}, {1})", _larger("gt")),
    "minimum": Operator(torch.minimum, "minimum({0}, {1})", _larger("lt")),
    # made by rows.reduce
    "most": Operator(torch.maximum, "maximum({0}, {1})", _most),
    "relu": Operator(torch.relu, "relu({0})", _relu),
    "sqrt": Operator(
        torch.sqrt, "sqrt({0})", _times(lambda g, x, y: _over(g, 0.5, y)), cheap=False
    ),
    "rsqrt": Operator(
        torch.rsqrt,
        "rsqrt({0})",
        _times(lambda g, x, y: g("mul", g.const(-0.5), g("mul", y, _square(g, y)))),
        cheap=False,
    ),
    "sigmoid": _function(
        torch.sigmoid, "sigmoid", lambda g, x, y: g("mul", y, g("sub", _one(g), y))
    ),
    "tanh": _function(torch.tanh, "tanh", lambda g, x, y: g("sub", _one(g), _square(g, y))),
    "exp": _function(torch.exp, "exp", lambda g, x, y: y),
    "exp2": _function(torch.exp2, "exp2", lambda g, x, y: g("mul", y, g.const(math.log(2)))),
    "expm1": _function(torch.expm1, "expm1", lambda g, x, y: g("add", y, _one(g))),
    "log": _function(torch.log, "log", lambda g, x, y: _over(g, 1.0, x)),
    "log2": _function(torch.log2, "log2", lambda g, x, y: _over(g, 1 / math.log(2), x)),
    "log10": _function(torch.log10, "log10", lambda g, x, y: _over(g, 1 / math.log(10), x)),
    "log1p": _function(torch.log1p, "log1p", lambda g, x, y: _over(g, 1.0, g("add", x, _one(g)))),
    "softplus": _function(
        torch.nn.functional.softplus, "softplus", lambda g, x, y: g("sigmoid", x)
    ),
    "erf": _function(
        torch.erf,
        "erf",
        lambda g, x, y: g(
            "mul", g.const(2 / math.sqrt(math.pi)), g("exp", g("neg", _square(g, x)))
        ),
    ),
    "sin": _function(torch.sin, "sin", lambda g, x, y: g("cos", x)),
    "cos": _function(torch.cos, "cos", lambda g, x, y: g("neg", g("sin", x))),
    "sinh": _function(torch.sinh, "sinh", lambda g, x, y: g("cosh", x)),
    "cosh": _function(torch.cosh, "cosh", lambda g, x, y: g("sinh", x)),
    "atan": _function(
        torch.atan, "atan", lambda g, x, y: _over(g, 1.0, g("add", _square(g, x), _one(g)))
    ),
    "atan2": Operator(torch.atan2, "atan2({0}, {1})", _atan2, cheap=False),
    "fmod": Operator(torch.fmod, "fmod({0}, {1})", _fmod, cheap=False),
    "pow": Operator(torch.pow, "pow({0}, {1})", _pow, cheap=False),
}


def fold(op: str, values: Sequence[float]) -> float | None:
    """The value of ``op`` of constants, where it is a number."""
    found = OPERATORS[op].evaluate(
        *(torch.tensor(v, dtype=torch.float64, device="cpu") for v in values)
    )
    return float(found) if found.is_floating_point() and bool(torch.isfinite(found)) else None


def fitting(g: Graph, op: str, nodes: Sequence[Node]) -> list[Node]:
    """Conditions where ``op`` takes conditions, numbers (1 and 0) where it takes numbers."""
    conditions = {"and": 2, "or": 2, "not": 1, "where": 1}.get(op, 0)
    return [
        condition(g, node) if at < conditions else number(g, node) for at, node in enumerate(nodes)
    ]


def number(g: Graph, node: Node) -> Node:
    return g("where", node, g.const(1.0), g.const(0.0)) if node.boolean else node


def condition(g: Graph, node: Node) -> Node:
    return node if node.boolean else g("ne", node, g.const(0.0))


@functools.cache
def clamp_keeps_bound() -> bool:
    """Whether x at a number that bounds it has a gradient; versions of torch differ."""
    return _of_clamp(0.0) == 1.0


@functools.cache
def clamp_shares_ties() -> bool:
    """Whether x and a tensor that bounds it share the gradient where they are equal."""
    return _of_clamp(torch.zeros(1, device="cpu")) == 0.5


def _of_clamp(bound: Any) -> float:
    with torch.enable_grad():
        x = torch.zeros(1, requires_grad=True, device="cpu")
        return float(torch.autograd.grad(torch.clamp(x, min=bound), x)[0])
