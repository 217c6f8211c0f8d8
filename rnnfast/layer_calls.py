"""A layer of one direction by one call into C++ a pass: what ``repeat`` keeps of such a layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .autodiff import wanted_inputs
from .backends.base import Backend, WholeLayer
from .direct import Job, differentiable, is_differentiated, together
from .ops import filled, saved_tensors, take
from .problem import Cotangents, Needs, Problem, Saved, Scan
from .second import Pulls
from .selection import Assigned


class LayerCall:
    """A layer like the one that it is made of, with its input, states and weights given."""

    def __init__(self, layer: Any, problem: Problem, backend: Backend, whole: WholeLayer) -> None:
        self.problem, self.backend, self.whole = problem, backend.name, whole
        self._batch_first = layer.batch_first

    @classmethod
    def of(cls, layer: Any, served: Sequence[Assigned]) -> LayerCall | None:
        """None where another way computes the call."""
        problem, backend = served[0]
        whole = backend.whole_layer(problem) if len(served) == 1 else None
        return None if whole is None else cls(layer, problem, backend, whole)

    def __call__(
        self, input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """(output, final states), those as the layer returns them."""
        x = input.transpose(0, 1) if self._batch_first else input
        final: Sequence[Tensor]
        if self.problem.options.training:
            y, *final = _Trained.apply(self, len(states), x, *states, *weights)
        else:
            y, final, _ = self.whole.forward(x, states, weights, False)
        return y.transpose(0, 1) if self._batch_first else y, final


class _Trained(torch.autograd.Function):
    """(call, how many states are given, x, *states, *weights) -> (y, *last states)."""

    @staticmethod
    def forward(ctx: Any, call: LayerCall, count: int, x: Tensor, *others: Tensor) -> Any:
        states, weights = others[:count], others[count:]
        y, final, saved = call.whole.forward(x, states, weights, True)
        ctx.call, ctx.count, ctx.pulls = call, count, Pulls()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *others, y, *saved)
        return y, *final

    @staticmethod
    def backward(ctx: Any, dy: Any, *dlast: Any) -> tuple[Any, ...]:
        call, count, flags = ctx.call, ctx.count, wanted_inputs(ctx, 2)
        kept = saved_tensors(ctx)
        (x,), states = take(kept, 1), take(kept, count)
        weights, (y,) = take(kept, len(flags) - 1 - count), take(kept, 1)
        of_states, of_weights = flags[1 : 1 + count], flags[1 + count :]
        needs = Needs(bool(flags[0]), any(of_states), any(of_weights))
        gradients: Callable[..., Any] = call.whole.gradients
        if left := ctx.pulls.take():
            gradients = functools.partial(_recorded, call, functools.partial(together, left))
        elif is_differentiated((dy, *dlast)):
            gradients = functools.partial(_recorded, call, differentiable)
        dx, dstates, dweights = gradients(needs, x, states, weights, y, kept, dy, dlast)
        return (
            None,
            None,
            dx if needs.input else None,
            *(dstates[k][None] if flag else None for k, flag in enumerate(of_states)),
            *(dweights if needs.weights else [None] * len(weights)),
        )


def _recorded(
    call: LayerCall,
    way: Callable[[Job, str], Any],
    needs: Needs,
    x: Tensor,
    given: Sequence[Tensor],
    weights: list[Tensor],
    y: Tensor,
    saved: Sequence[Any],
    dy: Any,
    dlast: Sequence[Any],
) -> Any:
    """As ``WholeLayer.gradients``, by another ``way``: of the scan the call was."""
    problem = call.problem
    widths = problem.spec.state_widths(problem.P, problem.H)
    states = [s.squeeze(0) for s in given] or [x.new_zeros(problem.B, w) for w in widths]
    scan = Scan(problem.cell, "dense", x, states, weights, None, None, problem.options)
    dfinal = filled([None if d is None else d.squeeze(0) for d in dlast], states)
    kept = Saved(y, [], call.whole.to_save(scan, saved))
    return way(Job(scan, kept, Cotangents(dy, dfinal, []), needs), call.backend)
