"""Gradients of the gates at each step, as the kernels of a backend leave them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cells import CellSpec


class GateRows(NamedTuple):
    """Gradients of some gates at each step: ``values`` [T, B, N], where N counts gate by gate and
    in each of them unit by unit; or unit by unit ``width`` slots, of which ``slots`` are gates."""

    values: Tensor
    slots: tuple[int, ...] | None = None
    width: int = 0

    def restored(self, matrix: Tensor, axis: int = 0) -> Tensor:
        """[N, …] → [gates*H, …], gate by gate; or of another axis."""
        if self.slots is None:
            return matrix
        if axis != 0:
            return self.restored(matrix.movedim(axis, 0)).movedim(0, axis).contiguous()
        by_slot = matrix.unflatten(0, (-1, self.width)).transpose(0, 1)
        return torch.cat([by_slot[slot] for slot in self.slots])

    def steps(self) -> Tensor:
        """The values [T, B, gates*H], gate by gate."""
        if self.slots is None:
            return self.values
        by_slot = self.values.unflatten(-1, (-1, self.width))
        return torch.cat([by_slot[..., slot] for slot in self.slots], -1)


class GateGradients(Protocol):
    def of_input(self) -> GateRows:
        """Those of gx, all gates."""
        ...

    def of_product(self, gates: Sequence[int]) -> list[GateRows]:
        """Those of the recurrent products of ``gates``, which are the pieces' in order."""
        ...

    def arranged(self, weight: Tensor) -> Tensor:
        """[G*H, N] with its rows in the order of ``of_input``."""
        ...


class GateMajor(NamedTuple):
    """``dgx`` [T, B, G*H]. ``own`` [T, B, H]: of the recurrent product that enters by itself."""

    spec: CellSpec
    dgx: Tensor
    own: Tensor | None = None

    def of_input(self) -> GateRows:
        return GateRows(self.dgx)

    def of_product(self, gates: Sequence[int]) -> list[GateRows]:
        H = self.dgx.shape[-1] // self.spec.gates
        pieces = []
        for apart, run in groupby(gates, lambda gate: gate == self.spec.own_product_gate):
            first, *rest = run
            if apart:
                assert self.own is not None
                pieces.append(GateRows(self.own))
            else:
                pieces.append(GateRows(self.dgx[..., first * H : (first + 1 + len(rest)) * H]))
        return pieces

    def arranged(self, weight: Tensor) -> Tensor:
        return weight


def slots_of(spec: CellSpec) -> int:
    """S: a unit's slots in the CUDA kernels; csrc/cuda/device/layout.h says what each holds."""
    values = len(spec.saved) - spec.projected  # what W_hr multiplies is kept apart
    return 1 << (values - 1).bit_length()  # a power of two


class UnitMajor(NamedTuple):
    """``dgates`` [T, B, H, S]: slot g is gate g's; of the recurrent product that enters by itself
    it is the slot behind the gates."""

    spec: CellSpec
    dgates: Tensor

    def of_input(self) -> GateRows:
        return self._rows(tuple(range(self.spec.gates)), whole=True)

    def of_product(self, gates: Sequence[int]) -> list[GateRows]:
        own, behind = self.spec.own_product_gate, self.spec.gates
        return [self._rows(tuple(behind if gate == own else gate for gate in gates))]

    def arranged(self, weight: Tensor) -> Tensor:
        return unit_major(self.spec, weight)

    def _rows(self, slots: tuple[int, ...], whole: bool = False) -> GateRows:
        first, last = (0, self.dgates.shape[-1] - 1) if whole else (min(slots), max(slots))
        width = last + 1 - first
        values = self.dgates[..., first : last + 1].flatten(2)
        return GateRows(values, tuple(slot - first for slot in slots), width)


def unit_major(spec: CellSpec, weight: Tensor) -> Tensor:
    """[G*H, …] → [H*S, …], slots without a gate 0."""
    by_unit = weight.unflatten(0, (spec.gates, -1)).transpose(0, 1)
    behind = [0] * (2 * (by_unit.dim() - 2))
    return F.pad(by_unit, (*behind, 0, slots_of(spec) - spec.gates)).flatten(0, 1)
