"""The scratch loop: one direction of one layer, step by step in plain torch.

It is the specification and the oracle of every kernel, and the backend ``reference``. Only
differentiable, functional torch calls, so that autograd of any order, vmap and forward-mode AD work
through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .autodiff import jvp_by_vjps, vjp
from .cells import CellSpec, StepWeights
from .levels import without_level
from .problem import Options, Scan, ScanResult, wide
from .products.projection import project_input
from .rules import alive, without_padding
from .surroundings import forward_levels, within_vmap
from .time_clip import limited


def scratch_scan(scan: Scan) -> ScanResult:
    """Runs ``scan`` with the cell's step in a loop over T.

    16-bit storage is computed in float32 and rounded once, at the end.

    Semantics of the options: from ``lengths[b]`` on, sequence b's outputs (and traced states) are 0
    and its state is frozen, in both directions, so a reversed scan starts at its own last step.
    Where ``resets[t, b]``, the state is replaced by 0 before x[t] is consumed. What stands in the
    input past an end is never read, be it NaN or a token out of range. ``grad_clip_time`` limits
    the gradient of the states that a step begins with; what is limited so is differentiated as any
    function is.
    """
    if scan.options.grad_clip_time != 0:
        return _limited_scan(scan)
    storage = scan.dtype
    result = scratch_loop(without_padding(scan).to(wide(storage)))
    return result if storage == wide(storage) else result.to(storage)


def one_step(
    spec: CellSpec,
    gx: Tensor,
    states: tuple[Tensor, ...],
    weights: StepWeights,
    live: Tensor | None,
    reset: Tensor | None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(the states after a step from ``gx`` [B, G*H], what the outputs show of them).

    ``live``, ``reset``: bool [B], at this step.
    """
    before = states
    if reset is not None:
        keep = reset.logical_not().unsqueeze(-1)
        states = tuple(torch.where(keep, s, torch.zeros_like(s)) for s in states)
    states = spec.step(gx, states, weights)
    if live is None:
        return states, states
    live = live.unsqueeze(-1)
    shown = tuple(torch.where(live, s, torch.zeros_like(s)) for s in states)
    frozen = tuple(torch.where(live, s, old) for s, old in zip(states, before, strict=False))
    return frozen, shown


def scratch_loop(scan: Scan) -> ScanResult:
    """The loop itself, every step in the dtype of the tensors; without ``grad_clip_time``."""
    weights = scan.step_weights()
    gx = project_input(scan).unbind(0)
    live_at = alive(scan)
    states = tuple(scan.states)
    visited: list[tuple[Tensor, ...]] = []
    for t in _order(scan):
        live = None if live_at is None else live_at[t]
        reset = None if scan.resets is None else scan.resets[t]
        states, shown = one_step(scan.spec, gx[t], states, weights, live, reset)
        visited.append(shown)
    if scan.options.reverse:
        visited.reverse()
    y = torch.stack([shown[0] for shown in visited])
    trace = []
    if scan.options.all_states:
        trace = [torch.stack(series) for series in list(zip(*visited, strict=False))[1:]]
    return ScanResult(y, list(states), trace)


def _order(scan: Scan) -> range:
    T = scan.input.shape[0]
    return range(T - 1, -1, -1) if scan.options.reverse else range(T)


# --- grad_clip_time -------------------------------------------------------------------------------


def _without_limit(scan: Scan) -> Scan:
    return scan._replace(options=scan.options._replace(grad_clip_time=0.0))


def _limited_scan(scan: Scan) -> ScanResult:
    n_states = len(scan.states)
    reverse, all_states, _, _, clip = scan.options
    form = (scan.cell, scan.kind, n_states, reverse, all_states, clip)
    y, *rest = _Limited.apply(*form, scan.lengths, scan.resets, *scan.tensors)
    return ScanResult(y, rest[:n_states], rest[n_states:])


def _scan_of(
    cell: str,
    kind: str,
    n_states: int,
    reverse: bool,
    all_states: bool,
    grad_clip_time: float,
    lengths: Tensor | None,
    resets: Tensor | None,
    input: Tensor,
    *tensors: Tensor,
) -> Scan:
    """Of what ``_Limited`` is given."""
    states, weights = list(tensors[:n_states]), list(tensors[n_states:])
    options = Options(reverse, all_states, grad_clip_time=grad_clip_time)
    return Scan(cell, kind, input, states, weights, lengths, resets, options)


class _Limited(torch.autograd.Function):
    """(what ``_scan_of`` takes) -> (y, *final, *trace), with ``limited_gradients`` for backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*given: Any) -> tuple[Tensor, ...]:
        scan = _scan_of(*given)
        y, final, trace = scratch_scan(_without_limit(scan))
        return (y, *final, *trace)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.form, tensors = inputs[:6], inputs[6:]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        found = limited_gradients(_scan_of(*ctx.form, *ctx.saved_tensors), grads)
        return (*(None for _ in range(8)), *found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        given = ctx.saved_tensors

        def run(tensors: Sequence[Any]) -> tuple[Tensor, ...]:
            scan = _scan_of(*ctx.form, *tensors[: len(given)])
            return linearized_loop(scan, tensors[len(given) :])[0]

        if within_vmap():  # which is inside of the level that this is the jvp of
            if forward_levels() > 1:
                raise NotImplementedError(
                    "forward mode twice over vmap of a layer with grad_clip_time: the scratch loop "
                    "would lose tangents; take one of the derivatives by reverse mode"
                )
            return run([*given, *tangents[8:]])
        # where torch has forward mode off, these tangents would have none at any other level
        found: Any = without_level(run, [*given, *tangents[8:]])
        return tuple(found)


def linearized_loop(
    scan: Scan, tangents: Sequence[Tensor | None]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The tangents of (y, *final, *trace) along those of ``scan.tensors``, and the results
    themselves. No limit enters either."""
    scan = _without_limit(scan)
    moving = [k for k, d in enumerate(tangents) if d is not None]

    def run(*primals: Tensor) -> tuple[Tensor, ...]:
        y, final, trace = scratch_scan(with_tensors(scan, dict(zip(moving, primals, strict=True))))
        return (y, *final, *trace)

    along = [d for d in tangents if d is not None]
    values, found = jvp_by_vjps(run, [scan.tensors[k] for k in moving], along)
    return found, values


def with_tensors(scan: Scan, changes: dict[int, Tensor]) -> Scan:
    """``scan`` with others among its tensors, by their place in ``scan.tensors``."""
    input, *rest = (changes.get(k, t) for k, t in enumerate(scan.tensors))
    count = len(scan.states)
    return scan._replace(input=input, states=rest[:count], weights=rest[count:])


def limited_gradients(scan: Scan, cotangents: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of ``scan.tensors``, those of the states limited between two steps, by
    differentiable calls. ``cotangents``: of y, the final states, the trace.

    The states are those of the loop without a limit, so that a derivative of these gradients is
    not limited a second time.
    """
    live_at, count = alive(scan), len(scan.states)
    moving = list(range(scan.kind == "tokens", len(scan.tensors)))
    given, back_to_given = vjp(
        lambda *own: _given_to_steps(with_tensors(scan, dict(zip(moving, own, strict=True)))),
        [scan.tensors[k] for k in moving],
    )
    gx, states, weights = given[0], list(given[1 : 1 + count]), given[1 + count :]
    backs = []
    for t in _order(scan):
        news, back = vjp(_step_of(scan, t), [gx[t], *states, *weights])
        states = list(news) if live_at is None else _chosen(live_at[t], news, states)
        backs.append((t, back))
    dy, *rest = (d.to(gx.dtype) for d in cotangents)
    dstates, shown = rest[:count], [dy, *rest[count:]]
    dgx, dweights = list(gx.unbind(0)), [torch.zeros_like(w) for w in weights]
    for t, back in reversed(backs):
        dnews = [d + s[t] for d, s in zip(dstates, shown, strict=False)]
        dnews += dstates[len(dnews) :]
        if live_at is not None:
            dnews = _chosen(live_at[t], dnews, [torch.zeros_like(d) for d in dnews])
        dgx[t], *found = back(tuple(dnews))
        clip = scan.options.grad_clip_time
        handed = [limited(d, clip) if clip != 0 else d for d in found[:count]]
        dstates = handed if live_at is None else _chosen(live_at[t], handed, dstates)
        dweights = [w + d for w, d in zip(dweights, found[count:], strict=True)]
    made = back_to_given((torch.stack(dgx), *dstates, *dweights))
    return [None, *made] if scan.kind == "tokens" else [*made]


def _given_to_steps(scan: Scan) -> tuple[Tensor, ...]:
    """(gx, *states, *weights) that the steps take, in the dtype that they compute in."""
    own = without_padding(scan).to(wide(scan.dtype))
    named = zip(own.spec.weight_names(own.kind, own.has_bias), own.weights, strict=True)
    weights = [w for name, w in named if name not in ("w_ih", "b_ih")]
    return (project_input(own), *own.states, *weights)


def _step_of(scan: Scan, t: int) -> Callable[..., tuple[Tensor, ...]]:
    """(gx[t], *states, *weights) -> the new states."""
    reset, count = None if scan.resets is None else scan.resets[t], len(scan.states)

    def step(gx: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        weights = scan._replace(kind="gates", weights=list(rest[count:])).step_weights()
        return one_step(scan.spec, gx, rest[:count], weights, None, reset)[0]

    return step


def _chosen(live: Tensor, those: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    return [torch.where(live.unsqueeze(-1), a, b) for a, b in zip(those, others, strict=True)]
