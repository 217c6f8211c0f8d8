"""Gates as the CUDA kernels keep them: unit-major, the slots of a unit side by side.

The counterpart of csrc/cuda/device/layout.h, which has the table of what a slot holds. Weights and
biases are permuted so that one large product gives the gates of all steps in that order, and the
gradients of weights and input are read off the gradients of the slots.

Shapes: T steps, B batch, I input size, H hidden size, P width of h, G gates, S slots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cells import CellSpec
from ..problem import Scan
from ..scratch import without_padding

# of D's slots, in the order of the gates, those whose product with h is the gradient of w_hh
_RECURRENT_SLOTS = {"gru": (0, 1, 3)}


def slots_of(spec: CellSpec) -> int:
    return 1 if spec.gates == 1 else 4


def gates_of(scan: Scan) -> Tensor:
    """[T, B, H, S], memory of its own: the input's part of every slot, biases included."""
    if scan.kind == "gates":
        return _permuted(scan)
    weight, bias = SlotWeights.of(scan)
    if scan.kind == "dense":
        rows = F.linear(scan.input, weight, bias)
    else:
        rows = F.embedding(scan.input, weight.t())
        rows = rows if bias is None else rows + bias
    return rows.unflatten(-1, (-1, slots_of(scan.spec)))


class SlotWeights(NamedTuple):
    """What multiplies the input: ``weight`` [H*S, I], ``bias`` [H*S] or None."""

    weight: Tensor
    bias: Tensor | None

    @staticmethod
    def of(scan: Scan) -> SlotWeights:
        return SlotWeights(_unit_major(scan, _w_ih(scan)), _bias(scan))

    def multiply(self, rows: Tensor, gates: Tensor) -> None:
        """Writes the input's part of the ``gates`` [N, H*S] of ``rows`` [N, I]."""
        if self.bias is None:
            torch.mm(rows, self.weight.t(), out=gates)
        else:
            torch.addmm(self.bias, rows, self.weight.t(), out=gates)

    def multiply_back(self, dgates: Tensor, rows: Tensor) -> None:
        """Writes the gradient of ``rows`` [N, I], from that of the gates [N, H*S]."""
        torch.mm(dgates, self.weight, out=rows)


def _permuted(scan: Scan) -> Tensor:
    """The gates that were given, [T, B, G*H], in slots."""
    spec, bias = scan.spec, _bias(scan)
    gates = scan.input.unflatten(-1, (spec.gates, -1)).transpose(2, 3)
    padded = F.pad(gates, (0, slots_of(spec) - spec.gates))
    if bias is not None:
        return (padded + bias.view(padded.shape[2:])).contiguous()
    return padded.clone(memory_format=torch.contiguous_format)


def _w_ih(scan: Scan) -> Tensor:
    weight = scan.weight("w_ih")
    assert weight is not None
    return weight


def _unit_major(scan: Scan, weight: Tensor) -> Tensor:
    """[G*H, N] → [H*S, N], the slots without a gate 0."""
    spec = scan.spec
    by_unit = weight.unflatten(0, (spec.gates, -1)).transpose(0, 1)
    return F.pad(by_unit, (0, 0, 0, slots_of(spec) - spec.gates)).flatten(0, 1)


def _bias(scan: Scan) -> Tensor | None:
    """[H*S]: what the biases add to each slot."""
    b_hh = scan.weight("b_hh")
    if b_hh is None:
        return None
    b_ih = scan.weight("b_ih")
    by_gate = b_hh.unflatten(0, (scan.spec.gates, -1))
    inputs = torch.zeros_like(by_gate) if b_ih is None else b_ih.view_as(by_gate)
    if scan.cell == "gru":  # r multiplies the recurrent part of n, its bias included
        slots = [*(inputs[:2] + by_gate[:2]), inputs[2], by_gate[2]]
    else:
        slots = list(inputs + by_gate)
        slots += [torch.zeros_like(slots[0])] * (slots_of(scan.spec) - len(slots))
    return torch.stack(slots, -1).flatten()


class SlotGradients:
    """Reads the gradients of weights and input off those of the slots.

    ``dgates`` [T, B, H, S]; ``y`` [T, B, P]; ``saved`` [T, B, H, S] as forward left it, where the
    cell has it; of projected cells ``every_dh`` [T, B, P] and ``every_m`` [T, B, H]. What was
    multiplied by ``scale`` [1], a power of two, is divided by it here.
    """

    def __init__(
        self,
        scan: Scan,
        dgates: Tensor,
        y: Tensor,
        saved: Tensor | None,
        every_dh: Tensor | None,
        every_m: Tensor | None,
        scale: Tensor | None,
    ) -> None:
        self.scan, self.dgates, self.y, self.saved = scan, dgates, y, saved
        self.every_dh, self.every_m = every_dh, every_m
        self.inverse = None if scale is None else scale.reciprocal()
        self.G, self.S = scan.spec.gates, dgates.shape[-1]

    def input(self) -> Tensor:
        scan = self.scan
        if scan.kind == "gates":
            gates = self.dgates[..., : self.G].transpose(2, 3).flatten(2)
            return gates if self.inverse is None else (gates * self.inverse).to(gates.dtype)
        weight = _unit_major(scan, _w_ih(scan))
        return self._product(self.dgates.flatten(0, 1).flatten(1), weight).view_as(scan.input)

    def weights(self) -> list[Tensor]:
        """In the order of ``scan.weights``."""
        made = {
            "w_ih": self._w_ih,
            "w_hh": self._w_hh,
            "b_ih": lambda: self._bias(tuple(range(self.G))),
            "b_hh": lambda: self._bias(self._recurrent_slots()),
            "w_hr": self._w_hr,
        }
        scan = self.scan
        return [made[name]() for name in scan.spec.weight_names(scan.kind, scan.has_bias)]

    def _recurrent_slots(self) -> tuple[int, ...]:
        return _RECURRENT_SLOTS.get(self.scan.cell, tuple(range(self.G)))

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        """left @ right, divided by the scale before it is rounded to the storage dtype."""
        if self.inverse is None:
            return left @ right
        if left.is_cuda:
            wide = torch.mm(left, right, out_dtype=torch.float32)
        else:
            wide = left.float() @ right.float()
        return (wide * self.inverse).to(left.dtype)

    def _gate_major(self, by_unit: Tensor, slots: tuple[int, ...]) -> Tensor:
        """[H*S, …] → [len(slots)*H, …]."""
        by_slot = by_unit.unflatten(0, (-1, self.S)).transpose(0, 1)
        return torch.cat([by_slot[slot] for slot in slots])

    def _rows(self, slots: slice = slice(None)) -> Tensor:
        """[H*S, T*B]."""
        return self.dgates[..., slots].flatten(2).flatten(0, 1).t()

    def _w_ih(self) -> Tensor:
        clean = without_padding(self.scan).input
        gates = tuple(range(self.G))
        if self.scan.kind == "dense":
            return self._gate_major(self._product(self._rows(), clean.flatten(0, 1)), gates)
        rows = self.dgates.flatten(2)
        if self.inverse is not None:
            rows = rows * self.inverse
        width = self.scan.weights[0].shape[1]
        table = torch.ops.aten.embedding_dense_backward(rows, clean, width, -1, False)
        return self._gate_major(table.t(), gates).to(self.dgates.dtype)

    def _w_hh(self) -> Tensor:
        before = self._h_before().flatten(0, 1)
        if self.scan.cell != "gru_reset_before":
            return self._gate_major(self._product(self._rows(), before), self._recurrent_slots())
        assert self.saved is not None
        u = self.saved[..., 3].flatten(0, 1)
        rz = self._product(self._rows(slice(0, 2)), before).unflatten(0, (-1, 2))
        n = self._product(self._rows(slice(2, 3)), u)
        return torch.cat([rz[:, 0], rz[:, 1], n])

    def _w_hr(self) -> Tensor:
        assert self.every_dh is not None
        assert self.every_m is not None
        return self._product(self.every_dh.flatten(0, 1).t(), self.every_m.flatten(0, 1))

    def _bias(self, slots: tuple[int, ...]) -> Tensor:
        if self.inverse is None:
            sums = self.dgates.sum((0, 1))
        else:
            sums = self.dgates.sum((0, 1), dtype=torch.float32) * self.inverse
        return self._gate_major(sums.flatten(), slots).to(self.dgates.dtype)

    def _h_before(self) -> Tensor:
        """[T, B, P]: the h that each step began with; 0 in the padding, where an inf would make a
        NaN of the gradient's 0."""
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
            before = before.masked_fill_(steps >= scan.lengths.view(1, -1, 1), 0)
        if scan.resets is not None:
            before = before.masked_fill_(scan.resets.unsqueeze(-1), 0)
        return before
