"""The backend ``cuda``: the native kernels for NVIDIA GPUs (csrc/cuda).

The recurrent loop is one call into C++. What is one large product over all steps (the input's
projection, the gradients of weights and input) is torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _ext
from ...cells import CellSpec
from ...problem import (
    Cotangents,
    Gradients,
    Needs,
    Problem,
    Saved,
    Scan,
    ScanResult,
    problem_of,
    wide,
)
from ...products.arithmetic import Rounding, largest_of, power_of_two
from ...products.gates import UnitMajor, slots_of
from ...products.gradients import Backward
from ...products.slots import saved_operands, slots_of_input
from ...rules import without_padding
from .. import own_cuda, own_loops
from ..base import Call, KernelBackend, TensorLike, why_no_kernel, why_not_limited, why_not_own
from . import pipeline
from .plan import Kernels, Plan

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SCALED_EXPONENT = 5  # fp16: gradients are scaled to at most 2**5; 2**11 is left for their growth


class Cuda(Kernels, KernelBackend):
    name = "cuda"
    device = "cuda"
    paired = True  # in one launch
    takes_whole = True  # pipelined

    def __init__(self) -> None:
        self._missing = _ext.why_no_cuda()  # once, and where no tracer looks on

    def unusable(self) -> str | None:
        if self._missing is not None:
            return self._missing
        return None if torch.cuda.is_available() else "torch sees no CUDA device"

    def why_not(self, problem: Problem) -> str | None:
        if not problem.spec.own:
            return why_not_own(problem) or why_no_kernel(problem, self.device, DTYPES)
        reason = why_no_kernel(problem, self.device, own_cuda.DTYPES) or why_not_limited(problem)
        return reason or own_cuda.why_not(problem.options.training, *self._own(problem))

    def _own(self, problem: Problem) -> own_cuda.Key:
        """What the kernels of a cell of one's own are chosen by."""
        return own_cuda.key(self.device, problem)

    def strategy(self, problem: Problem) -> str:
        if problem.spec.own:
            return own_cuda.strategy(self._own(problem), problem.options.training)
        forward = self.plan("forward", problem).text
        if not problem.options.training:
            return forward
        return f"forward {forward}; backward {self.plan('backward', problem).text}"

    def saved_like(self, problem: Problem) -> list[TensorLike]:
        if problem.spec.own:
            return own_loops.saved_like(own_cuda.layout(self._own(problem)), problem)
        return super().saved_like(problem)

    def saved_apart(self, spec: CellSpec) -> str | None:
        return spec.extra if spec.projected else None  # else it has a slot beside the gates

    def saved_as(self, name: str, problem: Problem) -> TensorLike:
        sizes = (problem.T, problem.B, problem.H)
        if name == "gates":
            return (*sizes, slots_of(problem.spec)), problem.dtype
        return sizes, wide(problem.dtype) if name in problem.spec.states else problem.dtype

    def why_not_whole(self, problems: Sequence[Problem], call: Call) -> str | None:
        return pipeline.why_not(self, problems, call)

    def whole_strategy(self, problems: Sequence[Problem], call: Call) -> str:
        if (steps := pipeline.part_steps()) == 0:
            return ""
        reason = pipeline.why_not(self, problems, call)
        return f"not pipelined: {reason}" if reason else f"pipelined, {steps} steps a part"

    def forward_whole(self, scans: Sequence[Scan]) -> list[tuple[ScanResult, list[Tensor]]]:
        return pipeline.forward(self, [_without_nan(scans[0]), *scans[1:]])

    def backward_whole(
        self,
        scans: Sequence[Scan],
        saved: Sequence[Saved],
        cotangents: Sequence[Cotangents],
        needs: Sequence[Needs],
    ) -> list[Gradients]:
        if not pipeline.fits_backward(self, scans):
            return super().backward_whole(scans, saved, cotangents, needs)
        return pipeline.backward(self, scans, saved, cotangents, needs)

    def forward(self, scan: Scan) -> tuple[ScanResult, list[Tensor]]:
        return self.forward_all([scan])[0]

    def backward(self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs) -> Gradients:
        return self.backward_all([scan], [saved], [cotangents], [needs])[0]

    def forward_all(self, scans: Sequence[Scan]) -> list[tuple[ScanResult, list[Tensor]]]:
        first = scans[0]
        if first.spec.own:
            own = own_cuda.kernel(self._own(problem_of(first)), "forward")
            return [own_loops.forward(own, scan) for scan in scans]
        training, all_states = first.options.training, first.options.all_states
        clean = [_without_nan(scan) for scan in scans]
        gates = [slots_of_input(scan) for scan in clean]
        plan = self.plan("forward", problem_of(first), len(scans))
        y, h_last, c_last, c, m = self.call(
            "cuda_forward",
            **_given(scans, plan),
            gates=gates,
            training=training,
            every_c=training or all_states,
        )
        made = []
        for i, scan in enumerate(scans):
            storage = scan.weights[0].dtype
            final = [h_last[i]] + ([c_last[i]] if c_last else [])
            trace = [c[i].to(storage)] if all_states and c else []
            found: dict[str | None, Tensor | None] = {"gates": gates[i], "c": c[i] if c else None}
            found[scan.spec.extra] = m[i] if m else None
            made.append((ScanResult(y[i], final, trace), self.to_save(scan, found)))
        return made

    def backward_all(
        self,
        scans: Sequence[Scan],
        saved: Sequence[Saved],
        cotangents: Sequence[Cotangents],
        needs: Sequence[Needs],
    ) -> list[Gradients]:
        first = scans[0]
        if first.spec.own:
            each = zip(scans, saved, cotangents, needs, strict=True)
            own = own_cuda.kernel(self._own(problem_of(first)), "backward")
            return [own_loops.backward(own, *one) for one in each]
        kept = [self.kept(scan, s) for scan, s in zip(scans, saved, strict=True)]
        storage = first.weights[0].dtype
        scale = _scale(cotangents) if storage == torch.float16 else None
        plan = self.plan("backward", problem_of(first), len(scans))
        dh_last, dc_last = _states([c.dfinal for c in cotangents])
        dgates, dh0, dc0, every_dh = self.call(
            "cuda_backward",
            **_given(scans, plan),
            saved=[k["gates"] for k in kept if "gates" in k],
            y=[s.y for s in saved],
            c=[k["c"] for k in kept if "c" in k],
            dy=[c.dy for c in cotangents],
            dc=[c.dtrace[0] if c.dtrace else None for c in cotangents],
            dh_last=dh_last,
            dc_last=dc_last,
            scale=scale,
            clip=first.options.grad_clip_time,
        )
        made = []
        for i, scan in enumerate(scans):
            backward = Backward(
                scan,
                saved[i].y,
                UnitMajor(scan.spec, dgates[i]),
                Rounding(storage, scale),
                saved_operands(scan.spec, kept[i]),
                every_dh[i] if every_dh else None,
            )
            made.append(backward.gradients(needs[i], [dh0[i]] + ([dc0[i]] if dc0 else [])))
        return made


def _without_nan(scan: Scan) -> Scan:
    """Without what stands in the padding where it could do harm: tokens out of range, and a NaN
    that would end up in what is saved."""
    if scan.lengths is None or not (scan.kind == "tokens" or scan.options.training):
        return scan
    return without_padding(scan)


def _given(scans: Sequence[Scan], plan: Plan) -> dict[str, Any]:
    """What both passes of the directions of a layer are told: lists have an entry a direction."""
    first, weights = scans[0], [scan.step_weights() for scan in scans]
    h0, c0 = _states([scan.states for scan in scans])
    return {
        "cell": first.cell,
        "strategy": plan.strategy,
        "math": plan.math,
        "choice": plan.choice,
        "w_hh": [w.w_hh for w in weights],
        "w_hr": [w.w_hr for w in weights if w.w_hr is not None],
        "h0": h0,
        "c0": c0,
        "lengths": first.lengths,
        "resets": first.resets,
        "reverse": [scan.options.reverse for scan in scans],
    }


def _states(states: Sequence[list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """(each h, each c)."""
    return [s[0] for s in states], [s[1] for s in states if len(s) == 2]


def _scale(cotangents: Sequence[Cotangents]) -> Tensor | None:
    """fp32 [1]: the power of two that brings the largest gradient to 2**SCALED_EXPONENT, without
    waiting for the device; None of no gradients, as of a batch of 0."""
    given = [t for c in cotangents for t in (c.dy, *c.dfinal, *c.dtrace) if t is not None]
    largest_of_each = [largest_of(t) for t in given if t.numel() > 0]
    if not largest_of_each:
        return None
    largest = torch.stack(largest_of_each).amax()
    return power_of_two(largest, SCALED_EXPONENT).view(1)
