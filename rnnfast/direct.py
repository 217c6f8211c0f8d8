"""The way of a scan in eager code: the backend called without the dispatcher.

The op (``rnnfast.ops``) is what a tracer sees. Its Python kernels and registered autograd cost some
hundred microseconds a call on a slow core, as much as a short scan itself, so eager code does the
same work in one autograd Function. Where the backward is itself to be differentiated or mapped, it
goes by ``transforms``, which has rules for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import transforms
from .autocast import without_autocast
from .autodiff import differentiate, wanted_inputs
from .backends.base import Backend
from .ops import alias, filled, input_grads, load_scan, needs_of, save_scan, saved_tensors, take
from .problem import Cotangents, Gradients, Needs, Saved, Scan, ScanResult
from .schema import pack
from .second import Pulls, pulled_together
from .surroundings import of_older_vmap, wrapped


def run_direct(scan: Scan, backend: Backend) -> ScanResult:
    """Runs ``scan`` on a backend that is not composite; differentiable if ``scan`` is training."""
    return run_directions([scan], backend)[0]


def run_directions(scans: Sequence[Scan], backend: Backend) -> list[ScanResult]:
    """``run_direct`` of the directions of a layer at once, which the backend has to be able to do.

    The scans are alike but for their tensors and ``reverse``.
    """
    if not scans[0].options.training:
        with torch.no_grad():
            return [result for result, _ in backend.forward_all(scans)]
    tensors = [t for scan in scans for t in scan.tensors]
    outputs = list(_Direct.apply(scans, backend, *tensors))
    results = []
    for scan in scans:
        (y,), final = take(outputs, 1), take(outputs, len(scan.states))
        results.append(ScanResult(y, final, take(outputs, _n_trace(scan))))
    return results


def run_whole(scans: Sequence[Scan], backend: Backend) -> list[ScanResult]:
    """Layers on top of one another, bottom to top, which the backend runs in one go.

    The ``input`` of all but the first is not read. Of the layers below the top one only the final
    states may be used: their ``y`` is not differentiable.
    """
    if not scans[0].options.training:
        with torch.no_grad():
            return [result for result, _ in backend.forward_whole(scans)]
    tensors = [scans[0].input, *(t for scan in scans for t in (*scan.states, *scan.weights))]
    y, *outputs = _Whole.apply(scans, backend, *tensors)
    return [ScanResult(y, take(outputs, len(scan.states)), []) for scan in scans]


def _n_trace(scan: Scan) -> int:
    return len(scan.states) - 1 if scan.options.all_states else 0


class _Part:
    """One scan in the context of a call: all but its tensors."""

    form: Any  # as save_scan leaves it
    n_kept: int  # tensors that it saved


class Job(NamedTuple):
    """One scan's backward."""

    scan: Scan
    saved: Saved
    cotangents: Cotangents
    needs: Needs


class _Direct(torch.autograd.Function):
    """(scans, backend, input, *states, *weights, of each scan) -> (y, *final states, *trace, of
    each). The tensors are those of ``scans``, passed apart for autograd to see."""

    @staticmethod
    def forward(ctx: Any, scans: list[Scan], backend: Backend, *_: Tensor) -> tuple[Tensor, ...]:
        ctx.backend, ctx.parts = backend, []
        if len(scans) == 1:
            ctx.pulls = Pulls()
        kept: list[Tensor] = []
        outputs: list[Tensor] = []
        for scan, ((y, final, trace), saved) in zip(scans, backend.forward_all(scans), strict=True):
            part = _Part()
            own = [*save_scan(part, scan, backend.name), y, *trace, *saved]
            part.n_kept = len(own)
            ctx.parts.append(part)
            kept += own
            outputs += [y, *final, *trace]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        kept, incoming = saved_tensors(ctx), list(grads)
        flags = wanted_inputs(ctx, 2)
        jobs = [_job(part, take(kept, part.n_kept), incoming, flags) for part in ctx.parts]
        if len(jobs) == 1 and (left := ctx.pulls.take()):
            found = [together(left, jobs[0], ctx.backend.name)]
        elif is_differentiated(grads):
            found = [differentiable(job, ctx.backend.name) for job in jobs]
        else:
            with without_autocast(jobs[0].scan.input.device.type):  # of whoever calls backward()
                found = ctx.backend.backward_all(*map(list, zip(*jobs, strict=True)))
        dtensors: list[Any] = []
        for job, gradients in zip(jobs, found, strict=True):
            dinput, dstates, dweights = input_grads(job.needs, job.scan, *gradients)
            dtensors += [dinput, *dstates, *dweights]
        return (None, None, *dtensors)


class _Whole(torch.autograd.Function):
    """(scans, backend, input, *states, *weights, of each layer) -> (y of the top one, *final
    states, of each layer)."""

    @staticmethod
    def forward(ctx: Any, scans: list[Scan], backend: Backend, *_: Tensor) -> tuple[Tensor, ...]:
        ctx.backend, ctx.parts = backend, []
        kept: list[Tensor] = []
        finals: list[Tensor] = []
        below = scans[0].input
        outputs = backend.forward_whole(scans)
        for scan, ((y, final, _trace), saved) in zip(scans, outputs, strict=True):
            part = _Part()
            own = [*save_scan(part, scan._replace(input=below), backend.name), y, *saved]
            part.n_kept = len(own)
            ctx.parts.append(part)
            kept += own
            finals += final
            below = y
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept)
        return (below, *finals)

    @staticmethod
    def backward(ctx: Any, dy: Any, *grads: Any) -> tuple[Any, ...]:
        kept, incoming = saved_tensors(ctx), list(grads)
        flags = wanted_inputs(ctx, 2)
        jobs: list[Job] = []
        for level, part in enumerate(ctx.parts):
            top = level + 1 == len(ctx.parts)
            own = [dy if top else None, *take(incoming, part.form.n_states)]
            if level > 0:
                flags.insert(0, True)
            jobs.append(_job(part, take(kept, part.n_kept), own, flags))
        if is_differentiated((dy, *grads)):
            found = _whole_differentiable(jobs, ctx.backend.name)
        else:
            with without_autocast(jobs[0].scan.input.device.type):
                found = ctx.backend.backward_whole(*map(list, zip(*jobs, strict=True)))
        dtensors: list[Any] = []
        for level, (job, gradients) in enumerate(zip(jobs, found, strict=True)):
            dinput, dstates, dweights = input_grads(job.needs, job.scan, *gradients)
            dtensors += [*([dinput] if level == 0 else []), *dstates, *dweights]
        return (None, None, *dtensors)


def _whole_differentiable(jobs: Sequence[Job], backend: str) -> list[Gradients]:
    """The gradients of layers on top of one another, bottom to top, to be differentiated: forward
    is run anew, so that what lies between the layers has its part in that."""
    outputs: list[Tensor] = []
    primals: list[Tensor] = []
    with torch.enable_grad():
        y = alias(jobs[0].scan.input)
        primals.append(y)
        for job in jobs:
            states = [alias(s) for s in job.scan.states]
            weights = [alias(w) for w in job.scan.weights]
            scan = job.scan._replace(input=y, states=states, weights=weights)
            y, final, _, _ = transforms.scan_forward(*pack(scan, backend))
            outputs += final
            primals += [*states, *weights]
        cotangents = [d for job in jobs for d in job.cotangents.dfinal]
        if (dy := jobs[-1].cotangents.dy) is not None:
            outputs.append(y)
            cotangents.append(dy)
        grads = differentiate(outputs, primals, cotangents, create_graph=True)
    return _of_layers(
        jobs,
        [g if g is not None else torch.zeros_like(p) for g, p in zip(grads, primals, strict=True)],
    )


def _of_layers(jobs: Sequence[Job], grads: list[Tensor]) -> list[Gradients]:
    """From those of the input and of each layer's states and weights."""
    (dinput,) = take(grads, 1)
    found = []
    for job in jobs:
        dstates = take(grads, len(job.scan.states))
        found.append(Gradients(dinput, dstates, take(grads, len(job.scan.weights))))
    return found


def _job(part: _Part, kept: list[Tensor], incoming: list[Any], flags: list[bool]) -> Job:
    """Takes this scan's part off the gradients that came in and the flags of those wanted."""
    scan, rest = load_scan(part, kept)
    (y,), trace = take(rest, 1), take(rest, _n_trace(scan))
    (dy,), dfinal = take(incoming, 1), filled(take(incoming, len(scan.states)), scan.states)
    dtrace = filled(take(incoming, len(trace)), trace)
    (input,), states = take(flags, 1), take(flags, len(scan.states))
    needs = needs_of(scan, input, states, take(flags, len(scan.weights)))
    return Job(scan, Saved(y, trace, rest), Cotangents(dy, dfinal, dtrace), needs)


def is_differentiated(grads: Sequence[Any]) -> bool:
    """Whether backward is to be differentiated again, or mapped, or is of no plain tensors."""
    return (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or any(of_older_vmap(g) or wrapped(g) for g in grads)
    )


def differentiable(job: Job, backend: str) -> Gradients:
    scan, (y, trace, saved), (dy, dfinal, dtrace), needs = job
    args = (*pack(scan, backend), dy, dfinal, dtrace, y, trace, saved, list(needs[:3]), 0)
    # for which only an op has a rule
    by_op = any(of_older_vmap(d) or wrapped(d) for d in (dy, *dfinal, *dtrace))
    run = torch.ops.rnnfast.scan_backward if by_op else transforms.scan_backward
    return Gradients(*run(*args))


def together(left: Any, job: Job, _: str) -> Gradients:
    """By one pass back through the scan of tangents that the scan's backward left (``Pulls``)."""
    ops = (transforms.scan_forward, transforms.scan_backward)
    return pulled_together(left, job.cotangents, job.needs, *ops)
