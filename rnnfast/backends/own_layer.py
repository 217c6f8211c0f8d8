"""A layer of a cell of one's own on the CPU in one call into C++ a pass (csrc/python/steps.cpp)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..problem import Needs, Scan
from ..steps import passes
from ..steps.run import Kernel
from . import own_saved
from .base import WholeLayer


class OwnLayer(WholeLayer):
    """Of a compiled cell whose gradients, if ``training``, one pass of sums makes."""

    def __init__(self, kernel: Kernel, training: bool, reverse: bool) -> None:
        self._reverse = reverse
        layout, states = kernel.layout, range(len(kernel.spec.states))
        self._split, self._order = kernel.split, kernel.order("dense")
        own = passes.forward(layout, training, False)
        self._run = kernel.made(own).layer
        made = ["gx", *own.returned] if training else own.returned
        self._y, self._final = made.index("new0"), [made.index(f"last{k}") for k in states]
        self._saved: list[int] = []
        if training:
            self._rows = own_saved.whole(layout)
            apart = [f"new{k}" for k in own_saved.apart(layout, False)]
            self._saved = [made.index(name) for name in (*self._rows, *apart)]
            backward = passes.backward(layout, self._rows)
            self._back = kernel.differentiating(backward).layer_gradients

    def forward(
        self, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], training: bool
    ) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor | None]]:
        rows, units, _ = self._split(x.shape[1])
        w_ih, b_ih = self._order.of_input
        assert w_ih is not None
        made = self._run(
            x,
            states,
            [weights[k] for k in self._order.of_loop],
            weights[w_ih],
            None if b_ih is None else weights[b_ih],
            rows,
            units,
            training,
            self._reverse,
        )
        return made[self._y], [made[k] for k in self._final], [made[k] for k in self._saved]

    def gradients(
        self,
        needs: Needs,
        x: Tensor,
        states: Sequence[Tensor],
        weights: Sequence[Tensor],
        y: Tensor,
        saved: Sequence[Tensor | None],
        dy: Tensor | None,
        dlast: Sequence[Tensor | None],
    ) -> tuple[Tensor | None, Sequence[Tensor], Sequence[Tensor]]:
        count = len(self._rows)
        given = [y, *saved[count:], *saved[:count]]
        for k, d in enumerate(dlast):
            given += [states[k] if states else None, d, dy if k == 0 else None]
        rows, units, _ = self._split(x.shape[1])
        found: tuple[Tensor | None, list[Tensor], list[Tensor]] = self._back(
            given, x, weights, needs.input, needs.weights, rows, units, self._reverse
        )
        return found

    def to_save(self, scan: Scan, saved: Sequence[Tensor | None]) -> list[Tensor]:
        return [tensor for tensor in saved if tensor is not None]
