"""The backend ``cpu``: the native host kernels (csrc/cpu).

The recurrent loop is one call into C++, which makes the input's product too, and the gradients of
the weights are another. Products that our kernels do not take are those of ``products``.

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
from ..products.projection import multiplied_by_kernel, own_projection
from ..surroundings import constant_while_tracing
from . import own_cpu
from .base import KernelBackend, TensorLike, why_no_kernel

Forward = tuple[ScanResult, list[Tensor]]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Cpu(KernelBackend):
    name = "cpu"
    wide_cells = False

    def __init__(self) -> None:
        self._missing = _ext.why_no_cpu()  # once, and where no tracer looks on

    def unusable(self) -> str | None:
        return self._missing

    def why_not(self, problem: Problem) -> str | None:
        reason = why_no_kernel(problem, "cpu", DTYPES)
        if reason is None and problem.dual and (missing := _why_no_compiler()) is not None:
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

    def whole_layer(self, problem: Problem) -> Callable[..., Any] | None:
        known = (
            problem.kind == "dense" and problem.spec.recurrent is not None and not problem.spec.own
        )
        ours = problem.dtype == wide(problem.dtype) and 0 < problem.I <= multiply.MOST_STEPS
        return module().cpu_layer if known and ours and multiply.is_faster() else None

    def forward_over(self, scan: Scan) -> Forward:
        return own_cpu.forward(scan, over=True) if scan.spec.own else self.forward(scan)

    def forward_members(self, scans: Sequence[Scan]) -> list[Forward]:
        at_once, jobs = self._at_once(scans), module().cpu_jobs()
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
        weights, (h0, c0) = own.named_weights(), h_and_c(own.states)
        x = own.input if multiplied_by_kernel(own) else None
        y, h_last, c_last, c, extra, gates = module().cpu_forward(
            cell=own.cell,
            gates=own_projection(own) if x is None else None,
            x=x,
            w_ih=None if x is None else weights["w_ih"],
            b_ih=None if x is None else weights.get("b_ih"),
            fixed=training and own.spec.saves_gates and storage != wide(storage),
            w_hh=weights["w_hh"],
            b_hh=weights.get("b_hh"),
            w_hr=weights.get("w_hr"),
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
                "gates": gates,
                own.spec.extra: _to(extra, storage),
                "c": every_c,
            }
            return result, self.to_save(scan, made)

        return finished

    def backward(self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs) -> Gradients:
        if scan.spec.own:
            return own_cpu.backward(scan, saved, cotangents, needs)
        if _in_one_call(scan, saved.y):
            return self._gradients(scan, saved, cotangents, needs)
        return self._backward(scan, saved, cotangents, needs)()

    def _backward_arguments(
        self, scan: Scan, own: Scan, saved: Saved, cotangents: Cotangents
    ) -> dict[str, Any]:
        """``own``: ``scan`` in the wide dtype."""
        dtype, weights, (h0, c0) = own.dtype, own.named_weights(), h_and_c(own.states)
        kept, y = self.kept(scan, saved), cast(saved.y, dtype)
        dy, dfinal, dtrace = cotangents
        dh_last, dc_last = h_and_c([cast(d, dtype) for d in dfinal])
        return {
            "cell": own.cell,
            "gates": kept.get("gates", y),
            "extra": _to(kept.get(own.spec.extra), dtype),
            "y": y,
            "c": _to(kept.get("c"), dtype),
            "w_hh": weights["w_hh"],
            "w_hr": weights.get("w_hr"),
            "h0": h0,
            "c0": c0,
            "lengths": own.lengths,
            "resets": own.resets,
            "reverse": own.options.reverse,
            "dy": _to(dy, dtype),
            "dc": _to(dtrace[0], dtype) if dtrace else None,
            "dh_last": dh_last,
            "dc_last": dc_last,
            "grad_clip_time": own.options.grad_clip_time,
        }

    def _gradients(
        self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs
    ) -> Gradients:
        """All of them by one call."""
        arguments = self._backward_arguments(scan, scan, saved, cotangents)
        names = scan.spec.weight_names("dense", scan.has_bias) if needs.weights else ()
        dx, dh0, dc0, dweights = module().cpu_gradients(
            names=names,
            of_input=needs.input,
            x=scan.input,
            w_ih=scan.weight("w_ih"),
            groups=needs.groups,
            **arguments,
        )
        dstates = [dh0] if dc0 is None else [dh0, dc0]
        return Gradients(dx, dstates if needs.states else None, dweights if names else None)

    def backward_members(
        self,
        scans: Sequence[Scan],
        saved: Sequence[Saved],
        cotangents: Sequence[Cotangents],
        needs: Sequence[Needs],
    ) -> list[Gradients]:
        at_once, jobs = self._at_once(scans), module().cpu_jobs()
        each = list(zip(scans, saved, cotangents, needs, strict=True))
        made = [self._backward(*one, jobs) for one in each[:at_once]]
        jobs.run()
        return [finished() for finished in made] + [self.backward(*one) for one in each[at_once:]]

    def _backward(
        self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs, jobs: Any = None
    ) -> Callable[[], Gradients]:
        storage = scan.weights[0].dtype
        own, spec = scan.to(wide(storage)), scan.spec
        arguments = self._backward_arguments(scan, own, saved, cotangents)
        y, extra = arguments["y"], arguments["extra"]
        dgx, own_dgh, dh_total, dh0, dc0 = module().cpu_backward(**arguments, jobs=jobs)

        def finished() -> Gradients:
            dstates = [dh0] if dc0 is None else [dh0, dc0]
            dgates, rounding = GateMajor(spec, dgx, own_dgh), Rounding(storage)
            backward = Backward(own, y, dgates, rounding, {spec.extra: extra}, dh_total)
            backward = backward._replace(groups=needs.groups)
            made = _weight_gradients(backward, dgates) if needs.weights else None
            if made is None:
                return backward.gradients(needs, dstates)
            rest = backward.gradients(needs._replace(weights=False), dstates)
            return rest._replace(dweights=made)

        return finished


def _in_one_call(scan: Scan, y: Tensor) -> bool:
    """Whether one call makes all gradients of a scan, with products of ours."""
    if scan.kind != "dense" or scan.dtype != wide(scan.dtype):
        return False
    rows, columns = scan.weights[0].shape  # of w_ih
    known = 0 < columns and rows <= multiply.MOST_STEPS
    return known and multiply.is_ours(scan.input, y, scan.states[0])


def _weight_gradients(left: Backward, dgates: GateMajor) -> list[Tensor] | None:
    """Those of all weights, in the order of the scan's, by one call of the kernel; None where it
    does not take them."""
    scan, (_, dgx, own_dgh) = left.scan, dgates
    tensors = (dgx, left.y, scan.states[0])
    dense = scan.kind == "dense"
    if not multiply.is_ours(*tensors, scan.input) if dense else not multiply.is_ours(*tensors):
        return None
    names = scan.spec.weight_names(scan.kind, scan.has_bias)
    by_kernel = names if dense else [name for name in names if name != "w_ih"]
    made = module().cpu_weight_gradients(
        cell=scan.cell,
        names=by_kernel,
        x=scan.input if dense else None,
        y=left.y,
        extra=left.operands[scan.spec.extra],
        h0=scan.states[0],
        dgx=dgx,
        dgh_own=own_dgh,
        dh_total=left.doutput,
        lengths=scan.lengths,
        resets=scan.resets,
        reverse=scan.options.reverse,
        groups=left.groups,
    )
    found = dict(zip(by_kernel, [left.rounding(one) for one in made], strict=True))
    return [found[name] if name in found else left.w_ih() for name in names]


@constant_while_tracing
def _why_no_compiler() -> str | None:
    return library.why_not()


@functools.cache
def module() -> Any:
    """The compiled module; only called where ``unusable`` has no reason."""
    return _ext.cpu()


def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else cast(tensor, dtype)
