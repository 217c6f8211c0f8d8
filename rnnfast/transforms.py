"""The ops as autograd Functions that have a rule for every transform of torch: grad, vjp, vmap and
jvp of torch.func in any order, dual numbers, and backward to any order.

``scan_forward`` and ``scan_backward`` here take and return what the ops of these names do. torch
calls each rule at the level of the transform that it is for, so that what a rule calls is the next
level's; below all levels a backend runs. Their derivatives are those of ``tangents``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import batching, levels, nodes, ops  # noqa: F401
from .autodiff import wanted_inputs
from .ops import load_scan, take
from .problem import Cotangents, Scan, ScanResult
from .schema import BACKWARD, FORWARD, Nest, in_order, named, needs_among, pack, scan_of
from .scratch import with_tensors
from .second import asked_of, filled_cotangents, pulls_of_forward, second, tangent_of_gradients
from .surroundings import (
    forward_mode_is_innermost,
    in_dispatch_mode,
    of_older_vmap,
    packed,
    unpacked,
    untraced,
)
from .tangents import (
    Moved,
    Tangents,
    is_differentiated,
    linearized_by_loop,
    moved,
    tangents_of,
)


@untraced
def run_transformed(scan: Scan, backend: str) -> ScanResult:
    """Runs ``scan`` where a transform surrounds it."""
    # who records backward beside it is to find the tangents in what forward saves
    if forward_mode_is_innermost() and not scan.options.training:
        primals, tangents = zip(*map(unpacked, scan.tensors), strict=True)
        if _can_be_packed(tangents):
            y, *rest = _with_tangents(scan, backend, primals, tangents)
            return ScanResult(y, take(rest, len(scan.states)), rest)
    y, final, trace, _ = scan_forward(*pack(scan, backend))
    return ScanResult(y, final, trace)


def _can_be_packed(tangents: Sequence[Tensor | None]) -> bool:
    """Whether there are any, and none of the older vmap, which has no rule for make_dual."""
    there = [t for t in tangents if t is not None]
    return bool(there) and not any(map(of_older_vmap, there))


def _with_tangents(
    scan: Scan,
    backend: str,
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
    moves: Moves | None = None,
) -> list[Tensor]:
    """In forward mode: the scan of the tangents has the results, too, which are returned flat.
    ``primals``, ``tangents``: of the scan's tensors. ``moves``: keeps that scan for a backward;
    then nothing is returned where there are no kernels for it."""
    count, kept = len(primals), moves is not None

    def run(given: Sequence[Any]) -> Sequence[Tensor | None]:
        lengths, resets = given[2 * count :]
        own = with_tensors(scan, dict(enumerate(given[:count])))
        own = own._replace(lengths=lengths, resets=resets)
        along = tangents_of(scan, given[count : 2 * count])
        made = moved(own, along, backend, scan_forward, values=True, kept=kept)
        if made is None and kept:
            return []
        if made is not None and moves is not None:
            moves.keep(0, list(given[: 2 * count]), made)
        both = linearized_by_loop(own, along) if made is None else made.results()
        return [t for y, final, trace in both for t in (y, *final, *trace)]

    ends = (scan.lengths, scan.resets)
    flat: list[Any] = levels.without_level(run, [*primals, *tangents, *ends])
    half = len(flat) // 2
    return [packed(t, d) for t, d in zip(flat[half:], flat[:half], strict=True)]


def scan_forward(*args: Any) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    return scan_forwards([args])[0]


def scan_backward(*args: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    return scan_backwards([args])[0]


def scan_forwards(calls: Sequence[Sequence[Any]]) -> list[Any]:
    """scan_forward of each, all alike but for their tensors: of the members of an ensemble."""
    return _applied(_Forward, calls, ops.results_of)


def scan_backwards(calls: Sequence[Sequence[Any]], moves: Moves | None = None) -> list[Any]:
    """``moves``: those of the scan_forwards that these are the backward of."""
    return _applied(_Backward, calls, ops.gradients_of, moves)


class Moves:
    """The scans along tangents that scan_forwards ran, for the tangents of their backward, which
    go along the same: by the level of forward mode and the call."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[list[Any], Moved, list[int]]] = {}

    def keep(self, call: int, along: list[Any], run: Moved) -> None:
        """``along``: the scan's tensors and their tangents, at no level of forward mode."""
        self._known[levels.number(), call] = along, run, _versions(run)

    def find(self, call: int, along: list[Any]) -> Moved | None:
        known = self._known.get((levels.number(), call))
        if known is None:
            return None
        before, run, versions = known
        same = len(before) == len(along) and all(map(operator.is_, before, along))
        return run if same and _versions(run) == versions else None


def _versions(run: Moved) -> list[int]:
    """Of what somebody may have changed in place since."""
    return [0 if t.is_inference() else t._version for t in (run.y, *run.trace)]


@untraced
def _applied(
    function: Any,
    calls: Sequence[Sequence[Any]],
    nested: Callable[..., Any],
    moves: Moves | None = None,
) -> Any:
    nest = Nest(calls[0])
    nest.moves = moves or Moves()
    tensors = [t for args in calls for t in nest.taken_apart(args)]
    flat = levels.applied(function, nest, tensors)
    pairs = zip(calls, _shared_out(flat, len(calls)), strict=True)
    return [nested(args, own) for args, own in pairs]


def _by_call(nest: Nest, flat: Sequence[Any]) -> list[list[Any]]:
    """What there is of each tensor that a Function is given, by call."""
    return _shared_out(flat, len(flat) // nest.size)


def _shared_out(flat: Sequence[Any], calls: int) -> list[list[Any]]:
    """What calls that are alike made, by call."""
    each = len(flat) // calls
    return [list(flat[k * each : (k + 1) * each]) for k in range(calls)]


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


class _Forward(levels.Leveled):
    """(how the tensors of each call are nested, the tensors of all) -> the results flat."""

    @staticmethod
    def forward_mode(nest: Nest, tensors: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """Without what forward saves: a backward that does not find the scan of the tangents runs
        forward anew (``ops.run_backwards``)."""
        if len(tensors) != nest.size:
            return None
        given = named(FORWARD, nest.nested(tensors))
        scan = scan_of(given)
        tangents = [unpacked(t)[1] for t in scan.tensors]
        if not _can_be_packed(tangents) or scan.options.grad_clip_time != 0:
            return None  # a backward that is limited is not that of the scan of the tangents
        moves = nest.moves if scan.options.training else None
        found = _with_tangents(scan, given["backend"], scan.tensors, tangents, moves)
        return tuple(found) or None

    @staticmethod
    def forward(nest: Nest, *tensors: Any) -> tuple[Tensor, ...]:
        return levels.at_level(_Forward, nest, tensors)

    @staticmethod
    def run(nest: Nest, *tensors: Any) -> tuple[Tensor, ...]:
        return _called(nest, tensors, torch.ops.rnnfast.scan_forward, ops.run_forwards)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        nest = ctx.nest = inputs[0]
        parts, of_scans, saved = [], [], list[Tensor]()
        calls = [nest.nested(own) for own in _by_call(nest, inputs[1:])]
        for args, flat in zip(calls, _shared_out(output, len(calls)), strict=True):
            results = ops.results_of(args, flat)
            saved += results[3]
            parts.append(part := _Part())
            of_scans.append(ops.set_forward(part, args, results))
        ctx.mark_non_differentiable(*saved)
        _save(ctx, parts, of_scans)

    @staticmethod
    @untraced
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        parts = _parts(ctx, ctx.n_saved)
        flags, asked = _by_call(ctx.nest, wanted_inputs(ctx, 1)), []
        for part, given, own in zip(parts, flags, _shared_out(grads, len(parts)), strict=True):
            wanted = ctx.nest.nested_alone(given)
            (dy,), dfinal = take(own, 1), take(own, part.form.n_states)
            asked.append(ops.backward_call(part, wanted, dy, dfinal, own[: part.counts[0]]))
        found = scan_backwards([call.args for call in asked], ctx.nest.moves)
        made = [call.as_forwards(one) for call, one in zip(asked, found, strict=True)]
        return None, *(d for gradients in made for d in ctx.nest.taken_apart(gradients))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> tuple[Tensor | None, ...]:
        flat: list[Tensor | None] = []
        calls = _by_call(ctx.nest, tangents)
        for call, (part, own) in enumerate(zip(_parts(ctx, ctx.n_scan), calls, strict=True)):
            flat += levels.without_level(
                partial(_tangents_of_results, ctx.nest, part, call), [*part.saved_tensors, *own]
            )
            flat += [None] * part.counts[1]
        return tuple(flat)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> tuple[Any, Any]:
        return _mapped(batching.forward_rule, scan_forwards, info, in_dims, given)


def _tangents_of_results(
    nest: Nest, part: Any, call: int, own: Sequence[Any]
) -> Sequence[Tensor | None]:
    """``own``: the scan's tensors and the tangents of the arguments."""
    count = len(part.saved_tensors)
    scan, _rest = load_scan(part, own[:count])
    of = named(FORWARD, nest.nested_alone(own[count:]))
    along, backend = Tangents(of["input"], of["states"], of["weights"]), part.form.backend
    kept = scan.options.training  # there may be a backward, along the same
    run = moved(scan, along, backend, scan_forward, values=kept, kept=kept)
    if run is None:
        y, final, trace = linearized_by_loop(scan, along).tangent
    else:
        y, final, trace = run.results().tangent
        if kept:
            size = len(scan.tensors)
            nest.moves.keep(call, [*own[:size], *own[count : count + size]], run)
    return [y, *final, *trace]


def _tangents_of_gradients(
    nest: Nest, part: Any, call: int, own: Sequence[Any]
) -> Sequence[Tensor | None]:
    """The same of scan_backward."""
    count = len(part.saved_tensors)
    part.saved_tensors = own[:count]
    of = named(BACKWARD, nest.nested_alone(own[count:]))
    along = Tangents(of["input"], of["states"], of["weights"])
    asked = asked_of(part, scan_forward, scan_backward)
    size = len(asked.scan.tensors)
    run = nest.moves.find(call, [*own[:size], *own[count : count + size]])
    return tangent_of_gradients(asked, along, Cotangents(of["dy"], of["dfinal"], of["dtrace"]), run)


def _both_gradients(
    nest: Nest, given: dict[str, Any], own: Sequence[Any]
) -> Sequence[Tensor | None]:
    """The tangents of the gradients, and the gradients, by the scan along tangents that forward
    ran; nothing where it ran none along the same, or they need more than that. ``own``: the scan's
    tensors and the cotangents, then the tangents of both."""
    scan, needs = scan_of(given), needs_among(given)
    tensors, half = scan.tensors, len(own) // 2
    moving = own[half:]
    run = nest.moves.find(0, [*own[: len(tensors)], *moving[: len(tensors)]])
    clip = scan.options.grad_clip_time
    if run is None or (clip != 0 and is_differentiated(own, inside=0)):
        return []
    run = run.limited(clip)
    if run is None or (needs.weights and not run.moves_weights):
        return []
    has_dy, count = given["dy"] is not None, len(scan.states)

    def cotangents(flat: Sequence[Any]) -> Cotangents:
        left = list(flat[len(tensors) :])
        dy = take(left, 1)[0] if has_dy else None
        return Cotangents(dy, take(left, count), left)

    of_states, of_weights = [needs.states] * count, [needs.weights] * len(scan.weights)
    wanted = [needs.input, *of_states, *of_weights]
    primal = cotangents(own[:half])
    value = filled_cotangents(cotangents(moving), primal)
    made = run.pulled_both(primal, value, wanted, scan_forward, scan_backward)
    return [d for part in made for d in part if d is not None]


class _Backward(levels.Leveled):
    """The same of scan_backward."""

    @staticmethod
    def forward_mode(nest: Nest, tensors: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        if len(tensors) != nest.size:
            return None
        given = named(BACKWARD, nest.nested(tensors))
        needs = needs_among(given)
        if needs.groups:
            return None
        dy = [] if given["dy"] is None else [given["dy"]]
        every = [given["input"], *given["states"], *given["weights"]]
        every += [*dy, *given["dfinal"], *given["dtrace"]]
        if any(map(of_older_vmap, every)):
            return None
        tangents = [unpacked(t)[1] for t in every]
        flat: list[Any] = levels.without_level(
            partial(_both_gradients, nest, given), [*every, *tangents]
        )
        if not flat:
            return None
        half = len(flat) // 2
        made = [packed(d, t) for d, t in zip(flat[half:], flat[:half], strict=True)]
        return tuple(made) if needs.input else (given["y"].new_empty(0), *made)

    @staticmethod
    def forward(nest: Nest, *tensors: Any) -> tuple[Tensor, ...]:
        return levels.at_level(_Backward, nest, tensors)

    @staticmethod
    def run(nest: Nest, *tensors: Any) -> tuple[Tensor, ...]:
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
    @untraced
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        parts, found = _parts(ctx, ctx.n_saved), list[Any]()
        every = _by_call(ctx.nest, wanted_inputs(ctx, 1))
        for part, given, own in zip(parts, every, _shared_out(grads, len(parts)), strict=True):
            asked = asked_of(part, scan_forward, scan_backward)
            flags = named(BACKWARD, ctx.nest.nested_alone(given))
            pulls = pulls_of_forward(ctx)
            made = second(asked, asked.tangents(own), asked.wanted(flags), pulls)
            found += ctx.nest.taken_apart(in_order(BACKWARD, asked.by_name(made)))
        return None, *found

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> tuple[Any, ...]:
        found: list[Any] = []
        calls = _by_call(ctx.nest, tangents)
        for call, (part, own) in enumerate(zip(_parts(ctx, ctx.n_scan), calls, strict=True)):
            found += levels.without_level(
                partial(_tangents_of_gradients, ctx.nest, part, call), [*part.saved_tensors, *own]
            )
        return tuple(found)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> tuple[Any, Any]:
        return _mapped(batching.backward_rule, scan_backwards, info, in_dims, given)
