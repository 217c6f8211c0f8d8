"""What a cell is: a step in plain torch, and the facts that everything made of it goes by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class StepWeights:
    """The weights that a step reads: ``w_hh`` [G*H, P], ``b_hh`` [G*H] or None, ``w_hr`` [P, H]."""

    w_hh: Tensor
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None


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
        projected: the output is ``W_hr`` times the hidden units, so that P may be less than H.
        has_cell_state: there is a state that is no output.
        saves_gates: false where all that backward needs is the output.
        extra: the name of the value saved beside those of the gates, or None.
    """

    name: str
    gates: int
    states: tuple[str, ...]
    step: Step
    products: tuple[Product, ...]
    saved: tuple[Value, ...]
    torch_mode: str | None = None
    own_product_gate: int | None = None
    reads_h: bool = False
    wide_under_autocast: tuple[str, ...] = ()
    source: str = ""

    # derived, once
    projected: bool = field(init=False)
    has_cell_state: bool = field(init=False)
    saves_gates: bool = field(init=False)
    extra: str | None = field(init=False)

    def __post_init__(self) -> None:
        def derive(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        derive("projected", any(product.weight == "w_hr" for product in self.products))
        derive("has_cell_state", len(self.states) > 1)
        derive("saves_gates", self.saved[0].name != self.states[0])
        more = self.saved[self.gates :]
        derive("extra", more[0].name if more else None)

    def weight_names(self, kind: str, bias: bool) -> tuple[str, ...]:
        """Names of the weights that a scan takes, in order.

        ``kind="gates"`` (the input is already projected) has neither ``w_ih`` nor ``b_ih``.
        """
        names = ["w_hh"] if kind == "gates" else ["w_ih", "w_hh"]
        if bias:
            names += ["b_hh"] if kind == "gates" else ["b_ih", "b_hh"]
        if self.projected:
            names.append("w_hr")
        return tuple(names)
