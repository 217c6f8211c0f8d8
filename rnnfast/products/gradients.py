"""Gradients of input and weights, from what a loop backward left at each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Gradients, Needs, Scan, cast, wide
from ..rules import at_first_step, initial_h, states_between, without_padding
from . import multiply
from .arithmetic import Rounding, add_product, block_product, summed, summed_product, wide_product
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
        groups: the batch is of so many parts, each with gradients of the weights of its own, which
            have an axis of them first; 0: there are none.
    """

    scan: Scan
    y: Tensor
    dgates: GateGradients
    rounding: Rounding
    operands: Mapping[str | None, Tensor | None]
    doutput: Tensor | None = None
    groups: int = 0

    def gradients(self, needs: Needs, dstates: list[Tensor]) -> Gradients:
        """All of the scan's, of which the loop made ``dstates``."""
        storage = self.rounding.storage
        return Gradients(
            self.input() if needs.input else None,
            [cast(d, storage) for d in dstates] if needs.states else None,
            self._replace(groups=needs.groups).weights() if needs.weights else None,
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
            "w_ih": self.w_ih,
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
        makers = {"w_ih": self.w_ih, "b_ih": lambda: self._sum(self.dgates.of_input())}
        return {name: makers[name]() for name in names if name in makers}

    def w_ih(self) -> Tensor:
        rows, clean = self.dgates.of_input(), without_padding(self.scan).input
        if self.scan.kind == "dense":
            return self._restored(rows, summed_product(rows.values, clean, 1, self.groups), -2)
        width, groups = weight_of_input(self.scan).shape[1], max(self.groups, 1)
        values = rows.values.to(wide(rows.values.dtype))
        if self.groups:  # a table of its own for each
            first = torch.arange(groups, device=clean.device).mul_(width)
            clean = clean + first.repeat_interleave(clean.shape[1] // groups)
        table = torch.ops.aten.embedding_dense_backward(values, clean, groups * width, -1, False)
        made = table.unflatten(0, (groups, width)).transpose(1, 2)
        return self._restored(rows, made if self.groups else made[0], -2)

    def _w_hh(self) -> Tensor:
        pieces = []
        began = BeganWith(self.scan, self.y)
        for product in self.scan.spec.products:
            if product.weight == "w_hh":
                of_h, operand = product.operand == "h", self.operands.get(product.operand)
                for rows in self.dgates.of_product(product.gates):
                    if of_h:
                        made = began.times(rows, groups=self.groups)
                    else:
                        made = self._times(rows.values, operand)
                    pieces.append(self._restored(rows, made, -2))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -2)

    def _w_hr(self) -> Tensor:
        (operand,) = (p.operand for p in self.scan.spec.products if p.weight == "w_hr")
        assert self.doutput is not None
        return self.rounding(self._times(self.doutput, self.operands[operand]))

    def _b_hh(self, b_ih: Tensor | None) -> Tensor:
        own = self.scan.spec.own_product_gate
        total = self._sum(self.dgates.of_input()) if b_ih is None else b_ih.clone()
        if own is not None:  # of the others the recurrent product's gradients are gx's
            (rows,) = self.dgates.of_product([own])
            total.unflatten(-1, (self.scan.spec.gates, -1))[..., own, :] = self._sum(rows)
        return total

    def _times(self, values: Tensor, operand: Tensor | None) -> Tensor:
        assert operand is not None
        return summed_product(values, cast(operand, values.dtype), 1, self.groups)

    def _sum(self, rows: GateRows) -> Tensor:
        return self._restored(rows, summed(rows.values, self.groups), -1)

    def _restored(self, rows: GateRows, total: Tensor, axis: int) -> Tensor:
        return rows.restored(self.rounding(total), axis % total.dim())


class BeganWith:
    """The h that each step of a scan began with, taken from its output ``y``."""

    def __init__(self, scan: Scan, y: Tensor) -> None:
        self.scan, self.initial = scan, initial_h(scan)
        self.later, self.between = states_between(scan, y)
        self._joined: Tensor | None = None

    def times(self, rows: GateRows, blocks: int = 1, groups: int = 0) -> Tensor:
        """Σ over t and b of the rows' values at (t, b) times that h; ``blocks`` and ``groups`` as
        ``summed_product`` has them."""
        if self._is_small(rows.values):
            return summed_product(rows.values, self.joined(), blocks, groups)
        total = summed_product(rows.values[self.later], self.between, blocks, groups)
        first = at_first_step(self.scan, rows.values)
        if groups:
            return total.add_(summed_product(first[None], self.initial[None], blocks, groups))
        if blocks > 1:
            return total.add_(block_product(first, self.initial, blocks))
        return add_product(total, first.t(), self.initial)

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
