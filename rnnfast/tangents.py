"""The derivative of a scan along given tangents of its inputs: again a scan, of the tangent cell.

Forward mode is that scan. With it the derivatives of backward need no kernels of their own: for
y = F(x), and dx the gradient that backward makes of dy,

    <v, dx> = <v, F'(x)ᵀ dy> = <F'(x) v, dy>,

so the gradients of <v, dx> by x and dy are what backward of the scan of the tangents makes of dy,
and that scan's own output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .autocast import without_autocast
from .backends import registry
from .backends.preference import order
from .cells.tangent import tangent_cell
from .problem import Cotangents, Needs, Problem, Saved, Scan, ScanResult, cast, problem_of, wide
from .rules import without_padding
from .schema import pack
from .scratch import linearized_loop
from .surroundings import forward_levels, unwatched, wants_gradients
from .tangent_gates import GatesAlong

Op = Callable[..., tuple[Any, ...]]  # scan_forward or scan_backward: its arguments, its results


class Tangents(NamedTuple):
    """Of a scan's input, states and weights; None where there is none."""

    input: Tensor | None
    states: Sequence[Tensor | None]
    weights: Sequence[Tensor | None]

    @property
    def flat(self) -> list[Tensor | None]:
        """In the order of ``Scan.tensors``."""
        return [self.input, *self.states, *self.weights]


def tangents_of(scan: Scan, flat: Sequence[Tensor | None]) -> Tangents:
    """Of those of ``scan.tensors``."""
    count = 1 + len(scan.states)
    return Tangents(flat[0], flat[1:count], flat[count:])


class Linearized(NamedTuple):
    """``tangent``: of a scan's results; ``value``: the results themselves, of which the states at
    each step are only there where asked for, and then the output, too."""

    tangent: ScanResult
    value: ScanResult


def linearize(
    scan: Scan, tangents: Tangents, backend: str, op: Op, values: bool = False
) -> Linearized:
    """The derivative of ``scan`` along ``tangents``, differentiable.

    ``backend``: who ran the scan, and runs this where it can; else another that can, else the loop.
    ``op``: what runs a scan. ``values``: the scan's own results are wanted, too.
    """
    made = moved(scan, tangents, backend, op, values)
    return linearized_by_loop(scan, tangents) if made is None else made.results()


def kernels_for(problem: Problem, backend: str) -> str | None:
    """The backend with kernels for a scan of tangents: the one named, or the next that takes it."""
    for name in (backend, *order(problem).names):
        one = registry.BACKENDS[name]
        if not one.composite and registry.refusal(one, problem) is None:
            return name
    return None


def moved(
    scan: Scan,
    tangents: Tangents,
    backend: str,
    op: Op,
    values: bool,
    kept: bool = False,
    clip: float = 0.0,
) -> Moved | None:
    """The scan of the tangents of ``scan``, run; None where nobody has kernels for it. ``values``:
    it has the results of the scan at each step, too. ``kept``: it keeps what ``pulled`` needs.
    ``clip``: the grad_clip_time of what is pulled."""
    own, gates = tangent_scan(scan, tangents, values, kept)
    problem = problem_of(_limited(own, clip))
    name = kernels_for(problem, backend)
    if name is None:
        return None
    if not unwatched(own.tensors):
        return Moved(scan, own, gates, name, False, clip, *op(*pack(own, name)))
    with torch.no_grad(), without_autocast(own.input.device.type):
        (y, final, trace), saved = registry.named(name, problem).forward_over(own)
    return Moved(scan, own, gates, name, True, clip, y, final, trace, saved)


def has_kernels(scan: Scan, tangents: Tangents, backend: str, clip: float = 0.0) -> bool:
    """Whether ``moved`` finds any."""
    own, _ = tangent_scan(scan, tangents, values=False, kept=True)
    return kernels_for(problem_of(_limited(own, clip)), backend) is not None


def is_differentiated(tensors: Iterable[Tensor | None], inside: int) -> bool:
    """Whether somebody takes derivatives of what is made of ``tensors``, beside the levels of
    forward mode that it is made for, of which it is still ``inside``."""
    there = (t for t in tensors if t is not None)
    return forward_levels() > inside or wants_gradients(there)


def _limited(scan: Scan, clip: float) -> Scan:
    return scan._replace(options=scan.options._replace(grad_clip_time=clip))


class Moved(NamedTuple):
    """A scan of tangents that was run.

    Attributes:
        scan: whose tangents. own: the scan of the tangent cell.
        gates: how its input was made. backend: who ran it.
        alone: nobody looked on, and the input was written over.
        clip: the grad_clip_time of what is pulled: as that of a backward and its derivative.
        y, final, trace, saved: what scan_forward returned.
    """

    scan: Scan
    own: Scan
    gates: GatesAlong
    backend: str
    alone: bool
    clip: float
    y: Tensor
    final: list[Tensor]
    trace: list[Tensor]
    saved: list[Tensor]

    def limited(self, clip: float) -> Moved | None:
        """With ``clip``; None where who ran it can't. What is pulled then has no derivative."""
        if clip != 0:
            problem = problem_of(_limited(self.own, clip))
            if registry.refusal(registry.BACKENDS[self.backend], problem) is not None:
                return None
        return self._replace(clip=clip)

    def results(self) -> Linearized:
        series, count = [self.y, *self.trace], len(self.scan.states)
        tangent = self._result(series[:count], self.final[:count])
        return Linearized(tangent, self._result(series[count:], self.final[count:]))

    def _result(self, series: Sequence[Tensor], final: Sequence[Tensor]) -> ScanResult:
        """As the scan's own cell has them: of a projected output its P units."""
        scan = self.scan
        storage, P = scan.dtype, scan.states[0].shape[-1]
        h, *others = [cast(s, storage) for s in final]
        y = cast(series[0], storage) if series else h
        trace = [cast(t, storage) for t in series[1:]] if scan.options.all_states else []
        return ScanResult(_narrowed(y, P), [_narrowed(h, P), *others], trace)

    def pulled(
        self,
        tangent: Cotangents,
        value: Cotangents | None,
        wanted: Sequence[bool],
        forward: Op,
        backward: Op,
    ) -> list[Tensor | None]:
        """The gradients of the scan's tensors that are ``wanted``, of the sum of its tangents times
        ``tangent`` and, where it has them, its results times ``value``. Differentiable.

        ``forward``, ``backward``: scan_forward, scan_backward.
        """
        return self._pulled(tangent, value, wanted, forward, backward, (False,))[0]

    def pulled_both(
        self,
        tangent: Cotangents,
        value: Cotangents,
        wanted: Sequence[bool],
        forward: Op,
        backward: Op,
    ) -> list[list[Tensor | None]]:
        """``pulled``, and behind it the same of the tangents: which are the gradients of the scan's
        results times ``tangent``. Of recurrent weights only where these have tangents."""
        return self._pulled(tangent, value, wanted, forward, backward, (False, True))

    def _pulled(
        self,
        tangent: Cotangents,
        value: Cotangents | None,
        wanted: Sequence[bool],
        forward: Op,
        backward: Op,
        which: Sequence[bool],
    ) -> list[list[Tensor | None]]:
        """Of the scan's tensors and, where ``which`` is true, of their tangents."""
        parts = [tangent, *([] if value is None else [value])]
        given = [d for dy, dfinal, dtrace in parts for d in (dy, *dfinal, *dtrace) if d is not None]
        if self.alone and not unwatched(given):
            again = self._again(forward)
            return again._pulled(tangent, value, wanted, forward, backward, which)
        n_states = len(self.scan.states)
        pairs = list(zip(self._names(), wanted[1 + n_states :], strict=True))
        of_gates = wanted[0] or any(on and name in _OF_INPUT for name, on in pairs)
        recurrent = any(on and name not in _OF_INPUT for name, on in pairs)
        count = sum(name not in _OF_INPUT for name in self._names())
        leading = None if True in which else count  # those of the weights, and not of tangents
        needs = Needs(of_gates, any(wanted[1 : 1 + n_states]), recurrent, leading=leading)
        made = self._backward(self._cotangents(tangent, value), needs, backward)
        return [self._gradients(made, wanted, of_tangents) for of_tangents in which]

    def _gradients(
        self, made: tuple[Any, Any, Any], wanted: Sequence[bool], of_tangents: bool
    ) -> list[Tensor | None]:
        """``made``: of the scan of tangents, whose states' tangents come first, and whose weights'
        last."""
        (dgates, dstates, dweights), scan = made, self.scan
        n_states, P = len(scan.states), scan.states[0].shape[-1]
        names = self._names()
        recurrent = [name for name in names if name not in _OF_INPUT]
        gates = self.gates.of_tangents() if of_tangents else self.gates
        dstates = dstates[:n_states] if of_tangents else dstates[n_states:]
        dweights = dweights[len(recurrent) :] if of_tangents else dweights[: len(recurrent)]
        found: list[Tensor | None] = [gates.gradient_of_input(dgates) if wanted[0] else None]
        found += [_narrowed(d, P) if k == 0 else d for k, d in enumerate(dstates)]
        found += [None] * (1 + n_states - len(found))
        pairs = zip(names, wanted[1 + n_states :], strict=True)
        of_input = any(on and name in _OF_INPUT for name, on in pairs)
        by_name = gates.gradients_of_weights(dgates) if of_input else {}
        by_name |= zip(recurrent, dweights, strict=False)
        found += [by_name.get(name) for name in names]
        every = zip(found, scan.tensors, wanted, strict=True)
        return [cast(d, t.dtype) if on and d is not None else None for d, t, on in every]

    def _again(self, forward: Op) -> Moved:
        """Run so that it can be looked at."""
        own = self.own._replace(input=self.gates.both())
        made = forward(*pack(own, self.backend))
        return Moved(self.scan, own, self.gates, self.backend, False, self.clip, *made)

    def _backward(self, incoming: Cotangents, needs: Needs, backward: Op) -> tuple[Any, Any, Any]:
        """(dinput, dstates, dweights) of the scan of tangents."""
        own = _limited(self.own, self.clip)
        if not self.alone:
            pairs = zip(incoming.dtrace, self.trace, strict=False)
            filled = [torch.zeros_like(t) if d is None else d for d, t in pairs]
            incoming = incoming._replace(dtrace=filled)
            outputs = (self.y, self.trace, self.saved, list(needs[:3]), 0)
            found: tuple[Any, Any, Any] = backward(*pack(own, self.backend), *incoming, *outputs)
            return found
        with torch.no_grad(), without_autocast(own.input.device.type):
            saved = Saved(self.y, self.trace, self.saved)
            backend = registry.named(self.backend, problem_of(own))
            dinput, dstates, dweights = backend.backward(own, saved, incoming, needs)
        return dinput, dstates or [], dweights or []

    @property
    def moves_weights(self) -> bool:
        """Whether the recurrent weights have tangents, or there are none."""
        recurrent = sum(name not in _OF_INPUT for name in self._names())
        return len(self.own.weights) == 2 * recurrent

    def _names(self) -> Sequence[str]:
        return self.scan.spec.weight_names(self.scan.kind, self.scan.has_bias)

    def _cotangents(self, tangent: Cotangents, value: Cotangents | None) -> Cotangents:
        """Those of the scan of the tangents: of the tangents first. Of what there is at each step
        None is zeros."""
        (h, *others), dtype = self.own.states[: len(self.scan.states)], self.own.dtype

        def widened(d: Tensor | None) -> Tensor | None:
            return None if d is None else _widened(cast(d, dtype), h.shape[-1])

        finals, series = list[Tensor](), list[Tensor | None]()
        for part in (tangent, value):
            dy, dfinal, dtrace = part or (None, [], [])
            first, *rest = dfinal or [torch.zeros_like(s) for s in (h, *others)]
            finals += [_widened(cast(first, dtype), h.shape[-1]), *(cast(d, dtype) for d in rest)]
            series += [widened(dy), *(cast(d, dtype) for d in dtrace or [])]
            series += [None] * (len(finals) - len(series))
        return Cotangents(series[0], finals, series[1 : 1 + len(self.trace)])


_OF_INPUT = ("w_ih", "b_ih")


def tangent_scan(
    scan: Scan, tangents: Tangents, values: bool, kept: bool
) -> tuple[Scan, GatesAlong]:
    """The scan of the tangent cell, and how its input was made; ``values``, ``kept``: as ``moved``
    has them."""
    spec, options, dtype = scan.spec, scan.options, wide(scan.dtype)
    P, H = scan.states[0].shape[-1], scan.states[-1].shape[-1]
    scan = without_padding(scan).to(dtype)
    found = dict(zip(spec.weight_names(scan.kind, scan.has_bias), scan.weights, strict=True))
    along = {
        name: None if d is None else cast(d, dtype)
        for name, d in zip(found, tangents.weights, strict=True)
    }
    weights = [w for name, w in found.items() if name not in _OF_INPUT]
    weights_too = any(d is not None for name, d in along.items() if name not in _OF_INPUT)
    name = tangent_cell(scan.cell, P, scan.has_bias, weights_too)
    if weights_too:
        recurrent = ((w, along[name]) for name, w in found.items() if name not in _OF_INPUT)
        weights += [torch.zeros_like(w) if d is None else d for w, d in recurrent]
    states = [_widened(s, H) for s in scan.states]
    dstates = [
        torch.zeros_like(s) if d is None else _widened(cast(d, dtype), H)
        for d, s in zip(tangents.states, states, strict=True)
    ]
    gates = GatesAlong(scan, tangents.input, along)
    both = gates.both()
    options = options._replace(
        all_states=values or options.all_states,
        training=kept or wants_gradients([both, *states, *dstates, *weights]),
        grad_clip_time=0.0,  # of no effect on tangents; whoever differentiates them looks to it
    )
    own = Scan(
        name, "gates", both, [*dstates, *states], weights, scan.lengths, scan.resets, options
    )
    return own, gates


def linearized_by_loop(scan: Scan, tangents: Tangents) -> Linearized:
    count = 1 + len(scan.states)
    return Linearized(
        *(
            ScanResult(flat[0], list(flat[1:count]), list(flat[count:]))
            for flat in linearized_loop(scan, tangents.flat)
        )
    )


def _narrowed(values: Tensor, P: int) -> Tensor:
    return values if values.shape[-1] == P else values[..., :P].contiguous()


def _widened(values: Tensor, H: int) -> Tensor:
    """To H units, with zeros behind them (cells/masked.py)."""
    return values if values.shape[-1] == H else F.pad(values, (0, H - values.shape[-1]))
