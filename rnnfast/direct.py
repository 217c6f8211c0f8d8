"""The way of a scan in eager code: the backend called without the dispatcher.

The op (``rnnfast.ops``) is what a tracer sees. Its Python kernels and registered autograd cost some
hundred microseconds a call on a slow core, as much as a short scan itself, so eager code does the
same work in one autograd Function. Where the backward is itself to be differentiated, it goes
through the op, whose formula knows how.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backends.base import Backend, Cotangents, Gradients, Needs, Saved
from .ops import filled, input_grads, load_scan, needs_of, pack, save_scan
from .problem import Scan, ScanResult


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
    tensors = [t for scan in scans for t in _tensors(scan)]
    outputs = list(_Direct.apply(scans, backend, *tensors))
    results = []
    for scan in scans:
        (y,), final = _take(outputs, 1), _take(outputs, len(scan.states))
        results.append(ScanResult(y, final, _take(outputs, _n_trace(scan))))
    return results


def _tensors(scan: Scan) -> list[Tensor]:
    return [scan.input, *scan.states, *scan.weights]


def _n_trace(scan: Scan) -> int:
    return len(scan.states) - 1 if scan.options.all_states else 0


def _take(items: list[Any], n: int) -> list[Any]:
    """The first ``n``, which are removed."""
    taken = items[:n]
    del items[:n]
    return taken


class _Part:
    """One scan in the context of a call: all but its tensors."""

    form: Any  # as save_scan leaves it
    n_kept: int  # tensors that it saved


class _Job(NamedTuple):
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
        kept, incoming = list(ctx.saved_tensors), list(grads)
        flags = list(ctx.needs_input_grad[2:])
        jobs = [_job(part, _take(kept, part.n_kept), incoming, flags) for part in ctx.parts]
        # to be differentiated again, or mapped: the op has rules for both
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            found = [_by_op(job, ctx.backend.name) for job in jobs]
        else:
            found = ctx.backend.backward_all(*map(list, zip(*jobs, strict=True)))
        dtensors: list[Any] = []
        for job, gradients in zip(jobs, found, strict=True):
            dinput, dstates, dweights = input_grads(job.needs, job.scan, *gradients)
            dtensors += [dinput, *dstates, *dweights]
        return (None, None, *dtensors)


def _job(part: _Part, kept: list[Tensor], incoming: list[Any], flags: list[bool]) -> _Job:
    """Takes this scan's part off the gradients that came in and the flags of those wanted."""
    scan, rest = load_scan(part, kept)
    (y,), trace = _take(rest, 1), _take(rest, _n_trace(scan))
    (dy,), dfinal = _take(incoming, 1), filled(_take(incoming, len(scan.states)), scan.states)
    dtrace = filled(_take(incoming, len(trace)), trace)
    (input,), states = _take(flags, 1), _take(flags, len(scan.states))
    needs = needs_of(scan, input, states, _take(flags, len(scan.weights)))
    return _Job(scan, Saved(y, trace, rest), Cotangents(dy, dfinal, dtrace), needs)


def _by_op(job: _Job, backend: str) -> Gradients:
    scan, (y, trace, saved), (dy, dfinal, dtrace), needs = job
    args = (*pack(scan, backend), dy, dfinal, dtrace, y, trace, saved, list(needs))
    return Gradients(*torch.ops.rnnfast.scan_backward(*args))
