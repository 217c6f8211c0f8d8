"""The backend ``cpu``: the native host kernels (csrc/cpu).

The recurrent loop is one call into C++, which makes the input's product too, and the gradients of
the weights are another. Products that our kernels do not take are those of ``products``.

The kernels read and write 16-bit storage. Its numbers are computed in float32, but where the
processor has dot products of bfloat16, rows that are multiplied are rounded to it. What backward
needs is saved in 16 bits: the gates, which lie in [-1, 1], as fixed point, finer than bfloat16 by a
factor of a hundred; the rest as storage.
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
from .base import KernelBackend, TensorLike, WholeLayer, why_no_kernel

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
        sizes = (problem.B, problem.H, problem.P)
        plan: str = module().cpu_plan(problem.cell, *sizes, problem.dtype)
        return plan + (of_bfloat16() if problem.dtype == torch.bfloat16 else "")

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

    def whole_layer(self, problem: Problem) -> WholeLayer | None:
        steps = problem.spec.gates * problem.H if problem.options.training else problem.I
        stored_wide = problem.dtype == wide(problem.dtype)
        known = problem.kind == "dense" and (stored_wide or not problem.spec.own)
        ours = 0 < problem.I <= multiply.MOST_STEPS and steps <= multiply.MOST_STEPS
        if not (known and ours and multiply.is_faster()):
            return None
        return own_cpu.layer(problem) if problem.spec.own else _Layer(self, problem)

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
        weights, (h0, c0) = scan.named_weights(), h_and_c(scan.states)
        x = scan.input if multiplied_by_kernel(scan) else None
        y, h_last, c_last, c, extra, gates = module().cpu_forward(
            cell=scan.cell,
            gates=own_projection(scan.to(wide(storage))) if x is None else None,
            x=x,
            w_ih=None if x is None else weights["w_ih"],
            b_ih=None if x is None else weights.get("b_ih"),
            fixed=training and scan.spec.saves_gates and storage != wide(storage),
            w_hh=weights["w_hh"],
            b_hh=weights.get("b_hh"),
            w_hr=weights.get("w_hr"),
            h0=h0,
            c0=c0,
            lengths=scan.lengths,
            resets=scan.resets,
            reverse=scan.options.reverse,
            training=training,
            all_c=training or all_states,
            jobs=jobs,
        )

        def finished() -> Forward:
            final = [h_last] if c_last is None else [h_last, c_last]
            trace = [c] if all_states and c is not None else []
            made = {"gates": gates, scan.spec.extra: extra, "c": c}
            return ScanResult(y, final, trace), self.to_save(scan, made)

        return finished

    def backward(self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs) -> Gradients:
        if scan.spec.own:
            return own_cpu.backward(scan, saved, cotangents, needs)
        if _in_one_call(scan, saved.y):
            return self._gradients(scan, saved, cotangents, needs)
        return self._backward(scan, saved, cotangents, needs)()

    def _backward_arguments(
        self, scan: Scan, saved: Saved, cotangents: Cotangents
    ) -> dict[str, Any]:
        weights, (h0, c0) = scan.named_weights(), h_and_c(scan.states)
        kept, (dy, dfinal, dtrace) = self.kept(scan, saved), cotangents
        dh_last, dc_last = h_and_c(dfinal)
        return {
            "cell": scan.cell,
            "gates": kept.get("gates", saved.y),
            "extra": kept.get(scan.spec.extra),
            "y": saved.y,
            "c": kept.get("c"),
            "w_hh": weights["w_hh"],
            "w_hr": weights.get("w_hr"),
            "h0": h0,
            "c0": c0,
            "lengths": scan.lengths,
            "resets": scan.resets,
            "reverse": scan.options.reverse,
            "dy": dy,
            "dc": dtrace[0] if dtrace else None,
            "dh_last": dh_last,
            "dc_last": dc_last,
            "grad_clip_time": scan.options.grad_clip_time,
        }

    def _gradients(
        self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs
    ) -> Gradients:
        """All of them by one call."""
        arguments = self._backward_arguments(scan, saved, cotangents)
        names = scan.spec.weight_names("dense", scan.has_bias) if needs.weights else ()
        dx, dh0, dc0, dweights = module().cpu_gradients(
            names=names,
            of_input=needs.input,
            of_states=needs.states,
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
        arguments = self._backward_arguments(scan, saved, cotangents)
        dgx, own_dgh, dh_total, dh0, dc0 = module().cpu_backward(
            **arguments, jobs=jobs, of_states=needs.states
        )

        def finished() -> Gradients:
            dstates = [dh0] if dc0 is None else [dh0, dc0]
            left = Backward(
                scan,
                saved.y,
                GateMajor(scan.spec, dgx, own_dgh),
                Rounding(scan.weights[0].dtype),
                {scan.spec.extra: arguments["extra"]},
                dh_total,
                needs.groups,
            )
            return _gradients(left, needs, dstates)

        return finished


class _Layer(WholeLayer):
    """Of a built-in cell."""

    def __init__(self, backend: Cpu, problem: Problem) -> None:
        self._run, self._back = module().cpu_layer, module().cpu_layer_gradients
        self._backend, self._spec, self._reverse = backend, problem.spec, problem.options.reverse
        names = self._names = problem.spec.weight_names("dense", problem.bias)
        wanted = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
        self._places = tuple(names.index(name) if name in names else None for name in wanted)

    def _named(self, weights: Sequence[Tensor]) -> list[Tensor | None]:
        return [None if place is None else weights[place] for place in self._places]

    def forward(
        self, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], training: bool
    ) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor | None]]:
        h0, c0 = (*states, None, None)[:2]
        y, h, c, *saved = self._run(
            self._spec.name, x, h0, c0, *self._named(weights), training, self._reverse
        )
        return y, (h,) if c is None else (h, c), saved

    def gradients(
        self,
        needs: Needs,
        x: Tensor,
        states: Sequence[Tensor],
        weights: Sequence[Tensor],
        y: Tensor,
        saved: Sequence[Tensor | None],
        dy: Tensor | None,
        dlast: Sequence[Tensor | None],
    ) -> tuple[Tensor | None, Sequence[Tensor], Sequence[Tensor]]:
        names = self._names if needs.weights else ()
        w_ih, w_hh, _, _, w_hr = self._named(weights)
        (h0, c0), (dh, dc) = (*states, None, None)[:2], (*dlast, None)[:2]
        wanted = (names, needs.input, needs.states)
        dx, dh0, dc0, dweights = self._back(
            self._spec.name,
            *wanted,
            *(x, w_ih, w_hh, w_hr, h0, c0, y),
            *saved,
            *(dy, dh, dc, self._reverse),
        )
        return dx, (dh0,) if dc0 is None else (dh0, dc0), dweights

    def to_save(self, scan: Scan, saved: Sequence[Tensor | None]) -> list[Tensor]:
        named = dict(zip(("c", self._spec.extra, "gates"), saved, strict=True))
        return self._backend.to_save(scan, named)


def _gradients(left: Backward, needs: Needs, dstates: list[Tensor]) -> Gradients:
    """All of them: products of ours with what the kernels left as it is, the others of it wide."""
    dweights = _weight_gradients(left) if needs.weights else None
    dinput = _input_gradient(left) if needs.input else None
    missing = Needs(
        needs.input and dinput is None,
        needs.states,
        needs.weights and dweights is None,
        needs.groups,
    )
    wanted = missing.input or missing.weights
    found = (_wide(left) if wanted else left).gradients(missing, dstates)
    return Gradients(
        found.dinput if dinput is None else dinput,
        found.dstates,
        found.dweights if dweights is None else dweights,
    )


def _gate_major(left: Backward) -> GateMajor:
    assert isinstance(left.dgates, GateMajor)
    return left.dgates


def _wide(left: Backward) -> Backward:
    """The same without 16-bit tensors."""
    dtype, (spec, dgx, own) = wide(left.rounding.storage), _gate_major(left)
    operands = {name: _to(values, dtype) for name, values in left.operands.items()}
    return left._replace(
        scan=left.scan.to(dtype),
        y=cast(left.y, dtype),
        dgates=GateMajor(spec, cast(dgx, dtype), _to(own, dtype)),
        operands=operands,
        doutput=_to(left.doutput, dtype),
    )


def _input_gradient(left: Backward) -> Tensor | None:
    """That of 16-bit input, None where its product is not ours."""
    scan, rows = left.scan, _gate_major(left).dgx.flatten(0, 1)
    if scan.kind != "dense":
        return None
    made = multiply.wide_product(rows, scan.named_weights()["w_ih"])
    return None if made is None else left.rounding(made).view_as(scan.input)


def _in_one_call(scan: Scan, y: Tensor) -> bool:
    """Whether one call makes all gradients of a scan, with products of ours."""
    if scan.kind != "dense":
        return False
    rows, columns = scan.weights[0].shape  # of w_ih
    known = 0 < columns and rows <= multiply.MOST_STEPS
    return known and multiply.is_ours(scan.input, y, scan.states[0])


def _weight_gradients(left: Backward) -> list[Tensor] | None:
    """Those of all weights, in the order of the scan's, by one call of the kernel; None where it
    does not take them."""
    scan, (_, dgx, own_dgh) = left.scan, _gate_major(left)
    tensors = (left.y, scan.states[0])
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


def of_bfloat16() -> str:
    """How products of bfloat16 are made, to be added to an instruction set's name; or nothing."""
    if not module().cpu_has_dots():
        return ""
    why_no_tiles = module().cpu_why_no_tiles()
    note = f" (without AMX: {why_no_tiles})" if why_no_tiles else ""
    tiles = ", of 16 rows or more in tiles (AMX)" if module().cpu_has_tiles() else note
    return f" with dot products of bfloat16{tiles}"


@functools.cache
def module() -> Any:
    """The compiled module; only called where ``unusable`` has no reason."""
    return _ext.cpu()


def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else cast(tensor, dtype)
