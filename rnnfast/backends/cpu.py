"""The backend ``cpu``: the native host kernels (csrc/cpu).

The recurrent loop is one call into C++. What is one large product over all steps (the input's
projection, the gradients of weights and input) is torch's.

16-bit storage is computed in float32, and what backward needs is saved in 16 bits: the gates, which
lie in [-1, 1], as fixed point, finer than bfloat16 by a factor of a hundred; the rest as storage.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .. import _ext
from ..problem import Problem, Scan, ScanResult
from ..scratch import project_input, without_padding
from .base import Backend, Cotangents, Gradients, Needs, Saved, TensorLike, reserved

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What a scan of this storage dtype is computed in."""
    return dtype if dtype == torch.float64 else torch.float32


class Cpu(Backend):
    name = "cpu"

    def __init__(self) -> None:
        self._missing = _ext.why_missing()  # once, and where no tracer looks on

    def unusable(self) -> str | None:
        return self._missing

    def why_not(self, problem: Problem) -> str | None:
        if problem.device != "cpu":
            return f"it computes on the CPU only, not on {problem.device}"
        if problem.dtype not in DTYPES:
            return f"it has no kernel for {problem.dtype}"
        if problem.transformed:
            return "its kernels have no rules for vmap and forward-mode AD"
        return reserved(problem, grad_clip_time=True)

    def strategy(self, problem: Problem) -> str:
        bytes_each = wide(problem.dtype).itemsize
        return module().cpu_plan(problem.cell, problem.B, problem.H, problem.P, bytes_each)

    def saved_like(self, problem: Problem) -> list[TensorLike]:
        T, B, H = problem.T, problem.B, problem.H
        spec, dtype = problem.spec, problem.dtype
        saved: list[TensorLike] = []
        if spec.gates > 1:  # an RNN's only gate is its output
            gates_dtype = dtype if dtype == wide(dtype) else torch.int16
            saved.append(((T, B, spec.gates * H), gates_dtype))
        if spec.extra:
            saved.append(((T, B, H), dtype))
        if _keeps_cells(problem.cell, problem.options.all_states):
            saved.append(((T, B, H), dtype))
        return saved

    def forward(self, scan: Scan) -> tuple[ScanResult, list[Tensor]]:
        storage = scan.weights[0].dtype
        training, all_states = scan.options.training, scan.options.all_states
        own = _converted(scan, wide(storage))
        gates, fixed = _gates(own), None
        if training and storage != wide(storage) and own.spec.gates > 1:
            fixed = torch.empty_like(gates, dtype=torch.int16)
        w_hh, b_hh, w_hr = _recurrent_weights(own)
        h0, c0 = _states(own.states)
        y, h_last, c_last, c, extra = module().cpu_forward(
            cell=own.cell,
            gates=gates,
            fixed=fixed,
            w_hh=w_hh,
            b_hh=b_hh,
            w_hr=w_hr,
            h0=h0,
            c0=c0,
            lengths=own.lengths,
            resets=own.resets,
            reverse=own.options.reverse,
            training=training,
            all_c=training or all_states,
        )
        final = [h_last] if c_last is None else [h_last, c_last]
        c = None if c is None else c.to(storage)
        trace = [c] if all_states and c is not None else []
        result = ScanResult(y.to(storage), [s.to(storage) for s in final], trace)
        saved = []
        if training:
            saved = [gates if fixed is None else fixed] if own.spec.gates > 1 else []
            saved += [extra.to(storage)] if extra is not None else []
            saved += [c] if c is not None and _keeps_cells(own.cell, all_states) else []
        return result, saved

    def backward(self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs) -> Gradients:
        storage = scan.weights[0].dtype
        dtype = wide(storage)
        own = _converted(scan, dtype)
        y = saved.y.to(dtype)
        rest = list(saved.extra)
        gates = rest.pop(0) if own.spec.gates > 1 else y
        extra = rest.pop(0).to(dtype) if own.spec.extra else None
        c = None
        if len(own.states) == 2:
            c = (rest.pop(0) if rest else saved.trace[0]).to(dtype)
        dy, dfinal, dtrace = cotangents
        w_hh, _, w_hr = _recurrent_weights(own)
        h0, c0 = _states(own.states)
        dh_last, dc_last = _states([d.to(dtype) for d in dfinal])
        dgx, dgh_n, dh_total, dh0, dc0 = module().cpu_backward(
            cell=own.cell,
            gates=gates,
            extra=extra,
            y=y,
            c=c,
            w_hh=w_hh,
            w_hr=w_hr,
            h0=h0,
            c0=c0,
            lengths=own.lengths,
            resets=own.resets,
            reverse=own.options.reverse,
            dy=None if dy is None else dy.to(dtype),
            dc=dtrace[0].to(dtype) if dtrace else None,
            dh_last=dh_last,
            dc_last=dc_last,
            grad_clip_time=own.options.grad_clip_time,
        )
        dstates = [dh0] if dc0 is None else [dh0, dc0]
        dweights = None
        if needs.weights:
            recurrent = RecurrentGradients(own, y, extra, dgx, dgh_n, dh_total)
            dweights = [w.to(storage) for w in _weight_gradients(own, dgx, recurrent)]
        return Gradients(
            _input_gradient(own, dgx).to(storage) if needs.input else None,
            [d.to(storage) for d in dstates] if needs.states else None,
            dweights,
        )


@functools.cache
def module() -> Any:
    """The compiled module; only called where ``unusable`` has no reason."""
    return _ext.load()


def _keeps_cells(cell: str, all_states: bool) -> bool:
    """Whether the cell states are saved apart, being no output."""
    return cell.startswith("lstm") and not all_states


def _converted(scan: Scan, dtype: torch.dtype) -> Scan:
    if scan.weights[0].dtype == dtype:
        return scan
    return scan._replace(
        input=scan.input if scan.kind == "tokens" else scan.input.to(dtype),
        states=[s.to(dtype) for s in scan.states],
        weights=[w.to(dtype) for w in scan.weights],
    )


def _gates(scan: Scan) -> Tensor:
    """x W_ihᵀ + b_ih [T, B, G*H], memory of its own: the kernel overwrites it."""
    if scan.kind == "gates":
        return scan.input.clone(memory_format=torch.contiguous_format)
    if scan.kind == "tokens":
        scan = without_padding(scan)
    return project_input(scan).contiguous()


def _recurrent_weights(scan: Scan) -> tuple[Tensor, Tensor | None, Tensor | None]:
    weights = scan.step_weights()
    return weights.w_hh, weights.b_hh, weights.w_hr


def _states(states: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    return states[0], states[1] if len(states) == 2 else None


def _input_gradient(scan: Scan, dgx: Tensor) -> Tensor:
    if scan.kind == "gates":
        return dgx
    return torch.matmul(dgx, scan.weights[0])


def _weight_gradients(scan: Scan, dgx: Tensor, recurrent: RecurrentGradients) -> list[Tensor]:
    """In the order of ``scan.weights``."""
    spec = scan.spec
    rows = dgx.flatten(0, 1)
    made = {
        "w_ih": lambda: _input_weight_gradient(scan, rows),
        "w_hh": recurrent.w_hh,
        "b_ih": lambda: rows.sum(0),
        "b_hh": recurrent.b_hh,
        "w_hr": recurrent.w_hr,
    }
    return [made[name]() for name in spec.weight_names(scan.kind, scan.has_bias)]


def _input_weight_gradient(scan: Scan, rows: Tensor) -> Tensor:
    clean = without_padding(scan).input
    if scan.kind == "dense":
        return rows.t() @ clean.reshape(-1, clean.shape[-1])
    width = scan.weights[0].shape[1]
    transposed = rows.new_zeros(width, rows.shape[1])
    return transposed.index_add_(0, clean.reshape(-1), rows).t()


class RecurrentGradients:
    """Gradients of the recurrent weights: sums over all steps at once.

    ``dgx`` [T, B, G*H] are the gradients of the gates; those of the recurrent product are the same
    but for the GRU's n, whose are ``dgh_n`` [T, B, H].
    """

    def __init__(
        self,
        scan: Scan,
        y: Tensor,
        extra: Tensor | None,
        dgx: Tensor,
        dgh_n: Tensor | None,
        dh_total: Tensor | None,
    ) -> None:
        self.scan, self.y, self.extra = scan, y, extra
        self.dgx, self.dgh_n, self.dh_total = dgx, dgh_n, dh_total
        self.H = dgx.shape[-1] // scan.spec.gates

    def w_hh(self) -> Tensor:
        if self.dgh_n is not None:
            rz, n = self.dgx[..., : 2 * self.H], self.dgh_n
            return torch.cat([self._times_previous(rz), self._times_previous(n)])
        if self.scan.cell == "gru_reset_before":
            assert self.extra is not None
            rz, n = self.dgx[..., : 2 * self.H], self.dgx[..., 2 * self.H :]
            candidate = n.flatten(0, 1).t() @ self.extra.flatten(0, 1)
            return torch.cat([self._times_previous(rz), candidate])
        return self._times_previous(self.dgx)

    def b_hh(self) -> Tensor:
        if self.dgh_n is None:
            return self.dgx.flatten(0, 1).sum(0)
        rz = self.dgx[..., : 2 * self.H].flatten(0, 1).sum(0)
        return torch.cat([rz, self.dgh_n.flatten(0, 1).sum(0)])

    def w_hr(self) -> Tensor:
        assert self.dh_total is not None
        assert self.extra is not None
        return self.dh_total.flatten(0, 1).t() @ self.extra.flatten(0, 1)

    def _times_previous(self, dgates: Tensor) -> Tensor:
        """Σ over t and b of dgates[t, b] times the h that step t began with."""
        scan = self.scan
        if scan.resets is not None:  # it began with 0
            dgates = dgates.masked_fill(scan.resets.unsqueeze(-1), 0)
        later, earlier = (slice(1, None), slice(None, -1))
        if scan.options.reverse:
            later, earlier = earlier, later
        began_with = self._began_with(later, earlier)
        total = dgates[later].flatten(0, 1).t() @ began_with.flatten(0, 1)
        return total.addmm_(self._first(dgates).t(), scan.states[0])

    def _began_with(self, later: slice, earlier: slice) -> Tensor:
        """The h before each step; 0 where there was none, so that an inf of y stays where it was
        cut off (0 · inf is NaN)."""
        scan, h = self.scan, self.y[earlier]
        if scan.resets is not None:
            h = h.masked_fill(scan.resets[later].unsqueeze(-1), 0)
        if scan.lengths is not None:
            steps = torch.arange(self.y.shape[0], device=self.y.device).unsqueeze(-1)
            h = h.masked_fill((steps[later] >= scan.lengths).unsqueeze(-1), 0)
        return h

    def _first(self, dgates: Tensor) -> Tensor:
        """[B, N]: dgates of the step at which each sequence begins, 0 for an empty one."""
        scan = self.scan
        if not scan.options.reverse:
            return dgates[0]
        if scan.lengths is None:
            return dgates[-1]
        T, B, N = dgates.shape
        at = (scan.lengths.clamp(1, T) - 1).view(1, B, 1).expand(1, B, N)
        return dgates.gather(0, at).squeeze(0)
