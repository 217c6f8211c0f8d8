"""Gradients of input and weights, from what a loop backward left at each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Gradients, Needs, Scan, cast, wide
from ..rules import at_first_step, initial_h, states_between, without_padding
from . import multiply
from .arithmetic import Rounding, add_product, block_product, wide_product
from .gates import GateGradients, GateRows
from .projection import weight_of_input


class Backward(NamedTuple):
    """What the loop backward of a scan left.

    Attributes:
        y: [T, B, P], the output.
        dgates: of the gates at each step.
        rounding: ``dgates`` and ``doutput`` carry its scale.
        operands: by name, the saved values [T, B, H] that a product multiplies instead of h.
        doutput: of h' at each step [T, B, P], of projected cells.
    """

    scan: Scan
    y: Tensor
    dgates: GateGradients
    rounding: Rounding
    operands: Mapping[str | None, Tensor | None]
    doutput: Tensor | None = None

    def gradients(self, needs: Needs, dstates: list[Tensor]) -> Gradients:
        """All of the scan's, of which the loop made ``dstates``."""
        storage = self.rounding.storage
        return Gradients(
            self.input() if needs.input else None,
            [cast(d, storage) for d in dstates] if needs.states else None,
            self.weights() if needs.weights else None,
        )

    def input(self) -> Tensor:
        rows = self.dgates.of_input()
        if self.scan.kind == "gates":
            return self.rounding(rows.steps())
        weight = self.dgates.arranged(weight_of_input(self.scan))
        flat = rows.values.flatten(0, 1)
        multiplied = multiply.product if self.rounding.scale is None else wide_product
        return self.rounding(multiplied(flat, weight)).view_as(self.scan.input)

    def weights(self) -> list[Tensor]:
        """In the order of ``scan.weights``."""
        scan, made = self.scan, dict[str, Tensor]()
        makers = {
            "w_ih": self._w_ih,
            "w_hh": self._w_hh,
            "b_ih": lambda: self._sum(self.dgates.of_input()),
            "b_hh": lambda: self._b_hh(made.get("b_ih")),
            "w_hr": self._w_hr,
        }
        for name in scan.spec.weight_names(scan.kind, scan.has_bias):
            made[name] = makers[name]()
        return list(made.values())

    def of_projection(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Of the weights of the input that are among ``names``."""
        makers = {"w_ih": self._w_ih, "b_ih": lambda: self._sum(self.dgates.of_input())}
        return {name: makers[name]() for name in names if name in makers}

    def _w_ih(self) -> Tensor:
        rows, clean = self.dgates.of_input(), without_padding(self.scan).input
        if self.scan.kind == "dense":
            return self._restored(rows, wide_product(_columns(rows.values), clean.flatten(0, 1)))
        width = weight_of_input(self.scan).shape[1]
        values = rows.values.to(wide(rows.values.dtype))
        table = torch.ops.aten.embedding_dense_backward(values, clean, width, -1, False)
        return self._restored(rows, table.t())

    def _w_hh(self) -> Tensor:
        pieces = []
        began = BeganWith(self.scan, self.y)
        for product in self.scan.spec.products:
            if product.weight == "w_hh":
                of_h, operand = product.operand == "h", self.operands.get(product.operand)
                for rows in self.dgates.of_product(product.gates):
                    made = began.times(rows) if of_h else self._times(rows.values, operand)
                    pieces.append(self._restored(rows, made))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _w_hr(self) -> Tensor:
        (operand,) = (p.operand for p in self.scan.spec.products if p.weight == "w_hr")
        assert self.doutput is not None
        return self.rounding(self._times(self.doutput, self.operands[operand]))

    def _b_hh(self, b_ih: Tensor | None) -> Tensor:
        own = self.scan.spec.own_product_gate
        total = self._sum(self.dgates.of_input()) if b_ih is None else b_ih.clone()
        if own is not None:  # of the others the recurrent product's gradients are gx's
            (rows,) = self.dgates.of_product([own])
            total.unflatten(0, (self.scan.spec.gates, -1))[own] = self._sum(rows)
        return total

    def _times(self, values: Tensor, operand: Tensor | None) -> Tensor:
        assert operand is not None
        return wide_product(_columns(values), cast(operand, values.dtype).flatten(0, 1))

    def _sum(self, rows: GateRows) -> Tensor:
        values = rows.values.flatten(0, 1)
        return self._restored(rows, multiply.sum_of_rows(values, wide(values.dtype)))

    def _restored(self, rows: GateRows, total: Tensor) -> Tensor:
        return rows.restored(self.rounding(total))


class BeganWith:
    """The h that each step of a scan began with, taken from its output ``y``."""

    def __init__(self, scan: Scan, y: Tensor) -> None:
        self.scan, self.initial = scan, initial_h(scan)
        self.later, self.between = states_between(scan, y)
        self._joined: Tensor | None = None

    def times(self, rows: GateRows, blocks: int = 1) -> Tensor:
        """Σ over t and b of the rows' values at (t, b) times that h; ``blocks`` as
        ``block_product`` has it."""
        if self._is_small(rows.values):
            return block_product(rows.values.flatten(0, 1), self.joined().flatten(0, 1), blocks)
        later, between = rows.values[self.later].flatten(0, 1), self.between.flatten(0, 1)
        total = block_product(later, between, blocks)
        if blocks > 1:
            first = at_first_step(self.scan, rows.values)
            return total.add_(block_product(first, self.initial, blocks))
        return add_product(total, at_first_step(self.scan, rows.values).t(), self.initial)

    def _is_small(self, values: Tensor) -> bool:
        """Whether copying all of h costs less than going through the sums a second time."""
        scattered = self.scan.options.reverse and self.scan.lengths is not None
        return not scattered and len(values) * len(self.initial) < values.shape[-1]

    def joined(self) -> Tensor:
        """[T, B, P], where first steps are the first or the last of all."""
        if self._joined is None:
            parts = [self.initial[None], self.between]
            self._joined = torch.cat(parts[::-1] if self.scan.options.reverse else parts)
        return self._joined


def _columns(values: Tensor) -> Tensor:
    """[T, B, N] → [N, T*B]."""
    return values.flatten(0, 1).t()
