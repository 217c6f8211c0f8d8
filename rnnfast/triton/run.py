"""A scan with these kernels: its tensors allocated, the products around them, its tiling."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..problem import Cotangents, Gradients, Needs, Problem, Scan, device_named
from ..products.arithmetic import Rounding, largest_of, power_of_two
from ..products.gates import GateMajor
from ..products.gradients import Backward
from ..products.projection import biased_projection, own_product_bias
from . import graphs, launch, tune
from .cells import cell_of
from .device import capturing, facts_of, milliseconds
from .launch import Clip, Inputs, Outputs, Recurrence, Shape
from .plan import Tiling, candidates, math_of, why_not_resident

Kept = tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]  # gates, y, cells, extra


def describe(problem: Problem) -> str:
    """The tiling in words, for ``explain``."""
    device = facts_of(device_named(problem))
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
    out = Outputs(biased_projection(scan), y, cells, extra, h_last, c_last, training)
    recurrence = _recurrence(scan, problem)

    def trial(tiling: Tiling) -> float:
        gates = out.gates.clone()  # a run overwrites them
        tried = out._replace(gates=gates)
        return milliseconds(y.device, lambda: launch.forward(tiling, recurrence, tried))

    tiling = _tiling("forward", problem, y.device, trial)
    if tiling.resident or not graphs.allowed(y):
        launch.forward(tiling, recurrence, out)
    else:
        work = functools.partial(launch.forward, tiling)
        graphs.GRAPHS.run(("forward", tiling), work, (recurrence,), (out,), (out.gates,))
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
    given = launch.LoopCotangents(
        None if dy is None else dy.contiguous(),
        dtrace[0].contiguous() if dtrace else None,
        dfinal[0].contiguous(),
        dfinal[1].contiguous() if len(dfinal) == 2 else None,
    )
    saved = Outputs(y if gates is None else gates, y, cells, extra, y, None, True)
    read = (_recurrence(scan, problem), saved, given)
    clip = Clip.of(scan.options.grad_clip_time)

    def work(
        tiling: Tiling, r: Recurrence, s: Outputs, g: launch.LoopCotangents, into: Inputs
    ) -> None:
        launch.backward(tiling, r, s, g, into, clip)

    tiling = _tiling(
        "backward",
        problem,
        y.device,
        lambda tiling: milliseconds(y.device, lambda: work(tiling, *read, found)),
    )
    if tiling.resident or not graphs.allowed(y):
        work(tiling, *read, found)
    else:
        what = ("backward", tiling, clip)
        graphs.GRAPHS.run(what, functools.partial(work, tiling), read, (found,), ())
    dstates = [found.dh0, *([] if dc0 is None else [dc0])]
    return _products(scan, y, dgates, dextra, extra).gradients(needs, dstates)


def _products(
    scan: Scan, y: Tensor, dgates: Tensor, dextra: Tensor | None, extra: Tensor | None
) -> Backward:
    """What the loop left, in the storage dtype: of float16, whose range gradients would leave,
    scaled."""
    storage, scale = scan.weights[0].dtype, None
    if storage == torch.float16 and dgates.numel() > 0:
        given = [dgates] if dextra is None else [dgates, dextra]
        scale = power_of_two(torch.stack([largest_of(t) for t in given]).amax(), 0).view(1)

    def narrow(values: Tensor | None) -> Tensor | None:
        return None if values is None else (values if scale is None else values * scale).to(storage)

    spec = scan.spec
    dgx, more = narrow(dgates), narrow(dextra)
    assert dgx is not None
    gates = GateMajor(spec, dgx, None if spec.projected else more)
    doutput = more if spec.projected else None
    return Backward(scan, y, gates, Rounding(storage, scale), {spec.extra: extra}, doutput)


def _recurrence(scan: Scan, problem: Problem) -> Recurrence:
    weights, b_n = scan.step_weights(), own_product_bias(scan)
    return Recurrence(
        scan.cell,
        Shape(problem.T, problem.B, problem.H, problem.P),
        weights.w_hh.contiguous(),
        None if weights.w_hr is None else weights.w_hr.contiguous(),
        None if b_n is None else b_n.contiguous(),
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
    here = facts_of(device)
    tilings = candidates(direction, problem, here)
    if not tilings:  # the backend answered for the current device
        raise ValueError(f"triton on {device}: {why_not_resident(problem, here)}")
    measurable = device.type == "cuda" and not capturing(device)
    key = tune.key_of(direction, problem, here)
    return tune.best(key, tilings, trial if measurable and problem.B > 0 else None)
