"""Layers on top of one another, of one direction or both, by one call into C++ a pass and row: what
``repeat`` keeps of them. A row is one direction of one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import transforms
from .autodiff import differentiate, wanted_inputs
from .backends.base import WholeLayer
from .direct import Job, differentiable, is_differentiated
from .ops import alias, filled, saved_tensors, take
from .problem import Cotangents, Needs, Saved, Scan, Stack
from .schema import pack
from .selection import Assigned
from .stack import run_again
from .surroundings import surroundings

Rows = Sequence[Sequence[Tensor]]  # the weights of each row


class StackCall:
    """Layers like those that it is made of, with their input, states and weights given."""

    def __init__(self, layer: Any, served: list[Assigned], wholes: list[WholeLayer]) -> None:
        self.served, self.wholes = served, wholes
        self.layers, self.directions = layer.num_layers, 2 if layer.bidirectional else 1
        self._shape = (layer.hidden_size, layer.num_layers, layer.bidirectional, layer.bias)
        self._batch_first = layer.batch_first

    @classmethod
    def of(cls, layer: Any, served: list[Assigned]) -> StackCall | None:
        """None where another way computes the call."""
        if layer.training and layer.dropout != 0 and layer.num_layers > 1:
            return None  # whose masks autograd has to know of
        wholes = [backend.whole_layer(problem) for problem, backend in served]
        known = [whole for whole in wholes if whole is not None]
        return cls(layer, served, known) if len(known) == len(served) else None

    def __call__(
        self, input: Tensor, states: Sequence[Tensor], weights: Rows
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """(output, final states), those as the layer returns them."""
        x = input.transpose(0, 1) if self._batch_first else input
        final: Sequence[Tensor]
        if self.served[0].problem.options.training:
            flat = [w for row in weights for w in row]
            y, *final = _Trained.apply(self, len(states), x, *states, *flat)
        else:
            y, final, _ = self.forward(x, states, weights, False)
        return y.transpose(0, 1) if self._batch_first else y, final

    def rows(self, level: int) -> range:
        return range(level * self.directions, (level + 1) * self.directions)

    def forward(
        self, x: Tensor, states: Sequence[Tensor], weights: Rows, training: bool
    ) -> tuple[Tensor, list[Tensor], Kept]:
        """(output, final states, what backward needs)."""
        given, finals, kept = self._of_rows(states), [], Kept([], [])
        for level in range(self.layers):
            outputs = []
            kept.inputs.append(x)
            for row in self.rows(level):
                own = [state[row] for state in given]
                y, final, saved = self.wholes[row].forward(x, own, weights[row], training)
                outputs.append(y)
                finals.append(final)
                kept.of_rows.append([y, *saved])
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return x, [torch.cat(of_rows) for of_rows in zip(*finals, strict=True)], kept

    def gradients(
        self,
        wanted: WantedRows,
        states: Sequence[Tensor],
        weights: Rows,
        kept: Kept,
        dy: Tensor | None,
        dlast: Sequence[Tensor | None],
    ) -> tuple[Tensor | None, list[Tensor], list[Any]]:
        """Those of x, of the first states and of all weights, one after the other; what is not
        wanted has no meaning. Of the last states and y None is zeros."""
        given, last = self._of_rows(states), self._of_rows(dlast)
        dstates: list[Any] = [None] * len(self.wholes)
        dweights: list[Any] = [[None] * len(row) for row in weights]
        for level in reversed(range(self.layers)):
            rows, dx = self.rows(level), None
            if not wanted.before(rows.stop):
                break
            parts = [dy] * len(rows)
            if dy is not None and len(rows) > 1:
                parts = list(_filled(dy).chunk(len(rows), -1))
            for row, part in zip(rows, parts, strict=True):
                needs = Needs(wanted.before(rows.start), wanted.states, wanted.weights[row])
                y, *saved = kept.of_rows[row]
                own, d = ([each[row] for each in of] for of in (given, last))
                found, dstates[row], of_weights = self.wholes[row].gradients(
                    needs, kept.inputs[level], own, weights[row], y, saved, part, d
                )
                if needs.weights:
                    dweights[row] = of_weights
                if needs.input and found is not None:
                    dx = found if dx is None else dx.add_(found)
            dy = dx
        of_states = [torch.stack(d) for d in zip(*dstates, strict=True)] if wanted.states else []
        return dy, of_states, [d for row in dweights for d in row]

    def _of_rows(self, states: Sequence[Tensor | None]) -> list[Sequence[Any]]:
        """Of each state [rows, B, …] that of each row, [1, B, …]."""
        return [[None] * len(self.wholes) if s is None else _filled(s).split(1) for s in states]

    def differentiable(self, asked: Asked) -> list[Tensor | None]:
        """``gradients``, of all, to be differentiated or mapped: forward is run anew, so that what
        lies between the layers has its part in that."""
        if surroundings(asked.x.device.type).transformed:
            return self._transformed(asked)
        x, states, weights, dy, dlast = asked
        problem = self.served[0].problem
        with torch.enable_grad():
            x, states = alias(x), [alias(s) for s in states]
            rows = [[alias(w) for w in row] for row in weights]
            stack = Stack(problem.cell, rows, *self._shape, 0.0, False)
            result = run_again(stack, x, states or None, self.served)
            pairs = zip([result.y, *result.final], [dy, *dlast], strict=True)
            known = [(output, d) for output, d in pairs if d is not None]
            primals = [x, *states, *(w for row in rows for w in row)]
            cotangents = [d for _, d in known]
            return differentiate([o for o, _ in known], primals, cotangents, create_graph=True)

    def _transformed(self, asked: Asked) -> list[Tensor | None]:
        """``differentiable`` inside of torch.func's levels, of which a graph that is made here
        would be no part: each row's backward by itself."""
        x, states, weights, dy, dlast = asked
        made = self._made_anew(x, states, weights)
        gradients: list[Any] = [None] * len(made)
        for level in reversed(range(self.layers)):
            rows = self.rows(level)
            parts = [dy] if dy is None or len(rows) == 1 else dy.chunk(len(rows), -1)
            for row, part in zip(rows, [*parts, *parts], strict=False):
                scan, saved, final = made[row]
                own = filled([None if d is None else d[row] for d in dlast], final)
                job = Job(scan, saved, Cotangents(part, own, []), Needs(True, True, True))
                gradients[row] = differentiable(job, self.served[row].backend.name)
            dinputs = [gradients[row].dinput for row in rows]
            dy = dinputs[0] + dinputs[1] if len(dinputs) > 1 else dinputs[0]
        dstates = [torch.stack(d) for d in zip(*(g.dstates for g in gradients), strict=True)]
        return [dy, *dstates[: len(states)], *(d for g in gradients for d in g.dweights)]

    def _made_anew(
        self, x: Tensor, states: Sequence[Tensor], weights: Rows
    ) -> list[tuple[Scan, Saved, list[Tensor]]]:
        """Of each row its scan, what its forward left, and its final states."""
        made: list[tuple[Scan, Saved, list[Tensor]]] = []
        for level in range(self.layers):
            for row in self.rows(level):
                one, backend = self.served[row]
                widths = one.spec.state_widths(one.P, one.H)
                own = [s[row] for s in states] or [x.new_zeros(one.B, w) for w in widths]
                scan = Scan(one.cell, "dense", x, own, list(weights[row]), None, None, one.options)
                y, final, trace, saved = transforms.scan_forward(*pack(scan, backend.name))
                made.append((scan, Saved(y, trace, saved), final))
            outputs = [saved.y for _, saved, _ in made[-self.directions :]]
            x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
        return made


class Asked(NamedTuple):
    """What gradients are made of where they are to be differentiated or mapped."""

    x: Tensor
    states: Sequence[Tensor]
    weights: Rows
    dy: Tensor | None
    dlast: Sequence[Tensor | None]


class Kept(NamedTuple):
    """What backward needs: each layer's input; each row's output and what it saved."""

    inputs: list[Tensor]
    of_rows: list[list[Any]]


class WantedRows:
    """Of whom gradients are: the input, the states, of each row some of its weights."""

    def __init__(self, flags: Sequence[bool], states: int, counts: Sequence[int]) -> None:
        rest = list(flags)
        self.input, self.states = take(rest, 1)[0], any(take(rest, states))
        self.weights = [any(take(rest, count)) for count in counts]

    def before(self, row: int) -> bool:
        """Whether some of what the rows before this one are given."""
        return self.input or (row > 0 and (self.states or any(self.weights[:row])))


class _Trained(torch.autograd.Function):
    """(call, how many states are given, x, *states, *weights of all rows) -> (y, *last states)."""

    @staticmethod
    def forward(ctx: Any, call: StackCall, count: int, x: Tensor, *others: Tensor) -> Any:
        states, flat = others[:count], list(others[count:])
        each = len(flat) // len(call.wholes)
        weights = [take(flat, each) for _ in call.wholes]
        y, final, kept = call.forward(x, states, weights, True)
        ctx.call, ctx.count, ctx.each = call, count, each
        ctx.kept = [len(own) for own in kept.of_rows]
        ctx.set_materialize_grads(False)
        every = (t for own in kept.of_rows for t in own)
        ctx.save_for_backward(x, *others, *kept.inputs[1:], *every)
        return y, *final

    @staticmethod
    def backward(ctx: Any, dy: Any, *dlast: Any) -> tuple[Any, ...]:
        call, flags, saved = ctx.call, wanted_inputs(ctx, 2), saved_tensors(ctx)
        (x,), states = take(saved, 1), take(saved, ctx.count)
        weights = [take(saved, ctx.each) for _ in call.wholes]
        found: list[Any]
        if is_differentiated((dy, *dlast)):
            found = call.differentiable(Asked(x, states, weights, dy, dlast))
        else:
            inputs = [x, *take(saved, call.layers - 1)]
            kept = Kept(inputs, [take(saved, n) for n in ctx.kept])
            wanted = WantedRows(flags, ctx.count, [ctx.each] * len(weights))
            dx, dstates, dweights = call.gradients(wanted, states, weights, kept, dy, dlast)
            found = [dx, *(dstates or [None] * ctx.count), *dweights]
        return (None, None, *(d if flag else None for d, flag in zip(found, flags, strict=True)))


def _filled(tensor: Tensor) -> Tensor:
    """One of zeros without memory, of which no part can be told from one that has some, in memory
    of its own."""
    return tensor.new_zeros(tensor.shape) if tensor._is_zerotensor() else tensor
