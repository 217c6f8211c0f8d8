"""The input's part of the gates as the CUDA kernels keep them: unit by unit, the slots of a unit
side by side. Weights and biases are permuted, so that one large product gives that order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cells import CellSpec
from ..problem import Scan
from . import multiply
from .gates import slots_of, unit_major
from .projection import input_bias, own_product_bias, weight_of_input


def slots_of_input(scan: Scan) -> Tensor:
    """[T, B, H, S], memory of its own: the input's part of every slot, biases included."""
    spec, bias = scan.spec, slot_bias(scan)
    if scan.kind == "gates":
        gates = scan.input.unflatten(-1, (spec.gates, -1)).transpose(2, 3)
        gates = F.pad(gates, (0, slots_of(spec) - spec.gates))
        if bias is None:
            return gates.clone(memory_format=torch.contiguous_format)
        return (gates + bias.view(gates.shape[2:])).contiguous()
    weight = unit_major(spec, weight_of_input(scan))
    if scan.kind == "dense":
        rows = F.linear(scan.input, weight, bias)
    else:
        rows = F.embedding(scan.input, weight.t())
        rows = rows if bias is None else rows + bias
    return rows.unflatten(-1, (-1, slots_of(spec)))


def slot_bias(scan: Scan) -> Tensor | None:
    """[H*S]: what the biases add to each slot; the recurrent one that enters by itself has the slot
    behind the gates."""
    total, own = input_bias(scan), own_product_bias(scan)
    if total is None:
        return None
    slots = list(total.to(scan.weights[0].dtype))
    if own is not None:
        slots.append(own)
    slots += [torch.zeros_like(slots[0])] * (slots_of(scan.spec) - len(slots))
    return torch.stack(slots, -1).flatten()


def saved_operands(
    spec: CellSpec, kept: Mapping[str | None, Tensor]
) -> dict[str | None, Tensor | None]:
    """What products multiply beside h, of what was saved: apart, or in the slot behind gates."""
    if spec.extra is None or spec.extra in kept:
        return {spec.extra: kept.get(spec.extra)}
    return {spec.extra: kept["gates"][..., spec.gates]}


class SlotProjection(NamedTuple):
    """What multiplies a part's rows of the input: ``weight`` [H*S, I], ``bias`` [H*S] or None."""

    weight: Tensor
    bias: Tensor | None

    @staticmethod
    def of(scan: Scan) -> SlotProjection:
        return SlotProjection(unit_major(scan.spec, weight_of_input(scan)), slot_bias(scan))

    def multiply(self, rows: Tensor, gates: Tensor) -> None:
        """Writes the input's part of the ``gates`` [N, H*S] of ``rows`` [N, I]."""
        if self.bias is None:
            torch.mm(rows, self.weight.t(), out=gates)
        else:
            torch.addmm(self.bias, rows, self.weight.t(), out=gates)

    def multiply_back(self, dgates: Tensor, rows: Tensor) -> None:
        """Writes the gradient of ``rows`` [N, I], from that of the gates [N, H*S]."""
        multiply.product_to(rows, dgates, self.weight)
