"""The custom ops ``rnnfast::scan_forward`` and ``rnnfast::scan_backward``.

One op is one direction of one layer, whatever the cell, the device or the backend. Here stand their
kernels, fake kernels and autograd formulas (``batching`` has the rules for vmap); no cell is known
by name here.

scan_backward, and both under a transform that takes derivatives (torch.func's grad and jvp,
forward-mode AD), are differentiated by ``nodes``, which registers their kernels for autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl
from torch.utils._pytree import tree_leaves

from . import onnx_export
from .autocast import without_autocast
from .backends import registry
from .backends.base import Backend
from .cells import CELLS
from .checks import check_metadata, check_values
from .problem import (
    Cotangents,
    Gradients,
    Needs,
    Options,
    Saved,
    Scan,
    ScanResult,
    changed,
    problem_of,
)
from .schema import BACKWARD, FORWARD, in_order, lib, named, needs_among, pack, scan_of
from .surroundings import differentiating

# --- what runs ---------------------------------------------------------------------------------


def run_forward(*args: Any) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """scan_forward, below autograd."""
    return run_forwards([args])[0]


def run_forwards(calls: Sequence[Sequence[Any]]) -> list[Any]:
    """Calls that are alike but for their tensors."""
    given = [named(FORWARD, args) for args in calls]
    scans = [scan_of(one) for one in given]
    for scan in scans:
        check_metadata(scan)
        check_values(scan)
    # all transforms are above, though a level of forward mode still shows
    problem = changed(problem_of(scans[0]), transformed=False, dual=False)
    chosen = registry.select(problem, given[0]["backend"])
    with without_autocast(scans[0].input.device.type):
        made = chosen.forward_members(scans)
    return [
        (_own(y), [_own(s) for s in final], [_own(t) for t in trace], saved)
        for (y, final, trace), saved in made
    ]


def _own(tensor: Tensor) -> Tensor:
    """Contiguous and no view: outputs of an op share no memory and have known strides."""
    if tensor._is_view():
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor.contiguous()


def run_backward(*args: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """scan_backward, below autograd."""
    return run_backwards([args])[0]


def run_backwards(calls: Sequence[Sequence[Any]]) -> list[Any]:
    """Calls that are alike but for their tensors."""
    given = [named(BACKWARD, args) for args in calls]
    scans = [scan_of(one) for one in given]
    chosen = registry.named(given[0]["backend"], problem_of(scans[0]))
    pairs = zip(given, scans, strict=True)
    saved = [Saved(one["y"], one["trace"], _saved(one, scan, chosen)) for one, scan in pairs]
    cotangents = [Cotangents(one["dy"], one["dfinal"], one["dtrace"]) for one in given]
    needs = [needs_among(one) for one in given]
    with without_autocast(scans[0].input.device.type):
        made = chosen.backward_members(scans, saved, cotangents, needs)
    return [_as_op(found, outputs.y) for found, outputs in zip(made, saved, strict=True)]


def _saved(given: Mapping[str, Any], scan: Scan, backend: Backend) -> list[Tensor]:
    """What the backend saves; where a scan along tangents was forward, that left none, it runs."""
    found: list[Tensor] = given["saved"]
    if found or not backend.saved_like(problem_of(scan)):
        return found
    return backend.forward(scan)[1]


def _as_op(made: Gradients, y: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    dinput = y.new_empty(0) if made.dinput is None else _own(made.dinput)
    return (
        dinput,
        [_own(d) for d in made.dstates or []],
        [_own(d) for d in made.dweights or []],
    )


lib.impl("scan_forward", run_forward, "CompositeExplicitAutograd")
lib.impl("scan_backward", run_backward, "CompositeExplicitAutograd")


# --- what a tracer sees ------------------------------------------------------------------------


@torch.library.register_fake("rnnfast::scan_forward", lib=lib)
def _fake_forward(*args: Any) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    given = named(FORWARD, args)
    scan = scan_of(given)
    check_metadata(scan)
    problem = problem_of(scan)
    T, B, H, P = problem.T, problem.B, problem.H, problem.P
    new = scan.states[0].new_empty
    final = [new(B, width) for width in problem.spec.state_widths(P, H)]
    trace = [new(T, B, H) for _ in final[1:]] if scan.options.all_states else []
    saved = []
    if scan.options.training:
        likes = registry.named(given["backend"], problem).saved_like(problem)
        saved = [new(shape, dtype=dtype) for shape, dtype in likes]
    return new(T, B, P), final, trace, saved


@torch.library.register_fake("rnnfast::scan_backward", lib=lib)
def _fake_backward(*args: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    given = named(BACKWARD, args)
    scan, needs = scan_of(given), needs_among(given)
    dinput = _contiguous_like(scan.input) if needs.input else scan.states[0].new_empty(0)
    dstates = [_contiguous_like(s) for s in scan.states] if needs.states else []
    dweights = []
    if needs.weights:
        apart = (needs.groups,) if needs.groups else ()
        dweights = [w.new_empty(*apart, *w.shape) for w in scan.weights]
    return dinput, dstates, dweights


def _contiguous_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


# --- autograd ----------------------------------------------------------------------------------


class _Form(NamedTuple):
    """A scan without its tensors: what is left on ``ctx`` beside the saved tensors."""

    cell: str
    kind: str
    n_states: int
    n_weights: int
    has_lengths: bool
    has_resets: bool
    options: Options
    backend: str


def save_scan(ctx: Any, scan: Scan, backend: str) -> list[Tensor]:
    """Leaves what is not a tensor on ``ctx`` and returns the tensors, to be saved."""
    ctx.form = _Form(
        scan.cell,
        scan.kind,
        len(scan.states),
        len(scan.weights),
        scan.lengths is not None,
        scan.resets is not None,
        scan.options,
        backend,
    )
    return [*scan.tensors, *(t for t in (scan.lengths, scan.resets) if t is not None)]


def load_scan(ctx: Any, tensors: Sequence[Tensor]) -> tuple[Scan, list[Tensor]]:
    """The scan again, and the saved tensors that follow it."""
    form: _Form = ctx.form
    rest = list(tensors)
    (input,), states = take(rest, 1), take(rest, form.n_states)
    weights = take(rest, form.n_weights)
    lengths = take(rest, 1)[0] if form.has_lengths else None
    resets = take(rest, 1)[0] if form.has_resets else None
    scan = Scan(form.cell, form.kind, input, states, weights, lengths, resets, form.options)
    return scan, rest


def take(items: list[Any], n: int) -> list[Any]:
    """The first ``n``, which are removed."""
    taken = items[:n]
    del items[:n]
    return taken


def saved_tensors(ctx: Any) -> list[Tensor]:
    """What forward saved. RuntimeError, with the way out, where an output was changed since."""
    try:
        return list(ctx.saved_tensors)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(
            f"{error} rnnfast's recurrent layers save their input, weights and output for "
            "backward. If it was the output that an operation in place changed before backward() "
            "(as y.relu_() or y += 1 do), use one that is not in place (y = y.relu()), or change "
            "y.clone()."
        ) from None


def results_of(args: Sequence[Any], flat: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """(y, final, trace, saved) of what scan_forward made of ``args``."""
    given, rest = named(FORWARD, args), list(flat)
    count = len(CELLS[given["cell"]].states)
    (y,), final = take(rest, 1), take(rest, count)
    return y, final, take(rest, count - 1 if given["all_states"] else 0), rest


def gradients_of(args: Sequence[Any], flat: Sequence[Any]) -> tuple[Any, Any, Any]:
    """(dinput, dstates, dweights) of what scan_backward made of ``args``."""
    given, rest = named(BACKWARD, args), list(flat)
    (dinput,) = take(rest, 1)
    return dinput, take(rest, len(given["states"]) if needs_among(given).states else 0), rest


def set_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> list[Tensor]:
    """Returns the tensors of the scan, which are the first of those saved."""
    given = named(FORWARD, inputs)
    y, _, trace, saved = output
    ctx.counts = (len(trace), len(saved))
    ctx.set_materialize_grads(False)
    tensors = save_scan(ctx, scan_of(given), given["backend"])
    ctx.save_for_backward(*tensors, y, *trace, *saved)
    return tensors


def _forward_grad(ctx: Any, dy: Any, dfinal: Any, dtrace: Any, _: Any) -> tuple[Any, ...]:
    call = backward_call(ctx, ctx.needs_input_grad, dy, dfinal, dtrace)
    return call.as_forwards(torch.ops.rnnfast.scan_backward(*call.args))


class BackwardCall(NamedTuple):
    """A scan_backward that scan_forward's backward asks for, and for which gradients."""

    args: tuple[Any, ...]
    scan: Scan
    needs: Needs

    def as_forwards(self, found: Sequence[Any]) -> tuple[Any, ...]:
        """What it returned, as gradients of scan_forward's arguments."""
        names = ("input", "states", "weights")
        made = input_grads(self.needs, self.scan, *found)
        return in_order(FORWARD, dict(zip(names, made, strict=True)))


def backward_call(ctx: Any, flags: Any, dy: Any, dfinal: Any, dtrace: Any) -> BackwardCall:
    """``flags``: which arguments of scan_forward need gradients."""
    scan, rest = load_scan(ctx, saved_tensors(ctx))
    n_trace, n_saved = ctx.counts
    y, trace, saved = rest[0], rest[1 : 1 + n_trace], rest[1 + n_trace : 1 + n_trace + n_saved]
    wanted = named(FORWARD, flags)
    needs = needs_of(scan, wanted["input"], wanted["states"], wanted["weights"])
    dfinal = filled(dfinal, scan.states)  # which the final states are alike
    given = (dy, dfinal, filled(dtrace, trace), y, trace, saved, list(needs[:3]), 0)
    return BackwardCall((*pack(scan, ctx.form.backend), *given), scan, needs)


def needs_of(scan: Scan, input: bool, states: Any, weights: Any) -> Needs:
    """From what autograd says of each tensor."""
    return Needs(bool(input) and scan.kind != "tokens", any(states), any(weights))


def input_grads(
    needed: Needs, scan: Scan, dinput: Any, dstates: Any, dweights: Any
) -> tuple[Any, list[Any], list[Any]]:
    """What backward returned, laid out like what it is the gradient of, with None for what was not
    needed."""
    return (
        dinput.contiguous() if needed.input else None,
        [d.contiguous() for d in dstates] if needed.states else [None] * len(scan.states),
        [d.contiguous() for d in dweights] if needed.weights else [None] * len(scan.weights),
    )


def filled(grads: Any, like: list[Tensor]) -> list[Tensor]:
    """The gradients of a list of outputs, zeros where there are none."""
    if grads is None:
        grads = [None] * len(like)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(grads, like, strict=False)]


def set_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> list[Tensor]:
    """Returns the tensors that it saves."""
    given = named(BACKWARD, inputs)
    dy = given["dy"]
    ctx.has_dy, ctx.needs = dy is not None, needs_among(given)
    ctx.counts = (len(given["trace"]), len(given["saved"]))
    ctx.set_materialize_grads(False)
    cotangents = [*([dy] if dy is not None else []), *given["dfinal"], *given["dtrace"]]
    tensors = [*save_scan(ctx, scan_of(given), given["backend"]), *cotangents]
    ctx.save_for_backward(*tensors)
    return tensors


def alias(tensor: Tensor) -> Tensor:
    """A tensor of its own in the graph, so that one passed twice is not counted twice."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor


_record_forward = make_autograd_impl(
    torch.ops.rnnfast.scan_forward.default, Info(_forward_grad, set_forward)
)


def record_forward(keyset: Any, *args: Any) -> tuple[Any, ...]:
    """scan_forward for autograd, where no transform surrounds it (``nodes``)."""
    if onnx_export.exporting():
        return _without_saved(args, onnx_export.scan_as_nodes)
    found: tuple[Any, ...] = _record_forward(keyset, *args)
    return found


def _without_saved(args: tuple[Any, ...], run: Callable[[Scan], ScanResult]) -> tuple[Any, ...]:
    given = named(FORWARD, args)
    scan, saved = scan_of(given), list[Tensor]()
    if scan.options.training:  # nobody reads them, but a recorded graph takes them apart
        problem = problem_of(scan)
        likes = registry.named(given["backend"], problem).saved_like(problem)
        saved = [scan.input.new_empty(0) for _ in likes]
    return (*run(scan), saved)


def derivatives_of(args: tuple[Any, ...]) -> bool:
    """Whether a transform takes derivatives of these arguments."""
    if torch._C._are_functorch_transforms_active():
        return differentiating()
    if torch.autograd.forward_ad._current_level < 0:
        return False
    return any(is_dual(t) for t in tree_leaves(args) if isinstance(t, Tensor))


def is_dual(tensor: Tensor) -> bool:
    """Whether ``tensor`` carries a tangent of forward-mode AD."""
    return torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None
