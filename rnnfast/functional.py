"""One direction of one layer (``scan``), and layers stacked (``stack``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import onnx_export
from .autocast import cast_all, cast_of, without_autocast
from .backends import registry
from .backends.base import Backend
from .backends.registry import requested_backend
from .checks import check_checkpoint_every, check_metadata, check_names, check_values
from .direct import run_direct
from .problem import Options, Problem, Scan, ScanResult, kind_of, problem_of
from .schema import pack
from .surroundings import observed, surroundings, wants_gradients, warn_of_trace
from .time_clip import GradClipTime, as_option, clip_of
from .transforms import run_transformed


def scan(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    projected: bool = False,
    reverse: bool = False,
    all_states: bool = False,
    grad_clip_time: GradClipTime = 0.0,
    checkpoint_every: int = 0,
    backend: str | None = None,
) -> ScanResult:
    """Runs one direction of one layer over T steps.

    Args:
        cell: a name of ``rnnfast.cells.CELLS``, which also says where each formula is from.
        input: float [T, B, I]; int64 [T, B], tokens, the same numbers as their one-hot of width I;
            or with ``projected=True`` the gates ``x W_ihᵀ + b_ih`` [T, B, G*H] themselves.
        states: initial states, the output's [B, P] and every other [B, H]: h and, for an LSTM, c.
        weights: ``w_ih`` [G*H, I], ``w_hh`` [G*H, P], ``b_ih``, ``b_hh`` [G*H], ``w_hr`` [P, H], of
            these the ones that the cell has, the biases both or neither; with ``projected=True``
            without ``w_ih`` and ``b_ih``. Then the further parameters of a cell of one's own.
        lengths: int64 [B] on the input's device. From its end on, a sequence's outputs are 0 and
            its state is frozen; a reversed scan starts at each sequence's own last step.
        resets: bool [T, B]. Where true, the state is replaced by 0 before x[t] is consumed, and no
            gradient crosses.
        all_states: return every other state of each step too (LSTM: c).
        grad_clip_time: v clips the gradient of the states, wherever a step hands it to the one
            before, to [-v, v]; ("zero", v) zeroes what is beyond; 0 is off (docs/clipping.md).
        checkpoint_every: k > 0 makes training keep the states of every k-th step only, and compute
            the steps in between once more in backward: less memory, the same gradients.
        backend: a backend's name; default: what ``use_backend`` or ``RNNFAST_BACKEND`` say.

    Returns:
        ``ScanResult(y [T, B, P], final states, trace)``.

    Raises:
        ValueError, TypeError, RuntimeError, IndexError: see ``rnnfast.checks``.
        BackendError: no backend, or not the one asked for, can take the problem.
    """
    tensors = [t for t in (input, *states, *weights, lengths, resets) if t is not None]
    args = (cell, input, tuple(states), tuple(weights), lengths, resets)
    options = (projected, reverse, all_states, as_option(grad_clip_time), checkpoint_every, backend)
    if has_torch_function(tensors):
        return ScanResult(*handle_torch_function(_scan, tensors, *args, *options))
    return ScanResult(*_scan(*args, *options))


def _scan(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    projected: bool,
    reverse: bool,
    all_states: bool,
    grad_clip_time: float,
    checkpoint_every: int,
    backend: str | None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """What a tensor subclass's ``__torch_function__`` is asked about."""
    device = input.device.type
    around = surroundings(device)
    given = (input, *states, *weights)
    training = around.differentiated or wants_gradients(given)
    if around.recorded:  # a trace is for calls with and without
        training = any(t.requires_grad for t in given)
    clip = clip_of(grad_clip_time, training, around.recorded)
    every = check_checkpoint_every(0 if around.recorded else checkpoint_every)
    options = Options(reverse, all_states, training, every, clip)
    kind = "gates" if projected else kind_of(input)
    asked = Scan(cell, kind, input, list(states), list(weights), lengths, resets, options)
    check_names(asked)
    dtypes = [s.dtype for s in asked.states]
    cast = cast_of(asked.spec, device, around.autocast, asked.dtype, dtypes)
    with without_autocast(device, around.autocast is not None):
        if cast is not None:
            asked = _cast_scan(asked, cast.computed)
        check_metadata(asked)
        problem = problem_of(asked)
        chosen = registry.select(problem, backend or requested_backend())
        y, final, trace = run_chosen(asked, problem, chosen)
    if cast is None:
        return y, final, trace
    h, *rest = cast.states
    return (
        y.to(h),
        [s.to(dtype) for s, dtype in zip(final, cast.states, strict=True)],
        [t.to(dtype) for t, dtype in zip(trace, rest, strict=False)],
    )


def _cast_scan(scan: Scan, dtype: torch.dtype) -> Scan:
    return scan._replace(
        input=scan.input if scan.kind == "tokens" else cast_all([scan.input], dtype)[0],
        states=cast_all(scan.states, dtype),
        weights=cast_all(scan.weights, dtype),
    )


def run_chosen(scan: Scan, problem: Problem, backend: Backend) -> ScanResult:
    """Runs a scan on the backend that was chosen for it."""
    if not problem.tracing:
        seen = observed(scan.tensors)
        # torch.jit.trace is to find torch's own calls in what is made of them
        as_torch_calls = backend.composite and (problem.recorded or not seen)
        if problem.recorded and backend.name == "reference" and problem.T > 1:
            warn_of_trace(f"fixes the number of steps, {int(problem.T)}, of the cell {scan.cell!r}")
        if as_torch_calls or (problem.transformed and backend.composite):
            check_values(scan)
            return backend.run(scan)
        if problem.transformed:
            check_values(scan)
            return run_transformed(scan, backend.name)
        if not seen:
            check_values(scan)
            return run_direct(scan, backend)
        if problem.recorded:
            onnx_export.refuse_torchscript(scan)
    y, final, trace, _ = torch.ops.rnnfast.scan_forward(*pack(scan, backend.name))
    return ScanResult(y, final, trace)
