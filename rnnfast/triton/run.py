"""A scan with these kernels: its tensors allocated, the products around them, its tiling."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..backends.base import Cotangents, Gradients, Needs
from ..problem import Problem, Scan
from . import graphs, launch, tune
from .cells import cell_of
from .launch import Clip, Inputs, Outputs, Recurrence, Shape
from .plan import Tiling, candidates, device_of, math_of
from .products import GateGradients, gates_of, recurrent_bias

Kept = tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]  # gates, y, cells, extra


def describe(problem: Problem) -> str:
    """The tiling in words, for ``explain``."""
    device = device_of()
    directions = ("forward", "backward") if problem.options.training else ("forward",)
    told = []
    for direction in directions:
        tilings = candidates(direction, problem, device)
        told.append(tune.best(tune.key_of(direction, problem, device), tilings).describe())
    if len(set(told)) == 1:
        return told[0]
    return "; ".join(f"{d} {t}" for d, t in zip(directions, told, strict=True))


def forward(scan: Scan, problem: Problem) -> Outputs:
    """Outputs; ``gates``, ``extra`` and ``cells`` are float32 where they are for backward."""
    T, B, H, P = problem.T, problem.B, problem.H, problem.P
    training = scan.options.training
    new = scan.states[0].new_empty
    cells = None
    if len(scan.states) == 2 and (training or scan.options.all_states):
        cells = new(T, B, H, dtype=torch.float32)
    extra = new(T, B, H, dtype=torch.float32) if training and scan.spec.extra else None
    c_last = new(B, H) if len(scan.states) == 2 else None
    y, h_last = new(T, B, P), new(B, P)
    out = Outputs(gates_of(scan), y, cells, extra, h_last, c_last, training)
    recurrence = _recurrence(scan, problem)

    def trial(tiling: Tiling) -> float:
        gates = out.gates.clone()  # a run overwrites them
        return _time(lambda: launch.forward(tiling, recurrence, out._replace(gates=gates)))

    tiling = _tiling("forward", problem, scan.input.device, trial)
    if tiling.resident or not graphs.allowed(y.device, T):
        launch.forward(tiling, recurrence, out)
    else:
        key = graphs.key_of(y.device, tiling, (recurrence, out))
        graphs.GRAPHS.run(key, functools.partial(launch.forward, tiling), (recurrence,), (out,))
    return out


def backward(
    scan: Scan, problem: Problem, kept: Kept, cotangents: Cotangents, needs: Needs
) -> Gradients:
    """``kept``: what forward saved."""
    T, B, H, P = problem.T, problem.B, problem.H, problem.P
    cell, spec = cell_of(scan.cell), scan.spec
    gates, y, cells, extra = kept
    new = scan.states[0].new_empty
    dextra = None
    if cell.has_dextra:
        dextra = new(T, B, P if spec.projected else H, dtype=torch.float32)
    dgates = new(T, B, spec.gates * H, dtype=torch.float32)
    dc0 = new(B, H) if len(scan.states) == 2 else None
    found = Inputs(dgates, dextra, new(B, P), dc0)
    dy, dfinal, dtrace = cotangents
    given = launch.Cotangents(
        None if dy is None else dy.contiguous(),
        dtrace[0].contiguous() if dtrace else None,
        dfinal[0].contiguous(),
        dfinal[1].contiguous() if len(dfinal) == 2 else None,
    )
    saved = Outputs(y if gates is None else gates, y, cells, extra, y, None, True)
    recurrence = _recurrence(scan, problem)
    clip = Clip.of(scan.options.grad_clip_time)

    def work(tiling: Tiling, r: Recurrence, s: Outputs, g: launch.Cotangents, into: Inputs) -> None:
        launch.backward(tiling, r, s, g, into, clip)

    tiling = _tiling(
        "backward",
        problem,
        y.device,
        lambda tiling: _time(lambda: work(tiling, recurrence, saved, given, found)),
    )
    read = (recurrence, saved, given)
    if tiling.resident or not graphs.allowed(y.device, T):
        work(tiling, *read, found)
    else:
        key = graphs.key_of(y.device, tiling, (*read, found), clip)
        graphs.GRAPHS.run(key, functools.partial(work, tiling), read, (found,))
    products = GateGradients(scan, y, dgates, dextra, extra)
    return Gradients(
        products.input() if needs.input else None,
        [found.dh0, *([] if dc0 is None else [dc0])] if needs.states else None,
        products.weights() if needs.weights else None,
    )


def _recurrence(scan: Scan, problem: Problem) -> Recurrence:
    weights = scan.step_weights()
    return Recurrence(
        scan.cell,
        Shape(problem.T, problem.B, problem.H, problem.P),
        weights.w_hh.contiguous(),
        None if weights.w_hr is None else weights.w_hr.contiguous(),
        recurrent_bias(scan),
        scan.states[0].contiguous(),
        scan.states[1].contiguous() if len(scan.states) == 2 else None,
        None if scan.lengths is None else scan.lengths.contiguous(),
        None if scan.resets is None else scan.resets.contiguous().view(torch.uint8),
        scan.options.reverse,
        "tf32" if math_of(problem.dtype) == "tf32" else "ieee",
    )


def _tiling(
    direction: str, problem: Problem, device: torch.device, trial: Callable[[Tiling], float]
) -> Tiling:
    here = device_of(device)
    tilings = candidates(direction, problem, here)
    measurable = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
    key = tune.key_of(direction, problem, here)
    return tune.best(key, tilings, trial if measurable and problem.B > 0 else None)


def _time(work: Callable[[], None], repeats: int = 3) -> float:
    """Milliseconds on the GPU, the least of a few runs after one that compiles."""
    work()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return min(times)
