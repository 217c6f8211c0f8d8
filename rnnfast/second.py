"""The derivatives of a scan's backward: the gradients of its gradients, and their tangents.

Both are a scan of the tangent cell and its backward (``tangents``), but for the gradients of
gradients with grad_clip_time, which are no product of tangents: those are differentiated in plain
torch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers  # which torch does to all but Functions
from torch.autograd import Variable
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .autodiff import is_executed, jvp_by_vjps, vjp
from .batching import by_newer_vmap
from .ops import load_scan, take
from .problem import Cotangents, Gradients, Needs, Scan
from .schema import BACKWARD, named
from .scratch import limited_gradients, with_tensors
from .surroundings import forward_mode_is_innermost, of_older_vmap
from .tangents import Moved, Op, Tangents, is_differentiated, linearized_by_loop, moved


class Asked(NamedTuple):
    """What a scan_backward was asked for. ``inside``: of how many levels of forward mode that are
    its own; a jvp of ``transforms`` has left them."""

    scan: Scan
    cotangents: Cotangents
    needs: Needs
    backend: str
    forward: Op
    backward: Op
    inside: int = 0

    def tensors_with(self, along: Tangents, given: Any = None) -> list[Tensor | None]:
        """Those of the scan, of its cotangents, of ``along`` and of ``given``, their tangents."""
        every = [*self.scan.tensors, self.scan.lengths, self.scan.resets, *along.flat]
        for dy, dfinal, dtrace in (self.cotangents, given or (None, None, None)):
            every += [dy, *(dfinal or []), *(dtrace or [])]
        return every

    def tangents(self, grads: Sequence[Any]) -> Tangents:
        """What came in for each gradient that was made, as the scan's tensors are."""
        rest, needs = list(grads), self.needs
        (input,) = take(rest, 1)
        n_states, n_weights = len(self.scan.states), len(self.scan.weights)
        states = take(rest, n_states) if needs.states else [None] * n_states
        weights = rest if needs.weights else [None] * n_weights
        return Tangents(input if needs.input else None, states, weights)

    def wanted(self, flags: dict[str, Any]) -> tuple[bool, ...]:
        """Of which tensors of the scan gradients are wanted, by what is said of each argument of
        scan_backward: of states and of weights, all or none."""
        states, weights = any(flags["states"]), any(flags["weights"])
        of_each = [states] * len(self.scan.states) + [weights] * len(self.scan.weights)
        return bool(flags["input"]), *of_each

    def by_name(self, found: Second) -> dict[str, Any]:
        """``found`` by the names of scan_backward's arguments."""
        tensors, (dy, dfinal, dtrace) = list(found.tensors), found.cotangents
        (input,), states = take(tensors, 1), take(tensors, len(self.scan.states))
        return {
            "input": input,
            "states": states,
            "weights": tensors,
            "dy": None if self.cotangents.dy is None else dy,
            "dfinal": dfinal,
            "dtrace": dtrace,
        }


class Second(NamedTuple):
    """Gradients of a scan's tensors, and of the cotangents that its backward was given."""

    tensors: list[Tensor | None]
    cotangents: Any  # as Cotangents


def asked_of(ctx: Any, forward: Op, backward: Op) -> Asked:
    """Of what ``ops.set_backward`` left on ``ctx``; by scan_forward and scan_backward."""
    scan, rest = load_scan(ctx, unwrap_dead_wrappers(tuple(ctx.saved_tensors)))
    dy = take(rest, 1)[0] if ctx.has_dy else None
    dfinal = take(rest, len(scan.states))
    cotangents = Cotangents(dy, dfinal, rest)
    return Asked(scan, cotangents, ctx.needs, ctx.form.backend, forward, backward)


class Pulls:
    """What the node of a scan's forward is left by that of its backward: scans of tangents that it
    is to go back through together with its own results, instead of once for each. By the run of
    torch's engine, to which it belongs: what one that ended between the two had left goes with it.
    The node must not hold it, since what is left leads back to the node."""

    def __init__(self) -> None:
        self._left: dict[int, weakref.ref[_Left]] = {}

    def leave(self, run: Moved, cotangents: Cotangents) -> None:
        task = torch._C._current_graph_task_id()
        known = self._left.get(task)
        left = None if known is None else known()
        if left is None:
            left = _Left()
            self._left = {k: r for k, r in self._left.items() if r() is not None}
            self._left[task] = weakref.ref(left)
            # what is to be done at the end of a run is kept as long as that, however it ends
            Variable._execution_engine.queue_callback(partial(_Left.clear, left))
        left.append((run, cotangents))

    def take(self) -> list[tuple[Moved, Cotangents]]:
        known = self._left.pop(torch._C._current_graph_task_id(), None)
        left = None if known is None else known()
        if left is None:
            return []
        found = list(left)
        left.clear()
        return found


class _Left(list[Any]):
    """Of one run; a list that can be referred to weakly."""


def pulls_of_forward(ctx: Any) -> Pulls | None:
    """Those of the node of the forward that ``ctx``, of a scan_backward, is of: it made the output,
    its first, and torch's engine comes to it after this one and takes its gradients to the same
    places."""
    nest, nodes = ctx.nest, ctx.next_functions
    if len(ctx.parts) > 1 or len(nodes) != nest.size or torch._C._current_graph_task_id() < 0:
        return None
    if torch._C._are_functorch_transforms_active() or forward_mode_is_innermost():
        return None
    places = named(BACKWARD, nest.nested_alone(nodes))
    node, at = places["y"]
    pulls: Pulls | None = getattr(node, "pulls", None)
    if pulls is None or at != 0 or not is_executed(node):
        return None
    known = {None, *(place for place, _ in node.next_functions)}
    own = {place for place, _ in (places["input"], *places["weights"])}
    for place, _ in places["states"]:  # of a layer's the scan has views
        own |= {place} if place in known else {behind for behind, _ in place.next_functions}
    return pulls if own <= known else None


def pulled_together(
    left: Sequence[tuple[Moved, Cotangents]],
    incoming: Cotangents,
    needs: Needs,
    forward: Op,
    backward: Op,
) -> Gradients:
    """The gradients of a scan by those of its results, ``incoming``, and what ``Pulls`` had, of
    which there is something."""
    scan = left[0][0].scan
    value: Cotangents | None = incoming
    of_each = [needs.states] * len(scan.states) + [needs.weights] * len(scan.weights)
    totals: list[Tensor | None] = [None] * (1 + len(of_each))
    for run, cotangents in left:
        made = run.pulled(cotangents, value, [needs.input, *of_each], forward, backward)
        pairs = zip(totals, made, strict=True)
        totals = [d if t is None else t if d is None else t + d for t, d in pairs]
        value = None
    found: Any = totals
    (dinput,), dstates = take(found, 1), take(found, len(scan.states))
    return Gradients(dinput, dstates, found)


def second(
    asked: Asked, along: Tangents, wanted: tuple[bool, ...], pulls: Pulls | None = None
) -> Second:
    """The gradient of the sum of ``along`` times the gradients that were asked for. ``wanted``:
    of which tensors of the scan. ``pulls``: may be left these, which are then not made here."""
    if all(d is None for d in along.flat):
        nothing = [[None] * len(given) for given in asked.cotangents[1:]]
        return Second([None] * len(wanted), (None, *nothing))
    if any(map(of_older_vmap, asked.tensors_with(along))):
        return by_newer_vmap(partial(second, wanted=wanted), asked, along)
    if asked.needs.groups:
        return _second_by_group(asked, along, wanted)
    if asked.scan.options.grad_clip_time != 0:
        return _second_limited(asked, along, wanted)
    scan, cotangents = asked.scan, asked.cotangents
    kept = any(wanted)
    run = moved(
        scan, along, asked.backend, asked.forward, values=kept and pulls is not None, kept=kept
    )
    if run is None:
        return _second_by_loop(asked, along, wanted)
    tensors: list[Tensor | None] = [None] * len(wanted)
    if kept and pulls is not None:
        pulls.leave(run, cotangents)
    elif kept:
        tensors = run.pulled(cotangents, None, wanted, asked.forward, asked.backward)
    return Second(tensors, Cotangents(*run.results().tangent))


def _second_by_loop(asked: Asked, along: Tangents, wanted: tuple[bool, ...]) -> Second:
    scan, (dy, dfinal, dtrace) = asked.scan, asked.cotangents
    places = [k for k, on in enumerate(wanted) if on]

    def run(*primals: Tensor) -> tuple[Tensor, ...]:
        own = with_tensors(scan, dict(zip(places, primals, strict=True)))
        y, final, trace = linearized_by_loop(own, along).tangent
        return (y, *final, *trace)

    tensors: list[Tensor | None] = [None] * len(wanted)
    if places:
        flat, back = vjp(run, [scan.tensors[k] for k in places])
        y, *rest = flat
        found = back((torch.zeros_like(y) if dy is None else dy, *dfinal, *dtrace))
        for k, d in zip(places, found, strict=True):
            tensors[k] = d
    else:
        y, *rest = run()
    final = take(rest, len(scan.states))
    return Second(tensors, Cotangents(y, final, rest))


class _Limited:
    """The gradients that were asked for of a scan with grad_clip_time, which are no product of
    tangents: by the loop in plain torch, as a function of the scan's tensors at ``places`` and of
    the cotangents. ``made``: the gradients of which tensors it returns."""

    def __init__(self, asked: Asked, places: Sequence[int], made: Sequence[int]) -> None:
        scan, (dy, dfinal, dtrace), *_ = asked
        self.scan, self.places, self.made = scan, places, made
        if dy is None:
            dy = scan.states[0].new_zeros(*scan.input.shape[:2], scan.states[0].shape[-1])
        self.primals = [*(scan.tensors[k] for k in places), dy, *dfinal, *dtrace]

    def __call__(self, *primals: Tensor) -> tuple[Tensor, ...]:
        cotangents = list(primals)
        own = dict(zip(self.places, take(cotangents, len(self.places)), strict=True))
        found = limited_gradients(with_tensors(self.scan, own), cotangents)
        return tuple(d for k in self.made if (d := found[k]) is not None)


def _second_limited(asked: Asked, along: Tangents, wanted: tuple[bool, ...]) -> Second:
    places = [k for k, on in enumerate(wanted) if on]
    given = along.flat
    function = _Limited(asked, places, [k for k, d in enumerate(given) if d is not None])
    _, back = vjp(function, function.primals)
    found = list(back(tuple(d for d in given if d is not None)))
    tensors: list[Tensor | None] = [None] * len(wanted)
    for k, d in zip(places, take(found, len(places)), strict=True):
        tensors[k] = d
    (of_y,), dfinal = take(found, 1), take(found, len(asked.cotangents.dfinal))
    return Second(tensors, Cotangents(of_y, dfinal, found))


def _tangent_of_limited(
    asked: Asked, along: Tangents, given: Cotangents, made: Sequence[int]
) -> list[Tensor]:
    moving = along.flat
    places = [k for k, d in enumerate(moving) if d is not None]
    function = _Limited(asked, places, made)
    tangents = [*(moving[k] for k in places), given.dy, *given.dfinal, *given.dtrace]
    pairs = zip(tangents, function.primals, strict=True)
    full = [torch.zeros_like(t) if d is None else d for d, t in pairs]
    return [*jvp_by_vjps(function, function.primals, full)[1]]


def tangent_of_gradients(
    asked: Asked, along: Tangents, given: Cotangents, run: Moved | None = None
) -> tuple[Any, ...]:
    """The tangents of the gradients that were asked for, flat; ``given``: those of the cotangents,
    None where there is none. ``run``: the scan along these tangents, where it was run before, with
    its results.

    The gradient of <dy, y'> + <dy', y>, where ' marks tangents: that by x of <dy, F(x)> moves as
    the first does, and is linear in dy.
    """
    if any(map(of_older_vmap, asked.tensors_with(along, given))):
        return by_newer_vmap(tangent_of_gradients, asked, along, given)
    if asked.needs.groups:
        return _gradients_by_group(asked, along, given)
    scan, needs = asked.scan, asked.needs
    wanted = [
        needs.input,
        *(needs.states for _ in scan.states),
        *(needs.weights for _ in scan.weights),
    ]
    places = [k for k, on in enumerate(wanted) if on]
    clip = scan.options.grad_clip_time
    if is_limited_by_loop(asked, along, given):
        rest = _tangent_of_limited(asked, along, given, places)
    else:
        if run is not None:
            run = run.limited(clip)
        if run is None:
            ways = {"values": True, "kept": True}
            run = moved(scan, along, asked.backend, asked.forward, **ways, clip=clip)
        if run is None:
            by_loop = _tangent_by_loop if clip == 0 else _tangent_of_limited
            rest = by_loop(asked, along, given, places)
        else:
            ops, moving = (
                (asked.forward, asked.backward),
                filled_cotangents(given, asked.cotangents),
            )
            made = run.pulled(asked.cotangents, moving, wanted, *ops)
            rest = [d for d in made if d is not None]
    return (take(rest, 1)[0] if needs.input else None, *rest)


def is_limited_by_loop(asked: Asked, along: Tangents, given: Cotangents) -> bool:
    """Whether the tangents of a backward with grad_clip_time are the loop's, since they are
    differentiated: of the kernels' there is no derivative."""
    every = asked.tensors_with(along, given)
    return asked.scan.options.grad_clip_time != 0 and is_differentiated(every, asked.inside)


def filled_cotangents(given: Cotangents, like: Cotangents) -> Cotangents:
    """With zeros for what has no tangent, but for y."""
    (_, dfinal, dtrace), (_, final, trace) = given, like
    finals, series = (
        [torch.zeros_like(t) if d is None else d for d, t in zip(own or [], of, strict=False)]
        for own, of in ((dfinal, final), (dtrace, trace))
    )
    return Cotangents(given.dy, finals, series)


def _tangent_by_loop(
    asked: Asked, along: Tangents, given: Cotangents, places: Sequence[int]
) -> list[Tensor]:
    scan, (dy, dfinal, dtrace) = asked.scan, asked.cotangents

    def run(*primals: Tensor) -> tuple[Tensor, ...]:
        own = with_tensors(scan, dict(zip(places, primals, strict=True)))
        made = linearized_by_loop(own, along)
        return tuple(t for result in made for t in (result.y, *result.final, *result.trace))

    flat, back = vjp(run, [scan.tensors[k] for k in places])
    incoming = [dy, *dfinal, *dtrace, given.dy, *given.dfinal, *given.dtrace]
    pairs = zip(incoming, flat, strict=True)
    return [*back(tuple(torch.zeros_like(o) if d is None else d for d, o in pairs))]


# --- where each part of the batch has gradients of the weights of its own -------------------------


def _each_group(asked: Asked, run: Callable[..., Any], *more: tuple[Any, int]) -> Any:
    """What ``run`` returns for what was asked for of each group, stacked. ``more``: its further
    arguments, and the axis of their groups."""
    scan, (dy, dfinal, dtrace), needs, *_ = asked
    of_batch = [(scan.input, 1), (scan.states, 0), (scan.lengths, 0), (scan.resets, 1)]
    of_batch += [(dy, 1), (dfinal, 0), (dtrace, 1)]
    given = [(_apart(value, axis, needs.groups), axis) for value, axis in of_batch]
    given += more
    leaves, spec = tree_flatten([value for value, _ in given])
    axes = [axis for value, axis in given for _ in tree_leaves(value)]
    there = [k for k, leaf in enumerate(leaves) if leaf is not None]

    def one(*tensors: Tensor) -> Any:
        known = dict(zip(there, tensors, strict=True))
        every = tree_unflatten([known.get(k) for k in range(len(leaves))], spec)
        input, states, lengths, resets, dy, dfinal, dtrace, *rest = every
        own = asked._replace(
            scan=scan._replace(input=input, states=states, lengths=lengths, resets=resets),
            cotangents=Cotangents(dy, dfinal, dtrace),
            needs=needs._replace(groups=0),
        )
        return run(own, *rest)

    mapped = torch.vmap(one, in_dims=tuple(axes[k] for k in there))
    return mapped(*(leaves[k] for k in there))


def _second_by_group(asked: Asked, along: Tangents, wanted: tuple[bool, ...]) -> Second:
    groups = asked.needs.groups

    def run(own: Asked, input: Any, states: Any, weights: Any) -> Any:
        tensors, (dy, dfinal, dtrace) = second(own, Tangents(input, states, weights), wanted)
        made = {k: d for k, d in enumerate(tensors) if d is not None}
        return made, [] if dy is None else [dy], dfinal, dtrace

    more = ((_apart(along.input, 1, groups), 1), (_apart(along.states, 0, groups), 0))
    made, dy, dfinal, dtrace = _each_group(asked, run, *more, (along.weights, 0))
    last_state = len(asked.scan.states)
    tensors: list[Tensor | None] = [None] * len(wanted)
    for k, d in made.items():
        if k == 0:
            tensors[k] = _together(d, 1)
        else:
            tensors[k] = _together(d, 0) if k <= last_state else d.sum(0)
    of_y = _together(dy[0], 1) if dy else None
    of_trace = [_together(d, 1) for d in dtrace]
    return Second(tensors, Cotangents(of_y, [_together(d, 0) for d in dfinal], of_trace))


def _gradients_by_group(asked: Asked, along: Tangents, given: Cotangents) -> tuple[Any, ...]:
    groups, needs = asked.needs.groups, asked.needs

    def run(own: Asked, input: Any, states: Any, dy: Any, dfinal: Any, dtrace: Any) -> Any:
        tangents, cotangents = (
            along._replace(input=input, states=states),
            Cotangents(dy, dfinal, dtrace),
        )
        found = tangent_of_gradients(own, tangents, cotangents)
        return list(found if needs.input else found[1:])

    each = (
        (along.input, 1),
        (along.states, 0),
        (given.dy, 1),
        (given.dfinal, 0),
        (given.dtrace, 1),
    )
    made = _each_group(asked, run, *((_apart(value, axis, groups), axis) for value, axis in each))
    dinput = _together(made.pop(0), 1) if needs.input else None
    dstates = take(made, len(asked.scan.states)) if needs.states else []
    return (dinput, *(_together(d, 0) for d in dstates), *made)


def _apart(value: Any, axis: int, groups: int) -> Any:
    """[…, B, …] → […, groups, B/groups, …], of each tensor of a list."""
    if isinstance(value, (list, tuple)):
        return [_apart(v, axis, groups) for v in value]
    return None if value is None else value.unflatten(axis, (groups, value.shape[axis] // groups))


def _together(value: Tensor, axis: int) -> Tensor:
    """[groups, …, B/groups, …] → […, B, …]."""
    return value.movedim(0, axis).flatten(axis, axis + 1)
