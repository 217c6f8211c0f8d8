"""Gradients of input and weights of cells of one's own, from the rows that a loop backward left."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..problem import Gradients, Needs, Scan, cast
from ..products.arithmetic import Rounding, block_product
from ..products.gates import GateMajor, GateRows
from ..products.gradients import Backward, BeganWith
from ..steps.evaluate import view, whole
from ..steps.layout import Layout, MatrixGradient, Place


class Left:
    """What a loop backward left.

    Args:
        scan: in the dtype that ``buffers`` have, which gradients are rounded from to ``storage``.
        buffers: by name, the rows of the layout: of each step [T, B, width], "acc" and "acc1"
            [B, width].
        history: of states, their values after each step [T, B, H]; 0 is the output.
    """

    def __init__(
        self,
        scan: Scan,
        layout: Layout,
        buffers: Mapping[str, Tensor],
        history: Mapping[int, Tensor],
        storage: torch.dtype,
    ) -> None:
        self.scan, self.layout, self.buffers, self.history = scan, layout, buffers, history
        self.rounding = Rounding(storage)

    def gradients(self, needs: Needs, dstates: list[Tensor]) -> Gradients:
        """All of the scan's, of which the loop made ``dstates``."""
        dgates = GateMajor(self.scan.spec, self.buffers["dgx"])
        products = Backward(self.scan, self.history[0], dgates, self.rounding, {})
        return Gradients(
            products.input() if needs.input else None,
            [cast(d, self.rounding.storage) for d in dstates] if needs.states else None,
            self._weights(products) if needs.weights else None,
        )

    def _weights(self, products: Backward) -> list[Tensor]:
        names = self.scan.spec.weight_names(self.scan.kind, self.scan.has_bias)
        weights = dict(zip(names, self.scan.weights, strict=True))
        found: dict[str, Tensor] = {}

        def sum_of(name: str) -> Tensor:
            if name not in found:
                found[name] = torch.zeros_like(weights[name], memory_format=torch.contiguous_format)
            return found[name]

        for matrix in self.layout.matrices:
            where, total = matrix.matrix, self._matrix(matrix)
            if where.weight not in found and where == whole(where.weight, weights[where.weight]):
                found[where.weight] = total
            else:
                view(sum_of(where.weight), where).add_(total)
        made = products.of_projection(names)
        for weight, offset, place in self.layout.elements:
            total = self._sum(place, made.get("b_ih"))
            if weight not in found and total.shape[0] == weights[weight].numel():
                found[weight] = total.view(weights[weight].shape)
            else:
                sum_of(weight).view(-1)[offset : offset + total.shape[0]].add_(total)
        for name in names:
            if name not in ("w_ih", "b_ih"):
                sum_of(name)
        made.update((n, self.rounding(d)) for n, d in found.items())
        return [made[name] for name in names]

    def _sum(self, place: Place, of_gx: Tensor | None) -> Tensor:
        """Of the rows at ``place`` over steps and sequences; ``of_gx``: that of all of "dgx"."""
        rows = self._values(place)
        if of_gx is not None and place == ("dgx", 0, self.layout.widths["dgx"]):
            return of_gx.to(rows.dtype, copy=True)
        return rows.flatten(0, -2).sum(0)

    def _values(self, place: Place) -> Tensor:
        buffer, offset, width = place
        return self.buffers[buffer][..., offset : offset + max(width, 1)]

    def _matrix(self, matrix: MatrixGradient) -> Tensor:
        """Σ of the gradient's rows times the operand's."""
        gradient, operand = self._values(matrix.gradient), matrix.operand
        blocks = matrix.matrix.blocks
        columns = slice(operand.offset, operand.offset + operand.width)
        if operand.buffer.startswith("state"):
            k = int(operand.buffer.removeprefix("state"))
            scan = self.scan._replace(states=[self.scan.states[k][:, columns]])
            return BeganWith(scan, self.history[k][..., columns]).times(GateRows(gradient), blocks)
        if operand.buffer.startswith("new"):
            values = self.history[int(operand.buffer.removeprefix("new"))][..., columns]
        else:
            values = self._values(operand)
        return block_product(gradient.flatten(0, 1), values.flatten(0, 1), blocks)
