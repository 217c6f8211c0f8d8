"""The ops as autograd Functions that have a rule for every transform of torch: grad, vjp, vmap and
jvp of torch.func in any order, dual numbers, and backward to any order.

``scan_forward`` and ``scan_backward`` here take and return what the ops of these names do. torch
calls each rule at the level of the transform that it is for, so that what a rule calls is the next
level's; below all levels a backend runs. Their derivatives are those of ``tangents``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers  # which torch does to all but Functions
from torch.autograd import forward_ad

from . import batching, ops
from .batching import of_older_vmap
from .cells import CELLS
from .ops import load_scan, take
from .problem import Cotangents, Scan, ScanResult
from .schema import BACKWARD, FORWARD, Nest, in_order, named, needs_among, pack
from .scratch import with_tensors
from .second import asked_of, second, tangent_of_gradients
from .surroundings import forward_mode_is_innermost, in_dispatch_mode
from .tangents import Tangents, linearize


def run_transformed(scan: Scan, backend: str) -> ScanResult:
    """Runs ``scan`` where a transform surrounds it."""
    # who records backward beside it is to find the tangents in what forward saves
    if forward_mode_is_innermost() and not scan.options.training:
        duals = [forward_ad.unpack_dual(t) for t in scan.tensors]
        tangents = [dual.tangent for dual in duals if dual.tangent is not None]
        if tangents and not any(map(of_older_vmap, tangents)):  # which has no rule for make_dual
            return _with_tangents(scan, backend, duals)
    y, final, trace, _ = scan_forward(*pack(scan, backend))
    return ScanResult(y, final, trace)


def _with_tangents(scan: Scan, backend: str, duals: Sequence[Any]) -> ScanResult:
    """In forward mode: the scan of the tangents has the results, too. ``duals``: the scan's tensors
    taken apart."""
    own = with_tensors(scan, dict(enumerate(dual.primal for dual in duals)))
    weights = [dual.tangent for dual in duals]
    (input,), states = take(weights, 1), take(weights, len(scan.states))
    along = Tangents(input, states, weights)
    tangent, value = linearize(own, along, backend, scan_forward, values=True)
    final, trace = (
        [forward_ad.make_dual(*pair) for pair in zip(*results, strict=True)]
        for results in zip(value[1:], tangent[1:], strict=True)
    )
    return ScanResult(forward_ad.make_dual(value.y, tangent.y), final, trace)


def scan_forward(*args: Any) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    return scan_forwards([args])[0]


def scan_backward(*args: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    return scan_backwards([args])[0]


def scan_forwards(calls: Sequence[Sequence[Any]]) -> list[Any]:
    """scan_forward of each, all alike but for their tensors: of the members of an ensemble."""
    return _applied(_Forward, calls, _results)


def scan_backwards(calls: Sequence[Sequence[Any]]) -> list[Any]:
    return _applied(_Backward, calls, _gradients)


def _applied(function: Any, calls: Sequence[Sequence[Any]], nested: Callable[..., Any]) -> Any:
    nest = Nest(calls[0])
    tensors = [t for args in calls for t in nest.taken_apart(args)]
    flat = function.apply(nest, *unwrap_dead_wrappers(tuple(tensors)))
    pairs = zip(calls, _shared_out(flat, len(calls)), strict=True)
    return [nested(args, own) for args, own in pairs]


def _by_call(nest: Nest, flat: Sequence[Any]) -> list[list[Any]]:
    """What there is of each tensor that a Function is given, by call."""
    return _shared_out(flat, len(flat) // nest.size)


def _shared_out(flat: Sequence[Any], calls: int) -> list[list[Any]]:
    """What calls that are alike made, by call."""
    each = len(flat) // calls
    return [list(flat[k * each : (k + 1) * each]) for k in range(calls)]


def _results(args: Sequence[Any], flat: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """(y, final, trace, saved) of what scan_forward made of ``args``."""
    given, rest = named(FORWARD, args), list(flat)
    count = len(CELLS[given["cell"]].states)
    (y,), final = take(rest, 1), take(rest, count)
    return y, final, take(rest, count - 1 if given["all_states"] else 0), rest


def _gradients(args: Sequence[Any], flat: Sequence[Any]) -> tuple[Any, Any, Any]:
    """(dinput, dstates, dweights) of what scan_backward made of ``args``."""
    given, rest = named(BACKWARD, args), list(flat)
    (dinput,) = take(rest, 1)
    return dinput, take(rest, len(given["states"]) if needs_among(given).states else 0), rest


def _flat(results: Sequence[Any]) -> tuple[Any, ...]:
    """Results of an op, or their axes, without lists."""
    return tuple(one for part in results for one in (part if isinstance(part, list) else [part]))


def _sees_ops(leaves: Sequence[Any]) -> bool:
    """Whether someone is there who has to see an op: who replaces or records torch's calls, or the
    older vmap."""
    return in_dispatch_mode() or any(map(of_older_vmap, leaves))


def _called(
    nest: Nest, tensors: Sequence[Any], op: Any, below: Callable[..., Sequence[Any]]
) -> tuple[Tensor, ...]:
    """The calls by ``op`` where someone has to see it, else all of them by ``below``; flat."""
    calls = [nest.nested(own) for own in _by_call(nest, tensors)]
    found = [op(*args) for args in calls] if _sees_ops(tensors) else below(calls)
    return tuple(one for results in found for one in _flat(results))


class _Part:
    """One call in the context of several: to ``ops`` a context like any other."""

    def __init__(self) -> None:
        self.saved_tensors: Sequence[Tensor] = ()

    def set_materialize_grads(self, on: bool) -> None:
        """They all have one setting."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


def _save(ctx: Any, parts: list[Any], of_scans: list[list[Tensor]]) -> None:
    """``of_scans``: of each part's tensors the first, which are its scan's."""
    ctx.set_materialize_grads(False)
    ctx.parts = parts
    ctx.n_saved = [len(part.saved_tensors) for part in parts]
    ctx.n_scan = [len(own) for own in of_scans]
    ctx.save_for_backward(*(t for part in parts for t in part.saved_tensors))
    ctx.save_for_forward(*(t for own in of_scans for t in own))
    for part in parts:
        part.saved_tensors = ()


def _parts(ctx: Any, counts: Sequence[int]) -> list[Any]:
    """The parts with their tensors: ``ctx.n_saved`` of them, or in forward mode ``ctx.n_scan``."""
    rest, found = ops.saved_tensors(ctx), []
    for part, count in zip(ctx.parts, counts, strict=True):
        found.append(own := copy(part))
        own.saved_tensors = tuple(take(rest, count))
    return found


def _mapped(
    rule: Callable[..., Any], all_at_once: Callable[..., Any], info: Any, in_dims: Any, given: Any
) -> tuple[Any, Any]:
    """Several calls under vmap, each by ``rule``."""
    nest, *tensors = given
    pairs = zip(_by_call(nest, tensors), _by_call(nest, in_dims[1:]), strict=True)
    rules = [rule(info, nest.nested_alone(dims), nest.nested(args)) for args, dims in pairs]
    made = all_at_once([call for calls, _ in rules for call in calls])
    found = [combined(take(made, len(calls))) for calls, combined in rules]
    return tuple(tuple(one for pair in found for one in _flat(pair[side])) for side in (0, 1))  # type: ignore[return-value]


class _Forward(torch.autograd.Function):
    """(how the tensors of each call are nested, the tensors of all) -> the results flat."""

    @staticmethod
    def forward(nest: Nest, *tensors: Any) -> tuple[Tensor, ...]:
        return _called(nest, tensors, torch.ops.rnnfast.scan_forward, ops.run_forwards)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        nest = ctx.nest = inputs[0]
        parts, of_scans, saved = [], [], list[Tensor]()
        calls = [nest.nested(own) for own in _by_call(nest, inputs[1:])]
        for args, flat in zip(calls, _shared_out(output, len(calls)), strict=True):
            results = _results(args, flat)
            saved += results[3]
            parts.append(part := _Part())
            of_scans.append(ops.set_forward(part, args, results))
        ctx.mark_non_differentiable(*saved)
        _save(ctx, parts, of_scans)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        parts = _parts(ctx, ctx.n_saved)
        flags, asked = _by_call(ctx.nest, ctx.needs_input_grad[1:]), []
        for part, given, own in zip(parts, flags, _shared_out(grads, len(parts)), strict=True):
            wanted = ctx.nest.nested_alone(given)
            (dy,), dfinal = take(own, 1), take(own, part.form.n_states)
            asked.append(ops.backward_call(part, wanted, dy, dfinal, own[: part.counts[0]]))
        found = scan_backwards([call.args for call in asked])
        made = [call.as_forwards(one) for call, one in zip(asked, found, strict=True)]
        return None, *(d for gradients in made for d in ctx.nest.taken_apart(gradients))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> tuple[Tensor | None, ...]:
        flat: list[Tensor | None] = []
        calls = _by_call(ctx.nest, tangents)
        for part, own in zip(_parts(ctx, ctx.n_scan), calls, strict=True):
            scan, _rest = load_scan(part, part.saved_tensors)
            given = named(FORWARD, ctx.nest.nested_alone(own))
            along = Tangents(given["input"], given["states"], given["weights"])
            y, final, trace = linearize(scan, along, part.form.backend, scan_forward).tangent
            flat += [y, *final, *trace, *(None for _ in range(part.counts[1]))]
        return tuple(flat)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> tuple[Any, Any]:
        return _mapped(batching.forward_rule, scan_forwards, info, in_dims, given)


class _Backward(torch.autograd.Function):
    """The same of scan_backward."""

    @staticmethod
    def forward(nest: Nest, *tensors: Any) -> tuple[Tensor, ...]:
        return _called(nest, tensors, torch.ops.rnnfast.scan_backward, ops.run_backwards)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        nest = ctx.nest = inputs[0]
        parts, of_scans, unwanted = [], [], list[Tensor]()
        calls = [nest.nested(own) for own in _by_call(nest, inputs[1:])]
        for args, flat in zip(calls, _shared_out(output, len(calls)), strict=True):
            parts.append(part := _Part())
            of_scans.append(ops.set_backward(part, args, tuple(flat)))
            if not needs_among(named(BACKWARD, args)).input:
                unwanted.append(flat[0])  # it stands for none
        ctx.mark_non_differentiable(*unwanted)
        _save(ctx, parts, of_scans)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        parts, found = _parts(ctx, ctx.n_saved), list[Any]()
        every = _by_call(ctx.nest, ctx.needs_input_grad[1:])
        for part, given, own in zip(parts, every, _shared_out(grads, len(parts)), strict=True):
            asked = asked_of(part, scan_forward)
            flags = named(BACKWARD, ctx.nest.nested_alone(given))
            wanted = [flags["input"], *flags["states"], *flags["weights"]]
            made = second(asked, asked.tangents(own), tuple(map(bool, wanted)))
            found += ctx.nest.taken_apart(in_order(BACKWARD, asked.by_name(made)))
        return None, *found

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> tuple[Any, ...]:
        found: list[Any] = []
        calls = _by_call(ctx.nest, tangents)
        for part, own in zip(_parts(ctx, ctx.n_scan), calls, strict=True):
            given = named(BACKWARD, ctx.nest.nested_alone(own))
            along = Tangents(given["input"], given["states"], given["weights"])
            cotangents = Cotangents(given["dy"], given["dfinal"], given["dtrace"])
            found += tangent_of_gradients(asked_of(part, scan_forward), along, cotangents)
        return tuple(found)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> tuple[Any, Any]:
        return _mapped(batching.backward_rule, scan_backwards, info, in_dims, given)
