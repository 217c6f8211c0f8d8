"""Layers on top of one another, pipelined: each on a stream of its own, the steps cut into parts.

A layer needs no more than the layer below's steps so far. So part k of layer l runs beside part
k + 1 of layer l - 1, and with few sequences, whose blocks leave most of the device idle, L layers
take little longer than one. Backward is the same from the other end.

The results are those of one layer after the other, bit for bit in all that the kernels here
compute: the state passes from part to part in float32, and the gradients of weights are products
over all steps, after the last part. The products of a part's rows with W_ih are torch's.

Shapes: T steps, B batch, H hidden size, S slots of a unit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...problem import (
    Cotangents,
    Gradients,
    Needs,
    Problem,
    Saved,
    Scan,
    ScanResult,
    h_and_c,
    problem_of,
)
from ...products.arithmetic import Rounding
from ...products.gates import UnitMajor, slots_of
from ...products.gradients import Backward
from ...products.slots import SlotProjection, saved_operands, slots_of_input
from ...rules import cut_lengths
from ..base import Call
from .lanes import Mark
from .plan import Kernels, Plan

STEPS = 8  # parts are multiples of it, so that they begin at an address that kernels can take
_KERNELS = ("resident", "cluster")  # of which several run side by side


def part_steps() -> int:
    """The steps of a part that RNNFAST_PIPELINE asks for, 0: layers run one after the other.

    Raises ValueError where it is no multiple of ``STEPS``.
    """
    text = os.environ.get("RNNFAST_PIPELINE", "") or "0"
    if not text.isdecimal() or int(text) % STEPS:
        raise ValueError(f"RNNFAST_PIPELINE is a multiple of {STEPS}, or 0, not {text!r}")
    return int(text)


def why_not(kernels: Kernels, problems: Sequence[Problem], call: Call) -> str | None:
    """Why layers of these problems, bottom to top, can't be pipelined, or None."""
    first, steps = problems[0], part_steps()
    options = first.options
    if steps == 0:
        return "RNNFAST_PIPELINE does not ask for it"
    if first.tracing or first.transformed:  # before a question about T, which may be symbolic
        return "a tracer or transform looks on"
    reasons = (
        (len(problems) < 2, "there is one layer"),
        (call.directions > 1, "a reversed layer begins with the last step"),
        (first.T <= steps, f"T is no more than a part's {steps} steps"),
        (first.spec.own, "cells of one's own are not cut into parts"),
        (first.spec.projected, "projected layers run step by step"),
        (call.dropout, "dropout draws one mask for all steps of a layer"),
        (call.packed, "packed data is padded first"),
        (options.all_states, "the states of all steps are asked for"),
        (
            options.training and first.dtype == torch.float16,
            "float16 scales gradients by the largest of all steps",
        ),
    )
    for applies, reason in reasons:
        if applies:
            return reason
    for direction in ("forward", "backward") if options.training else ("forward",):
        for problem in problems:
            strategy = kernels.plan(direction, problem).strategy
            if strategy not in _KERNELS:
                return f"{direction} is {strategy}, of which no two run side by side"
    return None


class _Part(NamedTuple):
    """Steps ``start`` to ``stop``."""

    number: int
    start: int
    stop: int
    lengths: Tensor | None

    def of(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[self.start : self.stop]

    def rows(self, tensor: Tensor) -> Tensor:
        return tensor[self.start : self.stop].flatten(0, 1).flatten(1)

    def state_before(self, every: Tensor | None) -> Tensor | None:
        """Of all steps' states, the one that this part begins with; None for the first part."""
        return None if every is None or self.start == 0 else every[self.start - 1]


def _parts(scan: Scan) -> list[_Part]:
    """In the order of time."""
    T, steps = scan.input.shape[0], part_steps()
    lengths = cut_lengths(scan.lengths, T, steps)
    return [
        _Part(i, start, min(start + steps, T), own)
        for i, (start, own) in enumerate(zip(range(0, T, steps), lengths, strict=True))
    ]


class _Carried:
    """The state between parts, or its gradient, in float32: two sets, taken in turn."""

    def __init__(self, scan: Scan) -> None:
        self.sets = [[_dense_like(s, torch.float32) for s in scan.states] for _ in range(2)]

    def read(self, turn: int) -> list[Tensor]:
        """What turn ``turn`` begins with: what the one before wrote; the first has none."""
        return self.sets[turn & 1] if turn > 0 else []

    def write(self, turn: int) -> list[Tensor]:
        return self.sets[turn + 1 & 1]


class _LayerForward:
    """One layer's forward; its memory is there before the first part runs."""

    def __init__(self, kernels: Kernels, scan: Scan, gates: Tensor | None) -> None:
        self.kernels, self.scan = kernels, scan
        self.plan: Plan = kernels.plan("forward", problem_of(scan))
        T, B = scan.input.shape[:2]
        new = scan.states[0].new_empty
        H = scan.states[0].shape[1]
        # The input's part of all gates is there, or comes with each part.
        self.gates = new(T, B, H, slots_of(scan.spec)) if gates is None else gates
        self.input_weights = SlotProjection.of(scan) if gates is None else None
        self.y = new(T, B, H)
        self.final = [_dense_like(s, s.dtype) for s in scan.states]
        self.c = None
        if len(scan.states) == 2 and scan.options.training:
            self.c = new(T, B, H, dtype=torch.float32)
        self.carried = _Carried(scan)

    def run(self, part: _Part) -> None:
        scan = self.scan
        if self.input_weights is not None:
            self.input_weights.multiply(part.rows(scan.input), part.rows(self.gates))
        h0, c0 = h_and_c(scan.states)
        h_last, c_last = h_and_c(self.final)
        self.kernels.call(
            "cuda_forward_part",
            **_given(scan, self.plan, part),
            gates=part.of(self.gates),
            h0=h0,
            c0=c0,
            training=scan.options.training,
            before=self.carried.read(part.number),
            y=part.of(self.y),
            h_last=h_last,
            c_last=c_last,
            c=part.of(self.c),
            after=self.carried.write(part.number),
        )

    def result(self) -> tuple[ScanResult, list[Tensor]]:
        saved = []
        if self.scan.options.training:
            saved += [self.gates] if self.scan.spec.saves_gates else []
            saved += [self.c] if self.c is not None else []
        return ScanResult(self.y, self.final, []), saved


def forward(kernels: Kernels, scans: Sequence[Scan]) -> list[tuple[ScanResult, list[Tensor]]]:
    """``Backend.forward_whole``."""
    layers: list[_LayerForward] = []
    for scan in scans:
        if layers:
            layers.append(_LayerForward(kernels, scan._replace(input=layers[-1].y), None))
        else:
            layers.append(_LayerForward(kernels, scan, slots_of_input(scan)))
    parts = _parts(layers[0].scan)
    _wavefront(kernels, layers, parts)
    return [layer.result() for layer in layers]


class _LayerBackward:
    """One layer's backward. ``dy`` is there, or the layer above writes it part by part."""

    def __init__(
        self,
        kernels: Kernels,
        scan: Scan,
        saved: Saved,
        dy: Tensor | None,
        dfinal: list[Tensor],
        sends: bool,
        parts: int,
    ) -> None:
        self.kernels, self.scan, self.y, self.dy, self.dfinal = kernels, scan, saved.y, dy, dfinal
        self.plan = _backward_plan(kernels, scan)
        rest = list(saved.extra)
        self.gates = rest.pop(0) if scan.spec.saves_gates else None
        self.c = rest.pop(0) if rest else None
        new = saved.y.new_empty
        self.dgates = new(*saved.y.shape, slots_of(scan.spec))
        self.dstates = [_dense_like(s, s.dtype) for s in scan.states]
        # what goes to the layer below
        self.dinput = _dense_like(scan.input, scan.input.dtype) if sends else None
        self.input_weights = SlotProjection.of(scan) if sends else None
        self.carried = _Carried(scan)
        self.parts = parts

    def run(self, part: _Part) -> None:
        scan, turn = self.scan, self.parts - 1 - part.number
        h0, c0 = h_and_c(scan.states)
        h_before = part.state_before(self.y)
        dh_last, dc_last = h_and_c(self.dfinal)
        dh0, dc0 = h_and_c(self.dstates)
        self.kernels.call(
            "cuda_backward_part",
            **_given(scan, self.plan, part),
            saved=part.of(self.gates),
            y=part.of(self.y),
            c=part.of(self.c),
            h0=h0 if h_before is None else h_before,
            c0=c0,
            dy=part.of(self.dy),
            dh_last=dh_last,
            dc_last=dc_last,
            clip=scan.options.grad_clip_time,
            c_before=part.state_before(self.c),
            after=self.carried.read(turn),
            dgates=part.of(self.dgates),
            dh0=dh0,
            dc0=dc0,
            before=self.carried.write(turn),
        )
        if self.input_weights is not None and self.dinput is not None:
            self.input_weights.multiply_back(part.rows(self.dgates), part.rows(self.dinput))

    def gradients(self, needs: Needs) -> Gradients:
        scan, spec = self.scan, self.scan.spec
        operands = {} if self.gates is None else saved_operands(spec, {"gates": self.gates})
        dgates = UnitMajor(spec, self.dgates)
        backward = Backward(scan, self.y, dgates, Rounding(self.y.dtype), operands)
        sent = needs.input and self.dinput is not None
        found = backward.gradients(needs._replace(input=needs.input and not sent), self.dstates)
        return found._replace(dinput=self.dinput) if sent else found


def backward(
    kernels: Kernels,
    scans: Sequence[Scan],
    saved: Sequence[Saved],
    cotangents: Sequence[Cotangents],
    needs: Sequence[Needs],
) -> list[Gradients]:
    """``Backend.backward_whole``."""
    parts = _parts(scans[0])
    top = cotangents[-1].dy
    layers: list[_LayerBackward] = []  # top to bottom
    for level in reversed(range(len(scans))):
        dy = layers[-1].dinput if layers else (None if top is None else top.contiguous())
        one = (kernels, scans[level], saved[level], dy, cotangents[level].dfinal)
        layers.append(_LayerBackward(*one, sends=level > 0, parts=len(parts)))
    _wavefront(kernels, layers, parts[::-1])
    return [layer.gradients(n) for layer, n in zip(reversed(layers), needs, strict=True)]


def _given(scan: Scan, plan: Plan, part: _Part) -> dict[str, Any]:
    """What both passes of a part are told."""
    return {
        "cell": scan.cell,
        "strategy": plan.strategy,
        "math": plan.math,
        "choice": plan.choice,
        "w_hh": scan.step_weights().w_hh,
        "lengths": part.lengths,
        "resets": part.of(scan.resets),
    }


def fits_backward(kernels: Kernels, scans: Sequence[Scan]) -> bool:
    """Whether what the plan follows is still as it was when ``why_not`` found no reason."""
    return part_steps() > 0 and all(
        _backward_plan(kernels, scan).strategy in _KERNELS for scan in scans
    )


def _backward_plan(kernels: Kernels, scan: Scan) -> Plan:
    return kernels.plan("backward", problem_of(scan))


def _wavefront(
    kernels: Kernels, layers: Sequence[_LayerForward | _LayerBackward], parts: Sequence[_Part]
) -> None:
    """Every part of every layer: after the same part of the layer before it in ``layers``, and,
    as a lane keeps its order, after its own part before."""
    with kernels.lanes(len(layers), layers[0].y.device) as lanes:
        done: list[Mark | None] = [None] * len(parts)  # of the layer before
        for level, i in _diagonals(len(layers), len(parts)):
            done[i] = lanes.run(level, _task(layers[level], parts[i]), done[i])


def _task(layer: _LayerForward | _LayerBackward, part: _Part) -> Callable[[], None]:
    return lambda: layer.run(part)


def _diagonals(layers: int, parts: int) -> Iterator[tuple[int, int]]:
    """(layer, part) in an order in which those that may run side by side stand together."""
    for diagonal in range(layers + parts - 1):
        for level in range(layers):
            if 0 <= diagonal - level < parts:
                yield level, diagonal - level


def _dense_like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
