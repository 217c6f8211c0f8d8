"""The backend ``cuda``: the native kernels for NVIDIA GPUs (csrc/cuda).

The recurrent loop is one call into C++. What is one large product over all steps (the input's
projection, the gradients of weights and input) is torch's.
"""

from __future__ import annotations

import functools
import os
from collections import namedtuple
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _ext
from ..problem import Problem, Scan, ScanResult, problem_of
from ..scratch import without_padding
from . import cuda_stack
from .base import Backend, Cotangents, Gradients, Needs, Saved, TensorLike, reserved
from .lanes import Lanes, Streams
from .unit_major import SlotGradients, gates_of, slots_of

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SCALED_EXPONENT = 5  # fp16: gradients are scaled to at most 2**5; 2**11 is left for their growth

# compute capability (10 major + minor), SMs, a block's bytes of shared memory and registers, GHz
DeviceNumbers = tuple[int, int, int, int, float]


class Plan(NamedTuple):
    """Which kernel computes a scan: ``strategy`` (stepwise, resident, cluster, grid), ``math``, and
    what the strategy is told: [shape], of a team of blocks [shape, blocks, teams, tiles]."""

    strategy: str
    math: str
    choice: list[int]
    text: str


class Cuda(Backend):
    name = "cuda"
    device = "cuda"
    paired = True  # in one launch

    def __init__(self) -> None:
        self._missing = _why_not_built()  # once, and where no tracer looks on

    @property
    def ops(self) -> Any:
        return torch.ops.rnnfast

    def call(self, name: str, **arguments: Any) -> Any:
        """One of the ops, with all its arguments."""
        op = getattr(self.ops, name)
        return op(*_arguments_of(op)(**arguments))

    def unusable(self) -> str | None:
        if self._missing is not None:
            return self._missing
        return None if torch.cuda.is_available() else "torch sees no CUDA device"

    def why_not(self, problem: Problem) -> str | None:
        if problem.device != self.device:
            return f"it computes on {self.device} tensors only, not on {problem.device}"
        if problem.dtype not in DTYPES:
            return f"it has no kernel for {problem.dtype}"
        if problem.transformed:
            return "its kernels have no rules for vmap and forward-mode AD"
        return reserved(problem, grad_clip_time=True)

    def strategy(self, problem: Problem) -> str:
        forward = self.plan("forward", problem).text
        if not problem.options.training:
            return forward
        return f"forward {forward}; backward {self.plan('backward', problem).text}"

    def plan(self, direction: str, problem: Problem, directions: int = 1) -> Plan:
        """``direction``: "forward" or "backward"; ``directions`` of one layer in one launch.

        Raises ValueError where RNNFAST_PLAN is malformed or asks for what can't be.
        """
        sizes = (problem.T, problem.B, problem.H, problem.P, directions)
        return _plan(
            direction == "backward",
            problem.cell,
            str(problem.dtype).removeprefix("torch."),
            uses_tf32(),
            sizes,
            self.device_numbers(),
            os.environ.get("RNNFAST_PLAN", ""),
        )

    def device_numbers(self) -> DeviceNumbers | str:
        """The current device, as the plan wants it, without the multiprocessors that
        RNNFAST_FREE_SMS leaves to others. Raises ValueError where that is no such number."""
        numbers = module().cuda_device(torch.cuda.current_device())
        return _without(numbers, os.environ.get("RNNFAST_FREE_SMS", "0"))

    def saved_like(self, problem: Problem) -> list[TensorLike]:
        T, B, H, spec = problem.T, problem.B, problem.H, problem.spec
        likes: list[TensorLike] = []
        if spec.gates > 1:  # an RNN's only gate is its output
            likes.append(((T, B, H, slots_of(spec)), problem.dtype))
        if _keeps_cells(problem.cell, problem.dtype, problem.options.all_states):
            likes.append(((T, B, H), wide(problem.dtype)))
        if spec.projected:
            likes.append(((T, B, H), problem.dtype))
        return likes

    def lanes(self, count: int, device: torch.device) -> Lanes:
        """What layers that are pipelined run on."""
        return Streams(count, device)

    def pipeline_steps(self) -> int:
        return cuda_stack.part_steps()

    def why_not_pipelined(
        self, problems: Sequence[Problem], steps: int, dropout: bool
    ) -> str | None:
        return cuda_stack.why_not(self, problems, steps, dropout)

    def forward_stack(
        self, scans: Sequence[Scan], steps: int
    ) -> list[tuple[ScanResult, list[Tensor]]]:
        return cuda_stack.forward(self, [_without_nan(scans[0]), *scans[1:]], steps)

    def backward_stack(
        self,
        scans: Sequence[Scan],
        saved: Sequence[Saved],
        cotangents: Sequence[Cotangents],
        needs: Sequence[Needs],
        steps: int,
    ) -> list[Gradients]:
        if not cuda_stack.fits_backward(self, scans):
            return super().backward_stack(scans, saved, cotangents, needs, steps)
        return cuda_stack.backward(self, scans, saved, cotangents, needs, steps)

    def forward(self, scan: Scan) -> tuple[ScanResult, list[Tensor]]:
        return self.forward_all([scan])[0]

    def backward(self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs) -> Gradients:
        return self.backward_all([scan], [saved], [cotangents], [needs])[0]

    def forward_all(self, scans: Sequence[Scan]) -> list[tuple[ScanResult, list[Tensor]]]:
        first = scans[0]
        training, all_states = first.options.training, first.options.all_states
        clean = [_without_nan(scan) for scan in scans]
        gates = [gates_of(scan) for scan in clean]
        plan = self.plan("forward", problem_of(first), len(scans))
        w_hh, w_hr = _weights(scans)
        h0, c0 = _states([scan.states for scan in scans])
        y, h_last, c_last, c, m = self.call(
            "cuda_forward",
            cell=first.cell,
            strategy=plan.strategy,
            math=plan.math,
            choice=plan.choice,
            gates=gates,
            w_hh=w_hh,
            w_hr=w_hr,
            h0=h0,
            c0=c0,
            lengths=first.lengths,
            resets=first.resets,
            reverse=[scan.options.reverse for scan in scans],
            training=training,
            every_c=training or all_states,
        )
        made = []
        for i, scan in enumerate(scans):
            storage = scan.weights[0].dtype
            final = [h_last[i]] + ([c_last[i]] if c_last else [])
            trace = [c[i].to(storage)] if all_states and c else []
            saved = []
            if training:
                saved += [gates[i]] if scan.spec.gates > 1 else []
                saved += [c[i]] if c and _keeps_cells(scan.cell, storage, all_states) else []
                saved += [m[i]] if m else []
            made.append((ScanResult(y[i], final, trace), saved))
        return made

    def backward_all(
        self,
        scans: Sequence[Scan],
        saved: Sequence[Saved],
        cotangents: Sequence[Cotangents],
        needs: Sequence[Needs],
    ) -> list[Gradients]:
        first = scans[0]
        kept = [_Kept.of(scan, s) for scan, s in zip(scans, saved, strict=True)]
        scale = _scale(cotangents) if first.weights[0].dtype == torch.float16 else None
        plan = self.plan("backward", problem_of(first), len(scans))
        w_hh, w_hr = _weights(scans)
        h0, c0 = _states([scan.states for scan in scans])
        dh_last, dc_last = _states([c.dfinal for c in cotangents])
        dgates, dh0, dc0, every_dh = self.call(
            "cuda_backward",
            cell=first.cell,
            strategy=plan.strategy,
            math=plan.math,
            choice=plan.choice,
            saved=[k.gates for k in kept if k.gates is not None],
            y=[s.y for s in saved],
            c=[k.c for k in kept if k.c is not None],
            w_hh=w_hh,
            w_hr=w_hr,
            h0=h0,
            c0=c0,
            lengths=first.lengths,
            resets=first.resets,
            reverse=[scan.options.reverse for scan in scans],
            dy=[c.dy for c in cotangents],
            dc=[c.dtrace[0] if c.dtrace else None for c in cotangents],
            dh_last=dh_last,
            dc_last=dc_last,
            scale=scale,
            clip=first.options.grad_clip_time,
        )
        made = []
        for i, scan in enumerate(scans):
            slots = SlotGradients(
                scan,
                dgates[i],
                saved[i].y,
                kept[i].gates,
                every_dh[i] if every_dh else None,
                kept[i].m,
                scale,
            )
            dstates = [dh0[i]] + ([dc0[i]] if dc0 else [])
            made.append(
                Gradients(
                    slots.input() if needs[i].input else None,
                    dstates if needs[i].states else None,
                    slots.weights() if needs[i].weights else None,
                )
            )
        return made


@functools.cache
def _arguments_of(op: Any) -> type[tuple[Any, ...]]:
    """Its arguments as a named tuple: torch itself takes a microsecond for each keyword."""
    names = [argument.name for argument in op.default._schema.arguments]
    return namedtuple("Arguments", names)


@functools.lru_cache(maxsize=4096)
def _plan(
    backward: bool,
    cell: str,
    dtype: str,
    tf32: bool,
    sizes: tuple[int, ...],
    device: DeviceNumbers | str,
    forced: str,
) -> Plan:
    T, B, H, P, directions = sizes
    return Plan(
        *module().cuda_plan(
            backward=backward,
            cell=cell,
            dtype=dtype,
            tf32=tf32,
            T=T,
            B=B,
            H=H,
            P=P,
            directions=directions,
            device=device,
            forced=forced,
        )
    )


def _without(numbers: DeviceNumbers, free: str) -> DeviceNumbers:
    if not free.isdigit() or int(free) >= numbers[1]:
        raise ValueError(
            f"RNNFAST_FREE_SMS is a number below the device's {numbers[1]} multiprocessors, "
            f"not {free!r}"
        )
    return (numbers[0], numbers[1] - int(free), *numbers[2:])


class _Kept(NamedTuple):
    """What forward saved, told apart."""

    gates: Tensor | None
    c: Tensor | None
    m: Tensor | None

    @staticmethod
    def of(scan: Scan, saved: Saved) -> _Kept:
        rest = list(saved.extra)
        gates = rest.pop(0) if scan.spec.gates > 1 else None
        m = rest.pop() if scan.spec.projected else None
        c = None
        if len(scan.states) == 2:
            c = rest.pop(0) if rest else saved.trace[0]
        return _Kept(gates, c, m)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What a scan of this storage dtype is computed, and its cell states kept, in."""
    return dtype if dtype == torch.float64 else torch.float32


def uses_tf32() -> bool:
    """Whether recurrent products in float32 may be in tf32: what torch's own RNNs follow."""
    switch: Any = torch.backends.cudnn.rnn
    return switch.fp32_precision == "tf32"


@functools.cache
def module() -> Any:
    """The compiled module; only called where ``unusable`` has no reason."""
    return _ext.load()


def _why_not_built() -> str | None:
    missing = _ext.why_missing()
    if missing is None and not module().with_cuda:
        note = (_ext.build_record() or {})["cuda_note"]
        return f"rnnfast was built without CUDA ({note})"
    return missing


def _keeps_cells(cell: str, storage: torch.dtype, all_states: bool) -> bool:
    """Whether the cell states are saved apart: they are no output, or one of another dtype."""
    return cell.startswith("lstm") and (not all_states or storage != wide(storage))


def _without_nan(scan: Scan) -> Scan:
    """Without what stands in the padding where it could do harm: tokens out of range, and a NaN
    that would end up in what is saved."""
    if scan.lengths is None or not (scan.kind == "tokens" or scan.options.training):
        return scan
    return without_padding(scan)


def _weights(scans: Sequence[Scan]) -> tuple[list[Tensor], list[Tensor]]:
    """(each w_hh, each w_hr)."""
    steps = [scan.step_weights() for scan in scans]
    return [w.w_hh for w in steps], [w.w_hr for w in steps if w.w_hr is not None]


def _states(states: Sequence[list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """(each h, each c)."""
    return [s[0] for s in states], [s[1] for s in states if len(s) == 2]


def _scale(cotangents: Sequence[Cotangents]) -> Tensor:
    """fp32 [1]: the power of two that brings the largest gradient to 2**SCALED_EXPONENT, without
    waiting for the device."""
    given = [t for c in cotangents for t in (c.dy, *c.dfinal, *c.dtrace) if t is not None]
    largest = torch.stack([_largest(t) for t in given if t.numel() > 0]).amax()
    _, exponent = torch.frexp(largest)
    return torch.ldexp(torch.ones_like(largest), SCALED_EXPONENT - exponent.clamp(-80, 80)).view(1)


def _largest(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, float("inf"), dtype=torch.float32)
