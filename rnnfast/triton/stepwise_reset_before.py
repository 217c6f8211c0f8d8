"""The stepwise kernels of the GRU that resets before the product: two launches a step.

Tensors as in stepwise.py. Forward: ``step_reset`` (r, z, u), ``step_candidate`` (n, h'). Backward:
``step_backward_candidate`` (dg_z, dg_n), ``step_backward_reset`` (dg_r). extra is u = r·h, [B, H]
where nothing is SAVEd, as gates then holds r and z in the place of gx all the same.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .gru import (
    gru_reset_before_backward_candidate,
    gru_reset_before_backward_reset,
    gru_reset_before_forward_candidate,
    gru_reset_before_forward_reset,
)
from .stepwise_backward import ends_of, handed_on
from .tiles import clear, load_planes, multiply, multiply_gradient, store_planes


@triton.jit(do_not_specialize=["step", "T", "B", "reverse"])
def step_reset(
    gates,
    extra,
    h_in,
    w_hh,
    lengths,
    resets,
    step,
    T,
    B,
    H,
    reverse,
    SAVE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    first_unit = tl.program_id(1).to(tl.int64) * BLOCK_H
    rows = tl.arange(0, BLOCK_B)[:, None]
    units = tl.arange(0, BLOCK_H)[None, :]
    ks = tl.arange(0, BLOCK_K)
    in_batch = rows < B - first
    in_units = units < H - first_unit
    in_h = in_batch & in_units
    t = tl.where(reverse != 0, T - 1 - step, step)
    row = t.to(tl.int64) * B + first
    going_on = in_batch
    if resets is not None:
        going_on = in_batch & (tl.load(resets + row + rows, mask=in_batch, other=1) == 0)
    gh_r = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    gh_z = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    w = w_hh + first_unit * H
    rows_of_z = tl.cast(H, tl.int64) * H
    for k in range(0, H, BLOCK_K):
        in_k = k + ks[:, None] < H
        a_mask = going_on & (k + ks[None, :] < H)
        a = tl.load(h_in + first * H + (rows * H + k + ks[None, :]), mask=a_mask, other=0.0)
        at = units * H + k + ks[:, None]
        gh_r = multiply(a, tl.load(w + at, mask=in_units & in_k, other=0.0), gh_r, PRECISION)
        w_z = tl.load(w + rows_of_z + at, mask=in_units & in_k, other=0.0)
        gh_z = multiply(a, w_z, gh_z, PRECISION)
    at_h = first_unit + (rows * H + units)
    s = (tl.load(h_in + first * H + at_h, mask=in_h & going_on, other=0.0),)
    at_g = gates + row * (3 * H) + first_unit
    gx = load_planes(at_g, rows * (3 * H) + units, in_h, H, 2)
    r, z, u = gru_reset_before_forward_reset(gx, (gh_r, gh_z), s)
    store_planes(at_g, rows * (3 * H) + units, in_h, H, (r, z), 2)
    alive = in_batch
    if lengths is not None:
        alive = t < tl.load(lengths + first + rows, mask=in_batch, other=0)
    u_row = first
    if SAVE:
        u_row = row
    tl.store(extra + u_row * H + at_h, tl.where(alive, u, 0.0), mask=in_h)


@triton.jit(do_not_specialize=["step", "T", "B", "reverse"])
def step_candidate(
    gates,
    y,
    extra,
    h_in,
    h_out,
    w_hh,
    lengths,
    resets,
    step,
    T,
    B,
    H,
    reverse,
    SAVE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    first_unit = tl.program_id(1).to(tl.int64) * BLOCK_H
    rows = tl.arange(0, BLOCK_B)[:, None]
    units = tl.arange(0, BLOCK_H)[None, :]
    ks = tl.arange(0, BLOCK_K)
    in_batch = rows < B - first
    in_units = units < H - first_unit
    in_h = in_batch & in_units
    t = tl.where(reverse != 0, T - 1 - step, step)
    row = t.to(tl.int64) * B + first
    u_row = first
    if SAVE:
        u_row = row
    gh_n = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    w = w_hh + (2 * H + first_unit) * H
    for k in range(0, H, BLOCK_K):
        a_mask = in_batch & (k + ks[None, :] < H)
        a = tl.load(extra + u_row * H + (rows * H + k + ks[None, :]), mask=a_mask, other=0.0)
        w_mask = in_units & (k + ks[:, None] < H)
        w_n = tl.load(w + (units * H + k + ks[:, None]), mask=w_mask, other=0.0)
        gh_n = multiply(a, w_n, gh_n, PRECISION)
    going_on = in_batch
    if resets is not None:
        going_on = in_batch & (tl.load(resets + row + rows, mask=in_batch, other=1) == 0)
    at_h = first_unit + (rows * H + units)
    old = tl.load(h_in + first * H + at_h, mask=in_h, other=0.0)
    s = (tl.where(going_on, old, 0.0),)
    at_g = gates + row * (3 * H) + first_unit + (rows * (3 * H) + units)
    z = tl.load(at_g + H, mask=in_h, other=0.0)
    gx_n = tl.load(at_g + 2 * H, mask=in_h, other=0.0)
    new, n = gru_reset_before_forward_candidate(gx_n, gh_n, z, s)
    if SAVE:
        tl.store(at_g + 2 * H, n, mask=in_h)
    alive = in_batch
    if lengths is not None:
        alive = t < tl.load(lengths + first + rows, mask=in_batch, other=0)
    shown = tl.where(alive, new, 0.0)
    tl.store(y + row * H + at_h, shown.to(y.dtype.element_ty), mask=in_h)
    tl.store(h_out + first * H + at_h, tl.where(alive, new, old), mask=in_h)


@triton.jit(do_not_specialize=["step", "T", "B", "reverse", "bound", "limit"])
def step_backward_candidate(
    gates,
    y,
    h0,
    carry,
    w_hh,
    lengths,
    resets,
    dy,
    dgates,
    direct,
    step,
    T,
    B,
    H,
    reverse,
    bound,
    limit,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dg_z, dg_n. ``direct`` [B, H]: the part of dh through z·h, or of a dead row all of it."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    first_unit = tl.program_id(1).to(tl.int64) * BLOCK_H
    rows = tl.arange(0, BLOCK_B)[:, None]
    units = tl.arange(0, BLOCK_H)[None, :]
    in_batch = rows < B - first
    in_h = in_batch & (units < H - first_unit)
    ends = ends_of(lengths, first, rows, in_batch, T, BLOCK_B)
    t = tl.where(reverse != 0, step, T - 1 - step)
    way = tl.where(reverse != 0, 1, -1)
    row = t.to(tl.int64) * B + first
    before = row + way.to(tl.int64) * B
    alive = in_batch & (t < ends)
    began = tl.where(reverse != 0, ends - 1, 0)
    going_on = alive
    if resets is not None:
        going_on = alive & (tl.load(resets + row + rows, mask=in_batch, other=1) == 0)
    from_start, from_step = going_on & (t == began), going_on & (t != began)
    dh = handed_on(
        carry,
        dgates,
        None,
        w_hh,
        resets,
        ends,
        first,
        first_unit,
        step,
        T,
        B,
        H,
        H,
        reverse,
        bound,
        limit,
        3,
        2,
        BLOCK_B,
        BLOCK_H,
        BLOCK_K,
        PRECISION,
    )
    at_h = first_unit + (rows * H + units)
    if dy is not None:
        dh += tl.load(dy + row * H + at_h, mask=in_h & alive, other=0.0).to(tl.float32)
    at_g = gates + row * (3 * H) + first_unit + (rows * (3 * H) + units)
    z = tl.load(at_g + H, mask=in_h & alive, other=0.0)
    n = tl.load(at_g + 2 * H, mask=in_h & alive, other=0.0)
    h = tl.load(h0 + first * H + at_h, mask=in_h & from_start, other=0.0).to(tl.float32)
    y_at = y + before * H + at_h
    s = (h + tl.load(y_at, mask=in_h & from_step, other=0.0).to(tl.float32),)
    dg_z, dg_n, ds = gru_reset_before_backward_candidate(dh, z, n, s)
    dg = clear(alive == 0, (dg_z, dg_n), 2)
    out = dgates + row * (3 * H) + first_unit + H
    store_planes(out, rows * (3 * H) + units, in_h, H, dg, 2)
    tl.store(direct + first * H + at_h, tl.where(alive, ds, dh), mask=in_h)


@triton.jit(do_not_specialize=["step", "T", "B", "reverse"])
def step_backward_reset(
    gates,
    y,
    h0,
    carry,
    w_hh,
    lengths,
    resets,
    dgates,
    direct,
    step,
    T,
    B,
    H,
    reverse,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    first_unit = tl.program_id(1).to(tl.int64) * BLOCK_H
    rows = tl.arange(0, BLOCK_B)[:, None]
    units = tl.arange(0, BLOCK_H)[None, :]
    ks = tl.arange(0, BLOCK_K)
    in_batch = rows < B - first
    in_units = units < H - first_unit
    in_h = in_batch & in_units
    ends = ends_of(lengths, first, rows, in_batch, T, BLOCK_B)
    t = tl.where(reverse != 0, step, T - 1 - step)
    way = tl.where(reverse != 0, 1, -1)
    row = t.to(tl.int64) * B + first
    before = row + way.to(tl.int64) * B
    alive = in_batch & (t < ends)
    began = tl.where(reverse != 0, ends - 1, 0)
    going_on = alive
    if resets is not None:
        going_on = alive & (tl.load(resets + row + rows, mask=in_batch, other=1) == 0)
    from_start, from_step = going_on & (t == began), going_on & (t != began)
    du = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    dg_n = dgates + row * (3 * H) + 2 * H
    for k in range(0, H, BLOCK_K):
        a_mask = in_batch & (k + ks[None, :] < H)
        a = tl.load(dg_n + (rows * (3 * H) + k + ks[None, :]), mask=a_mask, other=0.0)
        b_row = (2 * H + k + ks[:, None]).to(tl.int64)
        b_mask = in_units & (k + ks[:, None] < H)
        b = tl.load(w_hh + first_unit + b_row * H + units, mask=b_mask, other=0.0)
        du = multiply_gradient(a, b, du, PRECISION)
    at_h = first_unit + (rows * H + units)
    at_g = row * (3 * H) + first_unit + (rows * (3 * H) + units)
    r = tl.load(gates + at_g, mask=in_h & alive, other=0.0)
    h = tl.load(h0 + first * H + at_h, mask=in_h & from_start, other=0.0).to(tl.float32)
    y_at = y + before * H + at_h
    s = (h + tl.load(y_at, mask=in_h & from_step, other=0.0).to(tl.float32),)
    dg_r, through_u = gru_reset_before_backward_reset(du, r, s)
    tl.store(dgates + at_g, tl.where(alive, dg_r, 0.0), mask=in_h)
    dh = tl.load(direct + first * H + at_h, mask=in_h, other=0.0)
    kept = tl.where(going_on, dh + through_u, tl.where(alive, 0.0, dh))
    tl.store(carry + first * H + at_h, kept, mask=in_h)
