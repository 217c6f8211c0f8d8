"""Gradients of input and weights of cells of one's own, from the rows that a loop backward left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Gradients, Needs, Scan, cast
from ..products import multiply
from ..products.arithmetic import Rounding, summed, summed_product
from ..products.gates import GateMajor, GateRows
from ..products.gradients import Backward, BeganWith
from ..steps.evaluate import view
from ..steps.graph import Matrix
from ..steps.layout import Layout, MatrixGradient, Place
from ..steps.loops import WeightSums


class _Part(NamedTuple):
    """The gradient of a part of a weight's elements; of each group, where there are any."""

    of: Matrix
    total: Tensor


def _whole(parts: list[_Part], weight: Tensor, groups: int) -> Tensor:
    """The gradient of a weight: the parts side by side, or their sum where they may overlap."""
    apart = (groups,) if groups else ()
    parts = sorted(parts, key=lambda part: part.of.offset)
    at = 0
    for of, total in parts:
        units = total.numel() // max(groups, 1)
        at = at + units if of.offset == at and of.is_dense else -1
    if at == weight.numel() > 0:
        flat = [part.total.reshape(*apart, -1) for part in parts]
        whole = flat[0] if len(flat) == 1 else torch.cat(flat, -1)
        return whole.view(*apart, *weight.shape)
    found = weight.new_zeros(*apart, *weight.shape)
    for of, total in parts:
        for each, part in zip(found, total, strict=True) if groups else [(found, total)]:
            view(each, of).add_(part)
    return found


def _columns(values: Tensor, offset: int, width: int) -> Tensor:
    if width == values.shape[-1]:
        return values
    return values[..., offset : offset + width]


class Left:
    """What a loop backward left.

    Args:
        scan: in the dtype that ``buffers`` have, which gradients are rounded from to ``storage``.
        buffers: by name, the rows of the layout: of each step [T, B, width], "acc" and "acc1"
            [B, width].
        history: of states, their values after each step [T, B, H]; 0 is the output.
        sums: what makes gradients of weights in one pass, where our kernels multiply; of
            ``buffers`` or "x", the scan's input.
    """

    def __init__(
        self,
        scan: Scan,
        layout: Layout,
        buffers: Mapping[str, Tensor],
        history: Mapping[int, Tensor],
        storage: torch.dtype,
        sums: Sequence[WeightSums] = (),
    ) -> None:
        self.sums = sums
        self.scan, self.layout, self.buffers, self.history = scan, layout, buffers, history
        self.rounding = Rounding(storage)
        self.groups = 0  # as Needs has them
        self._began: dict[Place, BeganWith] = {}

    def gradients(self, needs: Needs, dstates: list[Tensor]) -> Gradients:
        """All of the scan's, of which the loop made ``dstates``."""
        self.groups = needs.groups
        dgates = GateMajor(self.scan.spec, self.buffers["dgx"])
        y, rounding, groups = self.history[0], self.rounding, self.groups
        products = Backward(self.scan, y, dgates, rounding, {}, groups=groups)
        return Gradients(
            products.input() if needs.input else None,
            [cast(d, self.rounding.storage) for d in dstates] if needs.states else None,
            self._weights(products, needs.leading) if needs.weights else None,
        )

    def _weights(self, products: Backward, leading: int | None) -> list[Tensor]:
        at_once = self._at_once()
        names = self.scan.spec.weight_names(self.scan.kind, self.scan.has_bias)[:leading]
        if len(at_once) == len(names):
            return [at_once[k] for k in range(len(names))]
        made = {names[k]: gradient for k, gradient in at_once.items()}
        left = [name for name in names if name not in made]
        made |= products.of_projection(left)
        parts: dict[str, list[_Part]] = {name: [] for name in left if name not in made}
        for matrix in self.layout.matrices:
            if matrix.matrix.weight in parts:
                parts[matrix.matrix.weight].append(_Part(matrix.matrix, self._matrix(matrix)))
        of_gx = made.get("b_ih") if "b_ih" in left else None
        for name, offset, place in self.layout.elements:
            if name in parts:
                total = self._sum(place, of_gx)
                elements = Matrix(name, offset, 1, total.shape[-1], total.shape[-1], 1)
                parts[name].append(_Part(elements, total.unsqueeze(-2)))
        for name, weight in zip(names, self.scan.weights, strict=False):
            if name in parts:
                made[name] = self.rounding(_whole(parts[name], weight, self.groups))
        return [made[name] for name in names]

    def _at_once(self) -> dict[int, Tensor]:
        """The gradients that passes of sums make, by their numbers among the scan's weights."""
        scan, dgx = self.scan, self.buffers["dgx"]
        found: dict[int, Tensor] = {}
        x = scan.input if scan.kind == "dense" else dgx
        if self.groups or not self.sums or not multiply.is_ours(dgx, x):
            return found
        options = (scan.lengths, scan.resets, scan.options.reverse)
        for numbers, tensors, plan in self.sums:
            given = [x if name == "x" else self.buffers[name] for name in tensors]
            made = plan.run(given, [scan.weights[k] for k in numbers], *options)
            for k, total in zip(numbers, made, strict=True):
                found[k] = self.rounding(total)
        return found

    def _sum(self, place: Place, of_gx: Tensor | None) -> Tensor:
        """Of the rows at ``place`` over steps and sequences; ``of_gx``: that of all of "dgx"."""
        buffer, offset, width = place
        if of_gx is not None and buffer == "dgx" and of_gx.dtype == self.buffers["dgx"].dtype:
            return of_gx[..., offset : offset + max(width, 1)].clone()
        return summed(self._values(place), self.groups)

    def _values(self, place: Place) -> Tensor:
        buffer, offset, width = place
        return _columns(self.buffers[buffer], offset, max(width, 1))

    def _matrix(self, matrix: MatrixGradient) -> Tensor:
        """Σ of the gradient's rows times the operand's."""
        gradient, operand = self._values(matrix.gradient), matrix.operand
        blocks = matrix.matrix.blocks
        columns = operand.offset, operand.width
        if operand.buffer.startswith("state"):
            if operand not in self._began:
                k = int(operand.buffer.removeprefix("state"))
                scan = self.scan._replace(states=[_columns(self.scan.states[k], *columns)])
                self._began[operand] = BeganWith(scan, _columns(self.history[k], *columns))
            return self._began[operand].times(GateRows(gradient), blocks, self.groups)
        if operand.buffer.startswith("new"):
            values = _columns(self.history[int(operand.buffer.removeprefix("new"))], *columns)
        else:
            values = self._values(operand)
        return summed_product(gradient, values, blocks, self.groups)
