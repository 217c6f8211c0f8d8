"""The input's part of the gates of a scan of tangents: x W_ihᵀ + b_ih and its tangent, and what the
gradients of both are for what they are made of. Differentiable; where nobody looks, by our
products."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _ext
from .problem import Scan, cast
from .products import multiply
from .products.projection import projected_by, weight_of_input
from .rules import without_padding
from .surroundings import unwatched


class GatesAlong:
    """The gates of ``scan``, which has no padding, along ``dinput``, which may have some, and the
    tangents of its weights by their names, None where there is none."""

    def __init__(
        self, scan: Scan, dinput: Tensor | None, along: Mapping[str, Tensor | None]
    ) -> None:
        if dinput is not None and scan.kind != "tokens":
            dinput = cast(dinput, scan.dtype)
            if scan.kind == "dense":
                dinput = without_padding(scan._replace(input=dinput)).input
        self.scan, self.dinput = scan, None if scan.kind == "tokens" else dinput
        self.dw_ih, self.db_ih = along.get("w_ih"), along.get("b_ih")
        self._both_inputs: Tensor | None = None
        self.part = 0  # whose gradients are asked for: of the gates', or of the tangents' terms

    def both(self) -> Tensor:
        """The gates and behind them their tangents, [T, B, 2*G*H]."""
        scan, dinput = self.scan, self.dinput
        if scan.kind == "gates":
            found = torch.zeros_like(scan.input) if dinput is None else dinput
            return torch.cat([scan.input, found], -1)
        w_ih, b_ih = weight_of_input(scan), scan.weight("b_ih")
        if self.dw_ih is not None or self.db_ih is not None:
            gates = self._of_moved_weights(w_ih, b_ih)
            if dinput is None:
                return gates
            value, moved = gates.chunk(2, -1)
            return torch.cat([value, moved + _linear(dinput, w_ih)], -1)
        if dinput is None:
            gates = self._projected(w_ih, b_ih)
            return torch.cat([gates, torch.zeros_like(gates)], -1)
        given = [scan.input, dinput, w_ih, *([] if b_ih is None else [b_ih])]
        if unwatched(given) and multiply.is_ours(*given):
            return _both_products(scan.input, dinput, w_ih.t(), b_ih)
        if b_ih is not None:
            w_ih = torch.cat([w_ih, b_ih.unsqueeze(-1)], -1)
        found = F.linear(self._inputs(dinput), w_ih)
        width = found.shape[2] * found.shape[3]  # -1 would not do for no sequence
        return found.reshape(*found.shape[:2], width)  # under the older vmap there is no flatten

    def _of_moved_weights(self, w_ih: Tensor, b_ih: Tensor | None) -> Tensor:
        """The input times the weights, and behind it times their tangents."""
        dw_ih, db_ih = self.dw_ih, self.db_ih
        weight = torch.cat([w_ih, torch.zeros_like(w_ih) if dw_ih is None else dw_ih])
        if b_ih is not None:
            b_ih = torch.cat([b_ih, torch.zeros_like(b_ih) if db_ih is None else db_ih])
        return self._projected(weight, b_ih)

    def _projected(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.scan.kind == "tokens":
            return projected_by(self.scan, weight, bias)
        return _linear(self.scan.input, weight, bias)

    def _inputs(self, dinput: Tensor) -> Tensor:
        """The input and its tangent side by side, [T, B, 2, I]; for a bias with a column more, of 1
        and of 0."""
        if self._both_inputs is None:
            given = [self.scan.input, dinput]
            if self.scan.weight("b_ih") is None:
                self._both_inputs = torch.stack(given, 2)
            else:
                column = dinput.new_ones(()).expand(*dinput.shape[:2], 1)
                columns = torch.stack([column, torch.zeros_like(column)], 2)
                self._both_inputs = torch.cat([torch.stack(given, 2), columns], -1)
        return self._both_inputs

    def of_tangents(self) -> GatesAlong:
        """For the gradients of the tangents instead."""
        found = copy(self)
        found.part, found.dinput, found.dw_ih = 1, None, None
        return found

    def gradient_of_input(self, dgates: Tensor) -> Tensor:
        """``dgates``: that of ``both``."""
        of_value = dgates.chunk(2, -1)[self.part]
        if self.scan.kind == "gates":
            return of_value
        w_ih = weight_of_input(self.scan)
        if self.dw_ih is None:
            return _linear(of_value, w_ih.t())
        return _linear(dgates, torch.cat([w_ih, self.dw_ih]).t())

    def _sums(self, given: list[Tensor]) -> dict[str, Tensor]:
        """As ``gradients_of_weights``: of the gates' gradients and what they multiplied."""
        dgates, *inputs = given
        names = [name for name in ("w_ih", "b_ih") if self.scan.weight(name) is not None]
        weights = [w for w in map(self.scan.weight, names) if w is not None]
        plan = _plan(dgates.shape[-1] // 2, self.part, len(inputs), "b_ih" in names)
        return dict(
            zip(names, plan.run([dgates, *inputs], weights, None, None, False), strict=True)
        )

    def gradients_of_weights(self, dgates: Tensor) -> dict[str, Tensor]:
        """Of w_ih and b_ih, as far as the scan has them."""
        scan, dinput = self.scan, self.dinput
        if scan.kind == "gates":
            return {}
        given = [dgates, scan.input] if dinput is None else [dgates, scan.input, dinput]
        if scan.kind == "dense" and unwatched(given) and multiply.is_ours(*given):
            return self._sums(given)
        of_value = dgates.chunk(2, -1)[self.part]
        if scan.kind == "tokens":
            none = torch.zeros_like(weight_of_input(scan))
            rows = of_value.flatten(0, 1)
            found = {"w_ih": none.index_add(1, scan.input.flatten(), rows.t())}
        elif dinput is None:
            found = {"w_ih": _summed(of_value, scan.input)}
        else:
            whole = _summed(dgates.unflatten(-1, (2, -1)), self._inputs(dinput))
            if scan.weight("b_ih") is None:
                return {"w_ih": whole}
            return {"w_ih": whole[:, :-1].contiguous(), "b_ih": whole[:, -1].contiguous()}
        if scan.weight("b_ih") is not None:
            found["b_ih"] = of_value.sum((0, 1))
        return found


def _both_products(input: Tensor, dinput: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Side by side; of the tangent without the bias."""
    (T, B, I), width = input.shape, weight.shape[1]
    found = input.new_empty(T, B, 2 * width)
    value, moved = found.view(T * B, 2 * width).split(width, 1)
    multiply.product_into(value, input.reshape(T * B, I), weight, bias)
    multiply.product_into(moved, dinput.reshape(T * B, I), weight)
    return found


@functools.cache
def _plan(width: int, part: int, terms: int, bias: bool) -> Any:
    """The gradients of w_ih and b_ih as one pass of sums (steps/sums.py), of gates' gradients of
    twice ``width`` units: of ``terms`` inputs, from ``part`` on."""
    module: Any = _ext.cpu()
    return module.cpu_sum_plan(
        operands=[[(1 + term, -1, 0, 0) for term in range(terms)]],
        gradients=[[(0, (part + term) * width, width) for term in range(terms)]],
        products=[(0, 0, 0, 0, 0, 0, 1)],
        sums=[(0, 1, 0)] if bias else [],
        sequences=[],
    )


def _linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As torch.nn.functional.linear."""
    given = [values, weight] if bias is None else [values, weight, bias]
    if not unwatched(given):
        return F.linear(values, weight, bias)
    made = multiply.product(values.flatten(0, -2), weight.t(), bias)
    return made.unflatten(0, values.shape[:-1])


def _summed(rows: Tensor, values: Tensor) -> Tensor:
    """Σ of rows […, M] times values […, N] over all but the last axis: [M, N]."""
    rows, values = rows.flatten(0, -2), values.flatten(0, -2)
    multiplied = multiply.product if unwatched([rows, values]) else torch.matmul
    found: Tensor = multiplied(rows.t(), values)
    return found
