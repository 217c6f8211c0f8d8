"""What a cell is: a step in plain torch, and the facts that everything made of it goes by."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from torch import Tensor


class StepWeights:
    """The weights that a step reads: ``w_hh`` [G*H, P], ``b_hh`` [G*H] or None, ``w_hr`` [P, H],
    and by their names the further parameters of a cell of one's own."""

    def __init__(
        self,
        w_hh: Tensor | None = None,
        b_hh: Tensor | None = None,
        w_hr: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.w_hh: Tensor = w_hh  # type: ignore[assignment]  # None where not `recurrent`
        self.b_hh, self.w_hr = b_hh, w_hr
        self.__dict__.update(params or {})

    def __getattr__(self, name: str) -> Tensor:  # where there is no such attribute
        known = ", ".join(n for n, weight in self.__dict__.items() if weight is not None)
        raise AttributeError(f"the cell has no weight {name!r}; there are: {known}")


States = tuple[Tensor, ...]
Step = Callable[[Tensor, States, StepWeights], States]


class Product(NamedTuple):
    """One product of a step, and by it one phase: what follows up to the next is pointwise.

    ``weight``: "w_hh", of which ``gates`` are the rows, or "w_hr", whose product is the output.
    ``operand``: "h", or the saved value that it multiplies.
    """

    weight: str
    operand: str
    gates: tuple[int, ...] = ()


class Value(NamedTuple):
    """A value of each unit that kernels save for backward. ``activation``: "sigmoid" or "tanh", by
    whose range 16-bit storage keeps it in fixed point; None: it has no such range."""

    name: str
    activation: str | None = None


class Param(NamedTuple):
    """A further weight of a cell of one's own.

    ``shape``: a size for each axis, separated by commas, in H (hidden units), G (gates), whole
    numbers and the cell's settings: "H", "2*H", "heads, H/heads, H/heads". ``init`` fills the new
    tensor in place; None: U(-1/√H, 1/√H), as torch.nn's.
    """

    name: str
    shape: str
    init: Callable[[Tensor], Any] | None = None


@dataclass(frozen=True)
class CellSpec:
    """A recurrent cell.

    Attributes:
        name: the cell's one name, everywhere in the project.
        gates: G, the number of gates; ``w_ih`` is [G*H, I] and ``w_hh`` is [G*H, P].
        states: names of the states, the output first: ``("h",)`` or ``("h", "c")``.
        step: ``(gx, states, weights) -> new states``, where gx [B, G*H] is ``x W_ihᵀ + b_ih``.
        products: those of a step, in order.
        saved: what kernels save for backward: a value for each gate, then at most one more; or the
            output alone, which is there already.
        torch_mode: the torch kernel that computes the same cell, None where torch has none.
        own_product_gate: the gate whose recurrent product enters by itself, so that its gradient is
            another than that of the gate's gx (and its bias can't be added to gx).
        reads_h: whether the pointwise part of a step reads h.
        wide_under_autocast: states whose dtype torch's CPU kernels keep where it is wider than
            autocast's.
        source: where the formula comes from.
        own: the cell is made of its step alone (``rnnfast.cell``): ``products`` and ``saved`` are
            found from it, and there may be any number of states, each [B, H].
        params: further weights, in order.
        recurrent: the shape of ``w_hh``, written as those of ``params`` are; None: the cell has
            neither ``w_hh`` nor ``b_hh``.
        settings: whole numbers that the shapes name, and their values.
        projected: the output is ``W_hr`` times the hidden units, so that P may be less than H.
        has_cell_state: there is a state that is no output.
        saves_gates: false where all that backward needs is the output.
        extra: the name of the value saved beside those of the gates, or None.
        names: of the weights of a scan, by whether it has ``w_ih`` and whether it has biases.
    """

    name: str
    gates: int
    states: tuple[str, ...]
    step: Step
    products: tuple[Product, ...] = ()
    saved: tuple[Value, ...] = ()
    torch_mode: str | None = None
    own_product_gate: int | None = None
    reads_h: bool = False
    wide_under_autocast: tuple[str, ...] = ()
    source: str = ""
    own: bool = False
    params: tuple[Param, ...] = ()
    recurrent: str | None = "G*H, H"
    settings: tuple[tuple[str, int], ...] = ()

    # derived, once
    projected: bool = field(init=False)
    has_cell_state: bool = field(init=False)
    saves_gates: bool = field(init=False)
    extra: str | None = field(init=False)
    names: dict[tuple[bool, bool], tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        def derive(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        derive("projected", any(product.weight == "w_hr" for product in self.products))
        derive("has_cell_state", len(self.states) > 1)
        derive("saves_gates", bool(self.saved) and self.saved[0].name != self.states[0])
        more = self.saved[self.gates :]
        derive("extra", more[0].name if more else None)
        kinds = {True: ["w_ih"], False: []}
        derive(
            "names",
            {(k, b): self._weight_names(kinds[k], b) for k in kinds for b in (False, True)},
        )

    @property
    def tangents(self) -> int:
        """So many states, the first, are tangents of those behind them (cells/tangent.py)."""
        return 0

    def weight_names(self, kind: str, bias: bool) -> tuple[str, ...]:
        """Names of the weights that a scan takes, in order.

        ``kind="gates"`` (the input is already projected) has neither ``w_ih`` nor ``b_ih``.
        """
        return self.names[kind != "gates", bool(bias)]

    def _weight_names(self, of_input: list[str], bias: bool) -> tuple[str, ...]:
        recurrent = ["w_hh"] if self.recurrent is not None else []
        names = [*of_input, *recurrent]
        if bias:
            names += [name.replace("w_", "b_") for name in names]
        if self.projected:
            names.append("w_hr")
        return (*names, *(param.name for param in self.params))

    def state_widths(self, P: int, H: int) -> tuple[int, ...]:
        """Of each state, with an output of width P."""
        return (P, *(H for _ in self.states[1:]))

    def weight_shape(self, name: str, H: int) -> tuple[int, ...]:
        """Of ``w_hh``, ``b_hh`` or a parameter of a cell of one's own with H hidden units.

        Raises:
            ValueError: a size that is not a whole number greater than 0.
        """
        names = {"H": H, "G": self.gates, **dict(self.settings)}
        shapes = {param.name: param.shape for param in self.params}
        if name in ("b_hh", "b_ih") and name not in shapes:
            return (self.gates * H,)
        return sizes_of(shapes[name] if name in shapes else self.recurrent or "", names, name)


_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a / b,
}


def sizes_of(shape: str, names: Mapping[str, int], of: str) -> tuple[int, ...]:
    """The sizes that ``shape`` ("2*H", "heads, H/heads") means; ``of``: whose, for errors."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            right = value(node.right)
            if not right and isinstance(node.op, (ast.Div, ast.FloorDiv)):
                raise ValueError(f"shape {shape!r} of {of!r} divides by 0")
            return _OPERATIONS[type(node.op)](value(node.left), right)
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return Fraction(node.value)
        if isinstance(node, ast.Name) and node.id in names:
            return Fraction(names[node.id])
        raise ValueError(
            f"shape {shape!r} of {of!r}: expected whole numbers, + - * / and the names "
            f"{', '.join(names)}"
        )

    try:
        tree = ast.parse(f"({shape},)", mode="eval").body
    except SyntaxError:
        raise ValueError(f"shape {shape!r} of {of!r} is no list of sizes") from None
    assert isinstance(tree, ast.Tuple)
    sizes = [value(node) for node in tree.elts]
    if not sizes or any(size.denominator != 1 or size <= 0 for size in sizes):
        shown = ", ".join(f"{name} = {number}" for name, number in names.items())
        raise ValueError(
            f"shape {shape!r} of {of!r} should give whole sizes greater than 0 with {shown}, got "
            f"{[str(size) for size in sizes]}"
        )
    return tuple(int(size) for size in sizes)
