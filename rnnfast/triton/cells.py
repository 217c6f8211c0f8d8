"""The cells that Triton has functions for, and what the kernels ask of a cell.

The facts are rnnfast.cells'. The functions stand in the file of the cell's family, one forward and
one backward a phase of W_hh (``FUNCTIONS`` there). They take and return tuples of tiles [BLOCK_B,
BLOCK_H]; ``x_forward_0`` is the first phase's, ``x_forward`` that of a cell with no other.

    forward(gx, gh, s, earlier) -> out, values
    backward(d, saved, s, left) -> dgx, dgh, ds, left

Forward: gx = W_ih·x + b_ih and gh = W_hh·operand + b_hh of the phase's gates; s the states, s[0] is
h. ``values``: what is saved of the phase's gates, and after them what is saved besides, unless it
is a product's operand; ``earlier``: the values of the phase before. ``out``: the operand of the
next product; of the last phase the new states, the first of which a projection still multiplies.

Backward, from the last phase to the first: d the gradient of ``out``; ``saved`` the values of all
phases; ds the phase's direct part of the gradient of s (the part through gh, W_hhᵀ·dgh, is the
kernel's). ``left``: what the last phase knows of the gradients of the last gates before its own,
left[-1] of the very last. The first phase gets it, and returns gradients of as many of its gates,
from the first on, as it has anything to add to.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, NamedTuple

from ..cells import CELLS, CellSpec

FILES = {
    "rnn_tanh": "rnn",
    "rnn_relu": "rnn",
    "lstm": "lstm",
    "lstm_proj": "lstm",
    "gru": "gru",
    "gru_reset_before": "gru",
    "mgu": "mgu",
}


class Phase(NamedTuple):
    """Gates ``begin`` … ``begin + gates - 1``, from their product with W_hh on."""

    begin: int
    gates: int
    forward: Any
    backward: Any


def why_not(spec: CellSpec) -> str | None:
    """The reason where the kernels can't run this cell. Needs no Triton."""
    if spec.name not in FILES:
        return f"its kernels have no functions for the cell {spec.name}"
    recurrent = [p for p in spec.products if p.weight == "w_hh"]
    if len(recurrent) > 2 or (len(recurrent) == 2 and (spec.projected or spec.has_cell_state)):
        return "its kernels take two phases of a cell with one state, or one and a projection"
    if [g for p in recurrent for g in p.gates] != list(range(spec.gates)):
        return "its kernels take the gates in the order of the phases"
    alone = spec.own_product_gate == spec.gates - 1 and len(spec.products) == 1
    if spec.own_product_gate is not None and not alone:
        return "its kernels keep the product of the last gate apart, of a cell with one phase"
    return None


class TritonCell:
    """A cell as the kernels take it: ``spec`` and its phases."""

    def __init__(self, spec: CellSpec) -> None:
        reason = why_not(spec)
        if reason is not None:
            raise ValueError(reason)
        self.spec = spec
        module = importlib.import_module(f".{FILES[spec.name]}", __package__)
        forward, backward = module.FUNCTIONS[spec.name]
        gates = [p.gates for p in spec.products if p.weight == "w_hh"]
        self.phases = [
            Phase(own[0], len(own), *functions)
            for own, *functions in zip(gates, forward, backward, strict=True)
        ]

    @property
    def owns_product(self) -> bool:
        """Whether the last gate's product enters by itself."""
        return self.spec.own_product_gate is not None

    @property
    def reads_extra(self) -> bool:
        """Whether backward reads what is saved beside the gates: not so a product's operand."""
        operands = [product.operand for product in self.spec.products]
        return self.spec.extra is not None and self.spec.extra not in operands

    @property
    def has_dextra(self) -> bool:
        """Whether backward writes gradients beside those of gx."""
        return self.owns_product or self.spec.projected


@functools.cache
def cell_of(name: str) -> TritonCell:
    """Needs Triton. Raises ValueError with the reason of ``why_not``."""
    return TritonCell(CELLS[name])
