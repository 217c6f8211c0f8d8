"""The resident kernels of the GRU that resets before the product: two products a step.

Tensors as in resident.py. extra is u = r·h.
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
from .tiles import clear, limited, load_planes, multiply, multiply_gradient, store_planes


@triton.jit(do_not_specialize=["T", "B", "reverse"])
def resident_forward_reset_before(
    gates,
    y,
    extra,
    h0,
    h_last,
    w_hh,
    lengths,
    resets,
    T,
    B,
    H,
    reverse,
    SAVE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    rows = tl.arange(0, BLOCK_B)[:, None]
    units = tl.arange(0, BLOCK_H)[None, :]
    in_batch = rows < B - first
    in_h = in_batch & (units < H)
    at_g, at_h = rows * (3 * H) + units, rows * H + units
    into = tl.arange(0, BLOCK_H)[:, None]
    w = ()
    for g in tl.static_range(3):
        tile = tl.load(
            w_hh + g * H * H + (units * H + into), mask=(units < H) & (into < H), other=0.0
        )
        w = w + (tile,)
    h = tl.load(h0 + first * H + at_h, mask=in_h, other=0.0).to(tl.float32)
    if lengths is not None:
        ends = tl.load(lengths + first + rows, mask=in_batch, other=0)
    zero = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)

    begin = tl.where(reverse != 0, T - 1, 0)
    way = tl.where(reverse != 0, -1, 1)
    for i in range(T):
        t = begin + i * way
        row = t.to(tl.int64) * B + first
        gx = load_planes(gates + row * (3 * H), at_g, in_h, H, 3)
        s = (h,)
        if resets is not None:
            restart = tl.load(resets + row + rows, mask=in_batch, other=0) != 0
            s = clear(restart, s, 1)
        gh = (multiply(s[0], w[0], zero, PRECISION), multiply(s[0], w[1], zero, PRECISION))
        r, z, u = gru_reset_before_forward_reset(gx, gh, s)
        gh_n = multiply(u, w[2], zero, PRECISION)
        new, n = gru_reset_before_forward_candidate(gx[2], gh_n, z, s)
        alive = in_batch
        if lengths is not None:
            alive = t < ends
        if SAVE:
            store_planes(gates + row * (3 * H), at_g, in_h, H, (r, z, n), 3)
            tl.store(extra + row * H + at_h, tl.where(alive, u, 0.0), mask=in_h)
        shown = tl.where(alive, new, 0.0)
        tl.store(y + row * H + at_h, shown.to(y.dtype.element_ty), mask=in_h)
        h = tl.where(in_h & alive, new, h)
    tl.store(h_last + first * H + at_h, h.to(h_last.dtype.element_ty), mask=in_h)


@triton.jit(do_not_specialize=["T", "B", "reverse", "bound", "limit"])
def resident_backward_reset_before(
    gates,
    y,
    h0,
    w_hh,
    lengths,
    resets,
    dy,
    dh_last,
    dgates,
    dh0,
    T,
    B,
    H,
    reverse,
    bound,
    limit,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    rows = tl.arange(0, BLOCK_B)[:, None]
    units = tl.arange(0, BLOCK_H)[None, :]
    in_batch = rows < B - first
    in_h = in_batch & (units < H)
    at_g, at_h = rows * (3 * H) + units, rows * H + units
    ks = tl.arange(0, BLOCK_H)[:, None]
    w = ()
    for g in tl.static_range(3):
        tile = tl.load(w_hh + g * H * H + (ks * H + units), mask=(ks < H) & (units < H), other=0.0)
        w = w + (tile,)
    dh = tl.load(dh_last + first * H + at_h, mask=in_h, other=0.0).to(tl.float32)
    ends = tl.zeros((BLOCK_B, 1), tl.int64) + T
    if lengths is not None:
        ends = tl.minimum(tl.load(lengths + first + rows, mask=in_batch, other=0), ends)
    began = tl.where(reverse != 0, ends - 1, 0)
    zero = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)

    begin = tl.where(reverse != 0, 0, T - 1)
    way = tl.where(reverse != 0, 1, -1)
    for i in range(T):
        t = begin + i * way
        row = t.to(tl.int64) * B + first
        before = row + way.to(tl.int64) * B
        alive = in_batch & (t < ends)
        going_on = alive
        if resets is not None:
            going_on = alive & (tl.load(resets + row + rows, mask=in_batch, other=1) == 0)
        from_start, from_step = going_on & (t == began), going_on & (t != began)
        r, z, n = load_planes(gates + row * (3 * H), at_g, in_h & alive, H, 3)
        h = tl.load(h0 + first * H + at_h, mask=in_h & from_start, other=0.0).to(tl.float32)
        y_at = y + before * H + at_h
        s = (h + tl.load(y_at, mask=in_h & from_step, other=0.0).to(tl.float32),)
        d = dh
        if dy is not None:
            d += tl.load(dy + row * H + at_h, mask=in_h & alive, other=0.0).to(tl.float32)
        dg_z, dg_n, direct = gru_reset_before_backward_candidate(d, z, n, s)
        dg_z, dg_n = clear(alive == 0, (dg_z, dg_n), 2)
        du = multiply_gradient(dg_n, w[2], zero, PRECISION)
        dg_r, through_u = gru_reset_before_backward_reset(du, r, s)
        dg_r = tl.where(alive, dg_r, 0.0)
        store_planes(dgates + row * (3 * H), at_g, in_h, H, (dg_r, dg_z, dg_n), 3)
        handed = multiply_gradient(dg_r, w[0], direct + through_u, PRECISION)
        handed = multiply_gradient(dg_z, w[1], handed, PRECISION)
        # a padded unit stays 0, a dead row as it is, and nothing crosses a reset
        kept = tl.where(in_h & alive, 0.0, d)
        dh = tl.where(in_h & going_on, limited(handed, bound, limit), kept)
    tl.store(dh0 + first * H + at_h, dh.to(dh0.dtype.element_ty), mask=in_h)
