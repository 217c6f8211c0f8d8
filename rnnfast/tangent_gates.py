"""The input's part of the gates of a scan of tangents: x W_ihᵀ + b_ih and its tangent, and what the
gradients of both are for what they are made of. Differentiable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .problem import Scan, cast
from .products.projection import projected_by, weight_of_input
from .rules import without_padding


class GatesAlong(NamedTuple):
    """The gates of ``scan``, which has no padding, along ``dinput``, and ``dw_ih`` and ``db_ih`` of
    its weights; None where there is none."""

    scan: Scan
    dinput: Tensor | None
    dw_ih: Tensor | None
    db_ih: Tensor | None

    @staticmethod
    def of(scan: Scan, dinput: Tensor | None, along: Mapping[str, Tensor | None]) -> GatesAlong:
        """``dinput`` as it is given for a scan of any dtype, with padding."""
        if dinput is not None and scan.kind == "tokens":
            dinput = None
        if dinput is not None:
            dinput = cast(dinput, scan.dtype)
            if scan.kind == "dense":
                dinput = without_padding(scan._replace(input=dinput)).input
        return GatesAlong(scan, dinput, along.get("w_ih"), along.get("b_ih"))

    def both(self) -> Tensor:
        """The gates and behind them their tangents, [T, B, 2*G*H]."""
        scan, dinput, dw_ih, db_ih = self
        if scan.kind == "gates":
            found = torch.zeros_like(scan.input) if dinput is None else dinput
            return torch.cat([scan.input, found], -1)
        w_ih, b_ih = weight_of_input(scan), scan.weight("b_ih")
        if dinput is None and dw_ih is None and db_ih is None:
            gates = projected_by(scan, w_ih, b_ih)
            return torch.cat([gates, torch.zeros_like(gates)], -1)
        if dinput is None:
            return projected_by(scan, *_twice(w_ih, b_ih, dw_ih, db_ih))
        if dw_ih is None and db_ih is None:
            return self._moved_input(dinput, w_ih, b_ih)
        gates, moved = projected_by(scan, *_twice(w_ih, b_ih, dw_ih, db_ih)).chunk(2, -1)
        return torch.cat([gates, moved + F.linear(dinput, w_ih)], -1)

    def _moved_input(self, dinput: Tensor, w_ih: Tensor, b_ih: Tensor | None) -> Tensor:
        """Of weights without tangents: one product of input and tangent side by side, the bias of
        the first alone as a column more."""
        values = torch.stack([self.scan.input, dinput], 2)
        if b_ih is not None:
            w_ih = torch.cat([w_ih, b_ih.unsqueeze(-1)], -1)
            counts = dinput.new_ones(2)
            counts[1] = 0
            values = torch.cat([values, counts.view(1, 1, 2, 1).expand(*values.shape[:3], 1)], -1)
        both = F.linear(values, w_ih)  # under the older vmap there is no flatten
        return both.reshape(*both.shape[:2], -1)

    def gradient_of_input(self, dgates: Tensor) -> Tensor:
        """``dgates``: that of ``both``."""
        of_value, _ = dgates.chunk(2, -1)
        if self.scan.kind == "gates":
            return of_value
        w_ih = weight_of_input(self.scan)
        if self.dw_ih is None:
            return of_value @ w_ih
        return dgates @ torch.cat([w_ih, self.dw_ih])

    def gradients_of_weights(self, dgates: Tensor) -> dict[str, Tensor]:
        """Of w_ih and b_ih, which the scan has."""
        scan, dinput, _, _ = self
        if scan.kind == "gates":
            return {}
        rows, moved = (half.flatten(0, 1) for half in dgates.chunk(2, -1))
        w_ih = weight_of_input(scan)
        found = {}
        if scan.kind == "tokens":
            found["w_ih"] = torch.zeros_like(w_ih).index_add(1, scan.input.flatten(), rows.t())
        else:
            found["w_ih"] = rows.t() @ scan.input.flatten(0, 1)
            if dinput is not None:
                found["w_ih"] = found["w_ih"] + moved.t() @ dinput.flatten(0, 1)
        if scan.weight("b_ih") is not None:
            found["b_ih"] = rows.sum(0)
        return found


def _twice(
    w_ih: Tensor, b_ih: Tensor | None, dw_ih: Tensor | None, db_ih: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The weights of the input, and behind them their tangents."""
    weight = torch.cat([w_ih, torch.zeros_like(w_ih) if dw_ih is None else dw_ih])
    if b_ih is None:
        return weight, None
    return weight, torch.cat([b_ih, torch.zeros_like(b_ih) if db_ih is None else db_ih])
