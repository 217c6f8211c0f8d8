"""The backend ``cpu``: the native host kernels (csrc/cpu).

The recurrent loop is one call into C++. What is one large product over all steps (the input's
projection, where the loop does not make it, the gradients of weights and input) is that of
``products``.

16-bit storage is computed in float32, and what backward needs is saved in 16 bits: the gates, which
lie in [-1, 1], as fixed point, finer than bfloat16 by a factor of a hundred; the rest as storage.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _ext, library
from ..problem import (
    Cotangents,
    Gradients,
    Needs,
    Problem,
    Saved,
    Scan,
    ScanResult,
    cast,
    h_and_c,
    wide,
)
from ..products import multiply
from ..products.arithmetic import Rounding
from ..products.gates import GateMajor
from ..products.gradients import Backward
from ..products.projection import own_projection
from . import own_cpu
from .base import KernelBackend, TensorLike, why_no_kernel

Forward = tuple[ScanResult, list[Tensor]]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Cpu(KernelBackend):
    name = "cpu"
    wide_cells = False

    def __init__(self) -> None:
        self._missing = _ext.why_missing()  # once, and where no tracer looks on

    def unusable(self) -> str | None:
        return self._missing

    def why_not(self, problem: Problem) -> str | None:
        reason = why_no_kernel(problem, "cpu", DTYPES)
        if reason is None and problem.dual and (missing := library.why_not()) is not None:
            reason = f"kernels for tangents are compiled, and {missing}"
        if reason is None and problem.spec.own:
            reason = own_cpu.why_not(problem.cell, problem.H, problem.bias, problem.dtype)
        return reason

    def strategy(self, problem: Problem) -> str:
        if problem.spec.own:
            return own_cpu.strategy(problem)
        return self._plan(problem) + ("; tangents compiled from the step" if problem.dual else "")

    def _plan(self, problem: Problem) -> str:
        bytes_each = wide(problem.dtype).itemsize
        return module().cpu_plan(problem.cell, problem.B, problem.H, problem.P, bytes_each)

    def saved_like(self, problem: Problem) -> list[TensorLike]:
        return own_cpu.saved_like(problem) if problem.spec.own else super().saved_like(problem)

    def saved_as(self, name: str, problem: Problem) -> TensorLike:
        T, B, H, dtype = problem.T, problem.B, problem.H, problem.dtype
        if name != "gates":
            return (T, B, H), dtype
        return (T, B, problem.spec.gates * H), dtype if dtype == wide(dtype) else torch.int16

    def forward(self, scan: Scan) -> Forward:
        if scan.spec.own:
            return own_cpu.forward(scan)
        return self._forward(scan)()

    def forward_members(self, scans: Sequence[Scan]) -> list[Forward]:
        at_once, jobs = self._at_once(scans), module().CpuJobs()
        made = [self._forward(scan, jobs) for scan in scans[:at_once]]
        jobs.run()
        return [finished() for finished in made] + [self.forward(s) for s in scans[at_once:]]

    def _at_once(self, scans: Sequence[Scan]) -> int:
        """How many of them run together, each on a thread of its own."""
        if scans[0].spec.own:
            return 0
        return len(scans) - len(scans) % module().cpu_threads()

    def _forward(self, scan: Scan, jobs: Any = None) -> Callable[[], Forward]:
        """What finishes it, once ``jobs`` ran, where there are any."""
        storage = scan.weights[0].dtype
        training, all_states = scan.options.training, scan.options.all_states
        own = scan.to(wide(storage))
        gates, x, fixed = None, _multiplied_by_kernel(own), None
        saves = training and own.spec.saves_gates
        weights, (h0, c0) = own.step_weights(), h_and_c(own.states)
        assert weights.w_hh is not None
        shape = (*own.input.shape[:2], len(weights.w_hh))
        if saves and storage != wide(storage):
            fixed = own.input.new_empty(shape, dtype=torch.int16)
        if x is None:
            gates = own_projection(own)
        elif saves and fixed is None:
            gates = x.new_empty(shape)
        y, h_last, c_last, c, extra = module().cpu_forward(
            cell=own.cell,
            gates=gates,
            x=x,
            w_ih=None if x is None else own.weight("w_ih"),
            b_ih=None if x is None else own.weight("b_ih"),
            fixed=fixed,
            w_hh=weights.w_hh,
            b_hh=weights.b_hh,
            w_hr=weights.w_hr,
            h0=h0,
            c0=c0,
            lengths=own.lengths,
            resets=own.resets,
            reverse=own.options.reverse,
            training=training,
            all_c=training or all_states,
            jobs=jobs,
        )

        def finished() -> Forward:
            final = [h_last] if c_last is None else [h_last, c_last]
            every_c = _to(c, storage)
            trace = [every_c] if all_states and every_c is not None else []
            result = ScanResult(cast(y, storage), [cast(s, storage) for s in final], trace)
            made = {
                "gates": gates if fixed is None else fixed,
                own.spec.extra: _to(extra, storage),
                "c": every_c,
            }
            return result, self.to_save(scan, made)

        return finished

    def backward(self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs) -> Gradients:
        if scan.spec.own:
            return own_cpu.backward(scan, saved, cotangents, needs)
        return self._backward(scan, saved, cotangents, needs)()

    def backward_members(
        self,
        scans: Sequence[Scan],
        saved: Sequence[Saved],
        cotangents: Sequence[Cotangents],
        needs: Sequence[Needs],
    ) -> list[Gradients]:
        at_once, jobs = self._at_once(scans), module().CpuJobs()
        each = list(zip(scans, saved, cotangents, needs, strict=True))
        made = [self._backward(*one, jobs) for one in each[:at_once]]
        jobs.run()
        return [finished() for finished in made] + [self.backward(*one) for one in each[at_once:]]

    def _backward(
        self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs, jobs: Any = None
    ) -> Callable[[], Gradients]:
        storage = scan.weights[0].dtype
        dtype = wide(storage)
        own, y, spec = scan.to(dtype), cast(saved.y, dtype), scan.spec
        kept = self.kept(scan, saved)
        extra, c = (_to(kept.get(name), dtype) for name in (spec.extra, "c"))
        dy, dfinal, dtrace = cotangents
        weights, (h0, c0) = own.step_weights(), h_and_c(own.states)
        dh_last, dc_last = h_and_c([cast(d, dtype) for d in dfinal])
        dgx, own_dgh, dh_total, dh0, dc0 = module().cpu_backward(
            cell=own.cell,
            gates=kept.get("gates", y),
            extra=extra,
            y=y,
            c=c,
            w_hh=weights.w_hh,
            w_hr=weights.w_hr,
            h0=h0,
            c0=c0,
            lengths=own.lengths,
            resets=own.resets,
            reverse=own.options.reverse,
            dy=_to(dy, dtype),
            dc=_to(dtrace[0], dtype) if dtrace else None,
            dh_last=dh_last,
            dc_last=dc_last,
            grad_clip_time=own.options.grad_clip_time,
            jobs=jobs,
        )

        def finished() -> Gradients:
            dgates = GateMajor(spec, dgx, own_dgh)
            backward = Backward(own, y, dgates, Rounding(storage), {spec.extra: extra}, dh_total)
            return backward.gradients(needs, [dh0] if dc0 is None else [dh0, dc0])

        return finished


def _multiplied_by_kernel(scan: Scan) -> Tensor | None:
    """x, where the kernel is to make the input's part of the gates, a few steps at a time."""
    if scan.kind != "dense":
        return None
    w_ih, b_ih, w_hh = (scan.weight(name) for name in ("w_ih", "b_ih", "w_hh"))
    assert w_ih is not None
    assert w_hh is not None
    B, I = scan.input.shape[1:]
    H, P = len(w_hh) // scan.spec.gates, w_hh.shape[1]
    if not module().cpu_makes_input(scan.cell, B, I, H, P, w_ih.itemsize):
        return None
    tensors = (scan.input, w_ih) if b_ih is None else (scan.input, w_ih, b_ih)
    return scan.input if multiply.is_ours(*tensors) else None


@functools.cache
def module() -> Any:
    """The compiled module; only called where ``unusable`` has no reason."""
    return _ext.load()


def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else cast(tensor, dtype)
