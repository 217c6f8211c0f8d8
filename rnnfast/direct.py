"""The way of a scan in eager code: the backend called without the dispatcher.

The op (``rnnfast.ops``) is what a tracer sees. Its Python kernels and registered autograd cost some
hundred microseconds a call on a slow core, as much as a short scan itself, so eager code does the
same work in one autograd Function. Where the backward is itself to be differentiated, it goes
through the op, whose formula knows how.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .backends.base import Backend, Cotangents, Saved
from .ops import filled, input_grads, load_scan, needs_of, pack, save_scan
from .problem import Scan, ScanResult


def run_direct(scan: Scan, backend: Backend) -> ScanResult:
    """Runs ``scan`` on a backend that is not composite; differentiable if ``scan`` is training."""
    if not scan.options.training:
        with torch.no_grad():
            return backend.forward(scan)[0]
    n_states = len(scan.states)
    y, *rest = _Direct.apply(scan, backend, scan.input, *scan.states, *scan.weights)
    return ScanResult(y, rest[:n_states], rest[n_states:])


class _Direct(torch.autograd.Function):
    """(scan, backend, input, *states, *weights) -> (y, *final states, *trace).

    The tensors are those of ``scan``, passed apart for autograd to see.
    """

    @staticmethod
    def forward(ctx: Any, scan: Scan, backend: Backend, *tensors: Tensor) -> tuple[Tensor, ...]:
        (y, final, trace), saved = backend.forward(scan)
        ctx.backend = backend
        ctx.counts = (len(trace), len(saved))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*save_scan(ctx, scan, backend.name), y, *trace, *saved)
        return (y, *final, *trace)

    @staticmethod
    def backward(ctx: Any, dy: Any, *others: Any) -> tuple[Any, ...]:
        scan, rest = load_scan(ctx, ctx.saved_tensors)
        n_states, (n_trace, n_saved) = len(scan.states), ctx.counts
        y = rest[0]
        trace, saved = rest[1 : 1 + n_trace], rest[1 + n_trace : 1 + n_trace + n_saved]
        dfinal, dtrace = filled(others[:n_states], scan.states), filled(others[n_states:], trace)
        wanted = ctx.needs_input_grad[2:]
        needs = needs_of(scan, wanted[0], wanted[1 : 1 + n_states], wanted[1 + n_states :])
        # to be differentiated again, or mapped: the op has rules for both
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            args = (*pack(scan, ctx.backend.name), dy, dfinal, dtrace, y, trace, saved, list(needs))
            grads = torch.ops.rnnfast.scan_backward(*args)
        else:
            grads = ctx.backend.backward(
                scan, Saved(y, trace, saved), Cotangents(dy, dfinal, dtrace), needs
            )
        dinput, dstates, dweights = input_grads(needs, scan, *grads)
        return (None, None, dinput, *dstates, *dweights)
