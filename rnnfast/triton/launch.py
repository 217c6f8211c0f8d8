"""Launching the kernels: which ones a pass needs, and what each is given."""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import resident, resident_reset_before, stepwise, stepwise_backward, stepwise_reset_before
from .cells import CELLS, TritonCell
from .plan import Plan


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


class Cotangents(NamedTuple):
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


def forward(plan: Plan, r: Recurrence, out: Outputs) -> None:
    """Runs the T steps. ``out.gates`` holds gx, and is overwritten."""
    if r.shape.B == 0:
        return
    with device_of(out.y):
        if plan.resident:
            _resident_forward(plan, r, out)
        elif CELLS[r.cell].phases == 2:
            _stepwise_forward_reset_before(plan, r, out)
        else:
            _stepwise_forward(plan, r, out)


def backward(
    plan: Plan, r: Recurrence, saved: Outputs, given: Cotangents, found: Inputs, clip: Clip
) -> None:
    """Runs the T steps back. ``clip``: of what a step hands to the one before it."""
    if r.shape.B == 0:
        return
    with device_of(saved.y):
        if plan.resident:
            _resident_backward(plan, r, saved, given, found, clip)
        elif CELLS[r.cell].phases == 2:
            _stepwise_backward_reset_before(plan, r, saved, given, found, clip)
        else:
            _stepwise_backward(plan, r, saved, given, found, clip)


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensor's GPU the current one, which is where Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


# --- resident ----------------------------------------------------------------------------------


def _resident_forward(plan: Plan, r: Recurrence, out: Outputs) -> None:
    cell, (T, B, H, P) = CELLS[r.cell], r.shape
    grid = (triton.cdiv(B, plan.block_b),)
    if cell.phases == 2:
        resident_reset_before.resident_forward_reset_before[grid](
            out.gates,
            out.y,
            out.extra,
            r.h0,
            out.h_last,
            r.w_hh,
            r.lengths,
            r.resets,
            T,
            B,
            H,
            int(r.reverse),
            SAVE=out.save,
            BLOCK_B=plan.block_b,
            BLOCK_H=plan.block_h,
            PRECISION=r.precision,
            **plan.options,
        )
        return
    resident.resident_forward[grid](
        out.gates,
        out.y,
        out.cells,
        out.extra,
        r.h0,
        r.c0,
        out.h_last,
        out.c_last,
        r.w_hh,
        r.w_hr,
        r.b_n,
        r.lengths,
        r.resets,
        T,
        B,
        H,
        P,
        int(r.reverse),
        FORWARD=cell.forward,
        G=cell.gates,
        S=cell.states,
        SAVED=cell.saved,
        SAVE=out.save,
        BLOCK_B=plan.block_b,
        BLOCK_H=plan.block_h,
        BLOCK_P=plan.block_p,
        PRECISION=r.precision,
        **plan.options,
    )


def _resident_backward(
    plan: Plan, r: Recurrence, saved: Outputs, given: Cotangents, found: Inputs, clip: Clip
) -> None:
    cell, (T, B, H, P) = CELLS[r.cell], r.shape
    grid = (triton.cdiv(B, plan.block_b),)
    if cell.phases == 2:
        resident_reset_before.resident_backward_reset_before[grid](
            saved.gates,
            saved.y,
            r.h0,
            r.w_hh,
            r.lengths,
            r.resets,
            given.dy,
            given.dh_last,
            found.dgates,
            found.dh0,
            T,
            B,
            H,
            int(r.reverse),
            *clip,
            BLOCK_B=plan.block_b,
            BLOCK_H=plan.block_h,
            PRECISION=r.precision,
            **plan.options,
        )
        return
    resident.resident_backward[grid](
        saved.gates,
        saved.y,
        saved.cells,
        _read_extra(cell, saved),
        r.h0,
        r.c0,
        r.w_hh,
        r.w_hr,
        r.lengths,
        r.resets,
        given.dy,
        given.dcells,
        given.dh_last,
        given.dc_last,
        found.dgates,
        found.dextra,
        found.dh0,
        found.dc0,
        T,
        B,
        H,
        P,
        int(r.reverse),
        *clip,
        BACKWARD=cell.backward,
        G=cell.gates,
        S=cell.states,
        READS_H=cell.reads_h,
        BLOCK_B=plan.block_b,
        BLOCK_H=plan.block_h,
        BLOCK_P=plan.block_p,
        PRECISION=r.precision,
        **plan.options,
    )


def _read_extra(cell: TritonCell, saved: Outputs) -> Tensor | None:
    """The extra saved value where backward's gate math reads it; a projection's m it does not."""
    return None if cell.projected else saved.extra


# --- stepwise ----------------------------------------------------------------------------------


def _stepwise_forward(plan: Plan, r: Recurrence, out: Outputs) -> None:
    cell, (T, B, H, P) = CELLS[r.cell], r.shape
    buffers = _two_buffers(r.h0)
    c = None if r.c0 is None else r.c0.to(torch.float32, copy=True)
    m, extra = None, out.extra
    if cell.projected:
        extra, m = None, out.extra if out.save else buffers[0].new_empty(B, H)
    units = (triton.cdiv(B, plan.block_b), triton.cdiv(H, plan.block_h))
    outs = (units[0], triton.cdiv(P, plan.block_h))
    blocks = plan.blocks
    reverse = int(r.reverse)
    for step in range(T):
        h_in, h_out = buffers[step % 2], buffers[(step + 1) % 2]
        stepwise.step_forward[units](
            out.gates,
            out.y,
            out.cells,
            extra,
            h_in,
            h_out,
            c,
            m,
            r.w_hh,
            r.b_n,
            r.lengths,
            r.resets,
            step,
            T,
            B,
            H,
            P,
            reverse,
            FORWARD=cell.forward,
            G=cell.gates,
            S=cell.states,
            SAVED=cell.saved,
            SAVE=out.save,
            PRECISION=r.precision,
            **blocks,
        )
        if m is not None:
            stepwise.step_project[outs](
                out.y,
                m,
                h_in,
                h_out,
                r.w_hr,
                r.lengths,
                step,
                T,
                B,
                H,
                P,
                reverse,
                SAVE=out.save,
                PRECISION=r.precision,
                **blocks,
            )
    out.h_last.copy_(buffers[T % 2])
    if c is not None:
        assert out.c_last is not None
        out.c_last.copy_(c)


def _stepwise_forward_reset_before(plan: Plan, r: Recurrence, out: Outputs) -> None:
    T, B, H, _ = r.shape
    buffers = _two_buffers(r.h0)
    extra = out.extra if out.save else buffers[0].new_empty(B, H)
    grid = (triton.cdiv(B, plan.block_b), triton.cdiv(H, plan.block_h))
    ends = (r.w_hh, r.lengths, r.resets)
    for step in range(T):
        h_in, h_out = buffers[step % 2], buffers[(step + 1) % 2]
        tail = (*ends, step, T, B, H, int(r.reverse), out.save)
        kernel = stepwise_reset_before.step_reset[grid]
        kernel(out.gates, extra, h_in, *tail, PRECISION=r.precision, **plan.blocks)
        kernel = stepwise_reset_before.step_candidate[grid]
        kernel(out.gates, out.y, extra, h_in, h_out, *tail, PRECISION=r.precision, **plan.blocks)
    out.h_last.copy_(buffers[T % 2])


def _stepwise_backward(
    plan: Plan, r: Recurrence, saved: Outputs, given: Cotangents, found: Inputs, clip: Clip
) -> None:
    cell, (T, B, H, P) = CELLS[r.cell], r.shape
    carry = given.dh_last.to(torch.float32, copy=True)
    dc = None if given.dc_last is None else given.dc_last.to(torch.float32, copy=True)
    units = (triton.cdiv(B, plan.block_b), triton.cdiv(H, plan.block_h))
    outs = (units[0], triton.cdiv(P, plan.block_h))
    planes = cell.gates - int(cell.reads_h)
    tail = (T, B, H, P, int(r.reverse), *clip)
    blocks = {**plan.blocks, "PRECISION": r.precision}
    for step in range(T):
        if cell.projected:
            stepwise_backward.step_output_gradient[outs](
                carry,
                found.dgates,
                found.dextra,
                given.dy,
                r.w_hh,
                r.lengths,
                r.resets,
                step,
                *tail,
                G=cell.gates,
                **blocks,
            )
        stepwise_backward.step_backward[units](
            saved.gates,
            saved.y,
            saved.cells,
            _read_extra(cell, saved),
            r.h0,
            r.c0,
            carry,
            dc,
            r.w_hh,
            r.w_hr,
            r.lengths,
            r.resets,
            given.dy,
            given.dcells,
            found.dgates,
            found.dextra,
            step,
            *tail,
            BACKWARD=cell.backward,
            G=cell.gates,
            S=cell.states,
            READS_H=cell.reads_h,
            **blocks,
        )
    dextra = found.dextra if cell.reads_h else None
    stepwise_backward.first_state_gradient[outs](
        carry,
        found.dgates,
        dextra,
        r.w_hh,
        r.lengths,
        r.resets,
        found.dh0,
        *tail,
        G=cell.gates,
        PLANES=planes,
        **blocks,
    )
    if dc is not None:
        assert found.dc0 is not None
        found.dc0.copy_(dc)


def _stepwise_backward_reset_before(
    plan: Plan, r: Recurrence, saved: Outputs, given: Cotangents, found: Inputs, clip: Clip
) -> None:
    T, B, H, P = r.shape
    carry = given.dh_last.to(torch.float32, copy=True)
    direct = torch.empty_like(carry)
    grid = (triton.cdiv(B, plan.block_b), triton.cdiv(H, plan.block_h))
    head = (saved.gates, saved.y, r.h0, carry, r.w_hh, r.lengths, r.resets)
    blocks = {**plan.blocks, "PRECISION": r.precision}
    for step in range(T):
        tail = (found.dgates, direct, step, T, B, H, int(r.reverse))
        stepwise_reset_before.step_backward_candidate[grid](*head, given.dy, *tail, *clip, **blocks)
        stepwise_reset_before.step_backward_reset[grid](*head, *tail, **blocks)
    stepwise_backward.first_state_gradient[grid](
        carry,
        found.dgates,
        None,
        r.w_hh,
        r.lengths,
        r.resets,
        found.dh0,
        T,
        B,
        H,
        P,
        int(r.reverse),
        *clip,
        G=3,
        PLANES=2,
        **blocks,
    )


def _two_buffers(h0: Tensor) -> tuple[Tensor, Tensor]:
    first = h0.to(torch.float32, copy=True)
    return first, torch.empty_like(first)
