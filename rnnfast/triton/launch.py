"""Launching the kernels: which ones a pass needs, and what each is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import resident, stepwise, stepwise_backward
from .cells import TritonCell, cell_of
from .device import Door
from .plan import Tiling


class Shape(NamedTuple):
    """T steps, B batch, H hidden units, P outputs."""

    T: int
    B: int
    H: int
    P: int


class Recurrence(NamedTuple):
    """What both passes read: weights, initial states, where sequences end and begin anew.

    Attributes:
        w_hh: [G*H, P]. w_hr: [P, H] or None. b_n: [H] or None, the bias of the recurrent product's
            last gate, where it is not part of gx.
        h0: [B, P]. c0: [B, H] or None. All of these contiguous, in one dtype.
        lengths: int64 [B] or None. resets: uint8 [T, B] or None.
        precision: ``"tf32"`` or ``"ieee"``, of float32 products.
    """

    cell: str
    shape: Shape
    w_hh: Tensor
    w_hr: Tensor | None
    b_n: Tensor | None
    h0: Tensor
    c0: Tensor | None
    lengths: Tensor | None
    resets: Tensor | None
    reverse: bool
    precision: str


class Outputs(NamedTuple):
    """What forward fills: see resident.py. ``extra`` may be None where not ``save``."""

    gates: Tensor
    y: Tensor
    cells: Tensor | None
    extra: Tensor | None
    h_last: Tensor
    c_last: Tensor | None
    save: bool


class LoopCotangents(NamedTuple):
    """dy [T, B, P] and dcells [T, B, H] or None; gradients of the last states."""

    dy: Tensor | None
    dcells: Tensor | None
    dh_last: Tensor
    dc_last: Tensor | None


class Inputs(NamedTuple):
    """What backward fills: see resident.py."""

    dgates: Tensor
    dextra: Tensor | None
    dh0: Tensor
    dc0: Tensor | None


class Clip(NamedTuple):
    """grad_clip_time as the kernels have it: what lies beyond ±bound becomes ±limit."""

    bound: float
    limit: float

    @staticmethod
    def of(option: float) -> Clip:
        if option == 0:
            return Clip(math.inf, 0.0)
        return Clip(abs(option), max(option, 0.0))


class Launch(NamedTuple):
    """One launch: a kernel, its compile-time arguments, the arguments that are None here though the
    scan has them, and what its grid is over: "batch", and "H" units or "P" outputs."""

    kernel: Any
    constants: dict[str, Any]
    without: frozenset[str]
    grid: str


def forward_launches(cell: TritonCell, tiling: Tiling, save: bool, precision: str) -> list[Launch]:
    """The launch of a forward pass, or those of each step, in order."""
    make = _Maker(cell, tiling, precision, SAVE=save)
    unsaved = () if cell.reads_extra else ("extra",)  # a product's operand: it is ``out``
    if tiling.resident:
        return [make(resident.resident_forward, "batch", **make.all_phases("forward"))]
    made = []
    for n, phase in enumerate(cell.phases):
        without = [*unsaved, *(() if n > 0 else ("operand",))]
        if phase is cell.phases[-1] and not cell.spec.projected:
            without.append("out")
        own = {"FORWARD": phase.forward, "BEGIN": phase.begin, "N": phase.gates}
        made.append(make(stepwise.step_forward, "H", *without, **own))
    if cell.spec.projected:
        made.append(make(stepwise.step_project, "P"))
    return made


def backward_launches(
    cell: TritonCell, tiling: Tiling, precision: str
) -> tuple[list[Launch], list[Launch]]:
    """The launch of a backward pass, or those of each step, in order; and those at the end."""
    make = _Maker(cell, tiling, precision)
    unread = () if cell.reads_extra else ("extra",)
    if tiling.resident:
        own = make.all_phases("backward")
        return [make(resident.resident_backward, "batch", *unread, **own)], []
    made = []
    if cell.spec.projected:
        made.append(make(stepwise_backward.step_output_gradient, "P"))
    for phase in reversed(cell.phases):
        own = {"BACKWARD": phase.backward, "BEGIN": phase.begin, "N": phase.gates}
        made.append(make(stepwise_backward.step_backward, "H", *unread, **own))
    unread = ("dextra",) if cell.spec.projected else ()
    return made, [make(stepwise_backward.first_state_gradient, "P", *unread)]


class _Maker:
    """Picks the constants that a kernel has."""

    def __init__(self, cell: TritonCell, tiling: Tiling, precision: str, **more: Any) -> None:
        spec, self.cell = cell.spec, cell
        self.constants = {
            "G": spec.gates,
            "S": len(spec.states),
            "READS_H": spec.reads_h,
            "PLANES": cell.phases[0].gates - int(cell.owns_product),
            "PRECISION": precision,
            **tiling.blocks,
            **more,
        }

    def all_phases(self, name: str) -> dict[str, Any]:
        """Of the resident kernels."""
        functions = [getattr(phase, name) for phase in self.cell.phases]
        first = functions[0] if len(functions) > 1 else None
        return {"FIRST": first, name.upper(): functions[-1], "BEGIN": self.cell.phases[-1].begin}

    def __call__(self, kernel: Any, grid: str, *without: str, **own: Any) -> Launch:
        known = {**self.constants, **own}
        constants = {name: known[name] for name in kernel.arg_names if name in known}
        return Launch(kernel, constants, frozenset(without), grid)


def forward(tiling: Tiling, r: Recurrence, out: Outputs) -> None:
    """Runs the T steps. ``out.gates`` holds gx, and is overwritten."""
    if r.shape.B == 0:
        return
    cell = cell_of(r.cell)
    launches = forward_launches(cell, tiling, out.save, r.precision)
    given = {**_arguments(r), **out._asdict()}
    with Door(out.y.device) as door:
        if tiling.resident:
            _bound(door, launches[0], tiling, given)()
        else:
            _forward_steps(door, launches, tiling, given, r, out)


def _forward_steps(
    door: Door,
    launches: list[Launch],
    tiling: Tiling,
    given: dict[str, Any],
    r: Recurrence,
    out: Outputs,
) -> None:
    T, B, H, _ = r.shape
    h = r.h0.to(torch.float32, copy=True)
    buffers = (h, torch.empty_like(h))
    c = None if r.c0 is None else r.c0.to(torch.float32, copy=True)
    operand = None  # of a second product
    if len(launches) > 1:
        operand = out.extra if out.save else h.new_empty(B, H)
    given |= {"c": c, "operand": operand, "out": operand}
    runs = [_bound(door, launch, tiling, given) for launch in launches]
    for step in range(T):
        for run in runs:
            run(step=step, h_in=buffers[step % 2], h_out=buffers[(step + 1) % 2])
    out.h_last.copy_(buffers[T % 2])
    if c is not None:
        assert out.c_last is not None
        out.c_last.copy_(c)


def backward(
    tiling: Tiling, r: Recurrence, saved: Outputs, given: LoopCotangents, found: Inputs, clip: Clip
) -> None:
    """Runs the T steps back. ``clip``: of what a step hands to the one before it."""
    if r.shape.B == 0:
        return
    steps, ending = backward_launches(cell_of(r.cell), tiling, r.precision)
    values = {**_arguments(r), **saved._asdict(), **given._asdict(), **found._asdict()}
    values |= clip._asdict()
    if tiling.resident:
        with Door(found.dh0.device) as door:
            _bound(door, steps[0], tiling, values)()
        return
    dc = None if given.dc_last is None else given.dc_last.to(torch.float32, copy=True)
    values |= {"carry": given.dh_last.to(torch.float32, copy=True), "dc": dc}
    with Door(found.dh0.device) as door:
        runs = [_bound(door, launch, tiling, values) for launch in steps]
        for step in reversed(range(r.shape.T)):
            for run in runs:
                run(step=step)
        for launch in ending:
            _bound(door, launch, tiling, values)()
    if dc is not None:
        assert found.dc0 is not None
        found.dc0.copy_(dc)


def _arguments(r: Recurrence) -> dict[str, Any]:
    """What a scan gives to kernels, by the names of their arguments."""
    return {**r._asdict(), **r.shape._asdict(), "reverse": int(r.reverse)}


def _bound(
    door: Door, launch: Launch, tiling: Tiling, given: Mapping[str, Any]
) -> Callable[..., Any]:
    """Launches with what is ``given`` by the arguments' names; the rest is for each call."""
    grid = [triton.cdiv(given["B"], tiling.block_b)]
    if launch.grid != "batch":
        grid.append(triton.cdiv(given[launch.grid], tiling.block_h))
    names = [name for name in launch.kernel.arg_names if name in given]
    taken = {name: None if name in launch.without else given[name] for name in names}
    options = {**launch.constants, **tiling.options}
    return door.launcher(launch.kernel, tuple(grid), **taken, **options)
