"""A layer of one direction by one call into C++ a pass: what ``repeat`` keeps of such a layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from .autodiff import wanted_inputs
from .backends.base import Backend, WholeLayer
from .cells import CELLS
from .direct import Job, differentiable, is_differentiated
from .ops import filled, saved_tensors
from .problem import Cotangents, Needs, Problem, Saved, Scan
from .selection import Assigned

WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")


class LayerCall:
    """A layer like the one that it is made of, with its input, states and weights given."""

    def __init__(self, layer: Any, problem: Problem, backend: Backend, whole: WholeLayer) -> None:
        self.problem, self.backend, self.whole = problem, backend.name, whole
        self.names = CELLS[problem.cell].weight_names("dense", layer.bias)
        self.places = tuple(
            self.names.index(name) if name in self.names else None for name in WEIGHTS
        )
        self._batch_first = layer.batch_first

    @classmethod
    def of(cls, layer: Any, served: Sequence[Assigned]) -> LayerCall | None:
        """None where another way computes the call."""
        problem, backend = served[0]
        whole = backend.whole_layer(problem) if len(served) == 1 else None
        return None if whole is None else cls(layer, problem, backend, whole)

    def __call__(self, input: Tensor, states: Sequence[Tensor], weights: list[Tensor]) -> Any:
        """(output, final states), those as the layer returns them."""
        x = input.transpose(0, 1) if self._batch_first else input
        h0, c0 = (*states, None, None)[:2]
        if self.problem.options.training:
            y, h, c = _Trained.apply(self, x, h0, c0, *weights)
        else:
            y, h, c, *_ = self.forward(x, h0, c0, weights)
        y = y.transpose(0, 1) if self._batch_first else y
        return y, (h,) if c is None else (h, c)

    def forward(self, x: Tensor, h0: Any, c0: Any, weights: Sequence[Tensor]) -> Any:
        """As ``WholeLayer.forward``."""
        training = self.problem.options.training
        return self.whole.forward(self.problem.cell, x, h0, c0, *self.named(weights), training)

    def named(self, weights: Sequence[Tensor]) -> list[Tensor | None]:
        """By ``WEIGHTS``, None for one that the layer lacks."""
        return [None if place is None else weights[place] for place in self.places]


class _Trained(torch.autograd.Function):
    """(call, x, h0, c0, *weights) -> (y, last h, last c)."""

    @staticmethod
    def forward(ctx: Any, call: LayerCall, x: Tensor, h0: Any, c0: Any, *weights: Tensor) -> Any:
        y, h, c, *saved = call.forward(x, h0, c0, weights)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h0, c0, y, *saved, *weights)
        return y, h, c

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        call = ctx.call
        x, h0, c0, y, *rest = saved_tensors(ctx)
        flags = wanted_inputs(ctx, 1, [k for k, state in ((1, h0), (2, c0)) if state is None])
        saved, weights = rest[:3], rest[3:]
        needs = Needs(flags[0], flags[1] or flags[2], any(flags[3:]))
        of = _recorded if is_differentiated(grads) else _by_kernel
        dx, dstates, dweights = of(call, needs, (x, h0, c0), weights, y, saved, grads)
        return (
            None,
            dx if needs.input else None,
            *(d[None] if flag else None for d, flag in zip_longest(dstates or (), flags[1:3])),
            *((dweights if needs.weights else None) or [None] * len(weights)),
        )


def _by_kernel(
    call: LayerCall,
    needs: Needs,
    given: Sequence[Any],
    weights: list[Tensor],
    y: Tensor,
    saved: Sequence[Any],
    grads: Sequence[Any],
) -> Any:
    """(dx, dstates without the 1 and None for one that the cell lacks, dweights)."""
    names = call.names if needs.weights else ()
    w_ih, w_hh, _, _, w_hr = call.named(weights)
    x, h0, c0 = given
    dx, dh0, dc0, dweights = call.whole.gradients(
        call.problem.cell, names, needs.input, x, w_ih, w_hh, w_hr, h0, c0, y, *saved, *grads
    )
    return dx, (dh0, dc0), dweights


def _recorded(
    call: LayerCall,
    needs: Needs,
    given: Sequence[Any],
    weights: list[Tensor],
    y: Tensor,
    saved: Sequence[Any],
    grads: Sequence[Any],
) -> Any:
    """The same, to be differentiated or mapped: of the scan that the call was."""
    problem, (x, *first) = call.problem, given
    spec, B = problem.spec, problem.B
    states = [
        x.new_zeros(B, width) if state is None else state.squeeze(0)
        for state, width in zip(first, spec.state_widths(problem.P, problem.H), strict=False)
    ]
    scan = Scan(problem.cell, "dense", x, states, weights, None, None, problem.options)
    kept = call.whole.to_save(scan, dict(zip(("c", spec.extra, "gates"), saved, strict=True)))
    dy, *dlast = grads
    dfinal = [None if d is None else d.squeeze(0) for d in dlast[: len(states)]]
    cotangents = Cotangents(dy, filled(dfinal, states), [])
    return differentiable(Job(scan, Saved(y, [], kept), cotangents, needs), call.backend)
