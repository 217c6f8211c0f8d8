"""The products over all steps, before and after the recurrent loop: torch's, and deterministic.

16-bit storage is multiplied as it is and summed in float32. Gradients of float16 scans are scaled
by a power of two for it, whose range they would leave.

Shapes: T steps, B batch, I input size, H hidden size, P width of h, G gates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problem import Scan
from ..scratch import without_padding

FLOAT32 = torch.float32


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32, for 2-D tensors of one dtype."""
    if left.dtype == FLOAT32:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=FLOAT32)
    return left.float() @ right.float()


def gates_of(scan: Scan) -> Tensor:
    """gx [T, B, G*H] float32, in memory of its own: x W_ihᵀ and every bias but the GRU's b_hn."""
    bias = _bias(scan)
    if scan.kind == "gates":
        gates = scan.input.to(FLOAT32, copy=True, memory_format=torch.contiguous_format)
    else:
        gates = _projected(scan)
    return gates if bias is None else gates.add_(bias)


def _projected(scan: Scan) -> Tensor:
    w_ih = scan.weights[0]
    if scan.kind == "tokens":
        tokens = without_padding(scan).input
        return F.embedding(tokens, w_ih.t()).to(FLOAT32).contiguous()
    T, B, I = scan.input.shape
    return wide_product(scan.input.reshape(T * B, I), w_ih.t()).view(T, B, w_ih.shape[0])


def _bias(scan: Scan) -> Tensor | None:
    """[G*H] float32."""
    b_hh, b_ih = scan.weight("b_hh"), scan.weight("b_ih")
    if b_hh is None:
        return None
    bias = b_hh.to(FLOAT32, copy=True)
    if scan.cell == "gru":  # r multiplies the recurrent part of n, its bias included
        bias[-(bias.shape[0] // 3) :] = 0
    return bias if b_ih is None else bias.add_(b_ih)


def recurrent_bias(scan: Scan) -> Tensor | None:
    """b_hn [H] of the GRU, None elsewhere."""
    b_hh = scan.weight("b_hh")
    return b_hh.chunk(3)[2].contiguous() if scan.cell == "gru" and b_hh is not None else None


class GateGradients:
    """Gradients of weights and input, from those of the gates.

    Args:
        scan: in its storage dtype.
        y: [T, B, P].
        dgates: of gx, [T, B, G*H] float32.
        dextra: of the recurrent product's last gate [T, B, H] (GRU), or of h' [T, B, P] (with a
            projection), float32; else None.
        extra: what forward saved beside the gates [T, B, H], where the cell has it.
    """

    def __init__(
        self, scan: Scan, y: Tensor, dgates: Tensor, dextra: Tensor | None, extra: Tensor | None
    ) -> None:
        self.scan, self.y, self.extra = scan, y, extra
        self.storage = scan.weights[0].dtype
        self.H = dgates.shape[-1] // scan.spec.gates
        self.wide = dgates
        self.scale: Tensor | None = None
        if self.storage == torch.float16 and dgates.numel() > 0:
            self.scale = _scale(dgates if dextra is None else torch.cat([dgates, dextra], -1))
        self.dgates = self._narrow(dgates)
        self.dextra = None if dextra is None else self._narrow(dextra)

    def input(self) -> Tensor:
        scan = self.scan
        if scan.kind == "gates":
            return self.wide.to(self.storage)
        return self._product(self.dgates.flatten(0, 1), scan.weights[0]).view_as(scan.input)

    def weights(self) -> list[Tensor]:
        """In the order of ``scan.weights``."""
        made = {
            "w_ih": self._w_ih,
            "w_hh": self._w_hh,
            "b_ih": lambda: self._sum(self.dgates),
            "b_hh": lambda: self._sum(self._of_recurrent_product()),
            "w_hr": self._w_hr,
        }
        scan = self.scan
        return [made[name]() for name in scan.spec.weight_names(scan.kind, scan.has_bias)]

    def _narrow(self, gradient: Tensor) -> Tensor:
        return (gradient if self.scale is None else gradient * self.scale).to(self.storage)

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        """left @ right, where one side carries the scale."""
        product = wide_product(left, right)
        return (product if self.scale is None else product / self.scale).to(self.storage)

    def _sum(self, rows: Tensor) -> Tensor:
        total = rows.sum((0, 1), dtype=FLOAT32)
        return (total if self.scale is None else total / self.scale).to(self.storage)

    def _of_recurrent_product(self) -> Tensor:
        if self.scan.cell != "gru":
            return self.dgates
        assert self.dextra is not None
        return torch.cat([self.dgates[..., : 2 * self.H], self.dextra], -1)

    def _w_ih(self) -> Tensor:
        clean = without_padding(self.scan).input
        if self.scan.kind == "dense":
            return self._product(self.dgates.flatten(0, 1).t(), clean.flatten(0, 1))
        width = self.scan.weights[0].shape[1]
        table = torch.ops.aten.embedding_dense_backward(self.wide, clean, width, -1, False)
        return table.t().to(self.storage)

    def _w_hh(self) -> Tensor:
        before = self._h_before().flatten(0, 1)
        rows = self._of_recurrent_product().flatten(0, 1).t()
        if self.scan.cell != "gru_reset_before":
            return self._product(rows, before)
        assert self.extra is not None
        u = self.extra.to(self.storage).flatten(0, 1)
        rz, n = rows[: 2 * self.H], rows[2 * self.H :]
        return torch.cat([self._product(rz, before), self._product(n, u)])

    def _w_hr(self) -> Tensor:
        assert self.dextra is not None
        assert self.extra is not None
        m = self.extra.to(self.storage).flatten(0, 1)
        return self._product(self.dextra.flatten(0, 1).t(), m)

    def _h_before(self) -> Tensor:
        """[T, B, P]: the h that each step began with; 0 in the padding and after a reset, where an
        inf would make a NaN of the gradient's 0."""
        scan, y = self.scan, self.y
        first = scan.states[0].unsqueeze(0)
        steps = torch.arange(y.shape[0], device=y.device).view(-1, 1, 1)
        if not scan.options.reverse:
            before = torch.cat([first, y[:-1]])
        else:
            before = torch.cat([y[1:], first])
            if scan.lengths is not None:
                last = (scan.lengths - 1).view(1, -1, 1)
                before = torch.where(steps == last, first, before)
        if scan.lengths is not None:
            before = before.masked_fill(steps >= scan.lengths.view(1, -1, 1), 0)
        if scan.resets is not None:
            before = before.masked_fill(scan.resets.unsqueeze(-1), 0)
        return before


def _scale(gradient: Tensor) -> Tensor:
    """The power of two that brings the largest value to 0.5 … 1; nobody waits for the device."""
    largest = torch.linalg.vector_norm(gradient, float("inf"))
    _, exponent = torch.frexp(largest)
    return torch.ldexp(torch.ones_like(largest), -exponent.clamp(-80, 80))
