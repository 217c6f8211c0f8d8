"""Stepwise kernels, backward: one launch a step (two with a projection), any H.

A step hands the gradient of h to the one before it in two parts: what does not go through the
product ("carry") in a buffer, the rest by its gates' gradients, which the next launch multiplies
with the weights (``handed_on``).

Tensors as in resident.py; besides

    carry [B, P] float32, dc [B, H] float32      gradients of the states, in place
    step                                         0 … T - 1, in the order of the launches
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import clear, limited, load_planes, multiply_gradient, store_planes


@triton.jit
def handed_on(
    carry,
    dgates,
    dextra,
    w_hh,
    resets,
    ends,
    first,
    first_out,
    step,
    T,
    B,
    H,
    P,
    reverse,
    bound,
    limit,
    G: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of h [BLOCK_B, BLOCK_H] that the step computed before (``step - 1``) hands on.

    ``PLANES``: how many gates' gradients of ``dgates`` take part; the last gate's are in
    ``dextra``, unless that is None.
    """
    rows = tl.arange(0, BLOCK_B)[:, None]
    outs = tl.arange(0, BLOCK_H)[None, :]
    ks = tl.arange(0, BLOCK_K)
    in_batch = rows < B - first
    in_outs = outs < P - first_out
    later = tl.where(reverse != 0, step - 1, T - step)
    row = later.to(tl.int64) * B + first
    through = in_batch & (later < ends)
    if resets is not None:
        known = in_batch & (step > 0)
        through = through & (tl.load(resets + row + rows, mask=known, other=1) == 0)
    # one range for all: W's rows and dgates' columns both go over gates and units
    K = tl.where(step > 0, PLANES * H, 0)
    w = w_hh + first_out
    dh = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    for k in range(0, K, BLOCK_K):
        a_at = dgates + row * (G * H) + (rows * (G * H) + k + ks[None, :])
        a = tl.load(a_at, mask=through & (k + ks[None, :] < K), other=0.0)
        b_mask = in_outs & (k + ks[:, None] < K)
        b = tl.load(w + (k + ks[:, None]).to(tl.int64) * P + outs, mask=b_mask, other=0.0)
        dh = multiply_gradient(a, b, dh, PRECISION)
    if dextra is not None:
        K = tl.where(step > 0, H, 0)
        for k in range(0, K, BLOCK_K):
            a_at = dextra + row * H + (rows * H + k + ks[None, :])
            a = tl.load(a_at, mask=through & (k + ks[None, :] < K), other=0.0)
            b_mask = in_outs & (k + ks[:, None] < K)
            b_row = (PLANES * H + k + ks[:, None]).to(tl.int64)
            b = tl.load(w + b_row * P + outs, mask=b_mask, other=0.0)
            dh = multiply_gradient(a, b, dh, PRECISION)
    own = first * P + first_out + rows * P + outs
    dh += tl.load(carry + own, mask=in_batch & in_outs, other=0.0)
    was_alive = (step > 0) & in_batch & (later < ends)
    return tl.where(was_alive, limited(dh, bound, limit), dh)


@triton.jit
def ends_of(lengths, first, rows, in_batch, T, BLOCK_B: tl.constexpr):
    """[BLOCK_B, 1]: where each sequence ends."""
    ends = tl.zeros((BLOCK_B, 1), tl.int64) + T
    if lengths is not None:
        ends = tl.minimum(tl.load(lengths + first + rows, mask=in_batch, other=0), ends)
    return ends


@triton.jit(do_not_specialize=["step", "T", "B", "reverse", "bound", "limit"])
def step_output_gradient(
    carry,
    dgates,
    dh_total,
    dy,
    w_hh,
    lengths,
    resets,
    step,
    T,
    B,
    H,
    P,
    reverse,
    bound,
    limit,
    G: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of h' [B, P], the first of a step's two launches with a projection."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    first_out = tl.program_id(1).to(tl.int64) * BLOCK_H
    rows = tl.arange(0, BLOCK_B)[:, None]
    outs = tl.arange(0, BLOCK_H)[None, :]
    in_batch = rows < B - first
    in_p = in_batch & (outs < P - first_out)
    ends = ends_of(lengths, first, rows, in_batch, T, BLOCK_B)
    dh = handed_on(
        carry,
        dgates,
        None,
        w_hh,
        resets,
        ends,
        first,
        first_out,
        step,
        T,
        B,
        H,
        P,
        reverse,
        bound,
        limit,
        G,
        G,
        BLOCK_B,
        BLOCK_H,
        BLOCK_K,
        PRECISION,
    )
    t = tl.where(reverse != 0, step, T - 1 - step)
    row = t.to(tl.int64) * B + first
    alive = in_batch & (t < ends)
    at_p = first_out + (rows * P + outs)
    if dy is not None:
        dh += tl.load(dy + row * P + at_p, mask=in_p & alive, other=0.0).to(tl.float32)
    tl.store(dh_total + row * P + at_p, tl.where(alive, dh, 0.0), mask=in_p)
    tl.store(carry + first * P + at_p, tl.where(alive, 0.0, dh), mask=in_p)


@triton.jit(do_not_specialize=["step", "T", "B", "reverse", "bound", "limit"])
def step_backward(
    gates,
    y,
    cells,
    extra,
    h0,
    c0,
    carry,
    dc,
    w_hh,
    w_hr,
    lengths,
    resets,
    dy,
    dcells,
    dgates,
    dextra,
    step,
    T,
    B,
    H,
    P,
    reverse,
    bound,
    limit,
    BACKWARD: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    READS_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gates' gradients of a step. With a projection (w_hr), dextra has the gradient of h'."""
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
    at_h = first_unit + (rows * H + units)
    own = first * H + at_h

    if w_hr is None:
        PLANES: tl.constexpr = G - READS_H
        dh = handed_on(
            carry,
            dgates,
            dextra,
            w_hh,
            resets,
            ends,
            first,
            first_unit,
            step,
            T,
            B,
            H,
            P,
            reverse,
            bound,
            limit,
            G,
            PLANES,
            BLOCK_B,
            BLOCK_H,
            BLOCK_K,
            PRECISION,
        )
        if dy is not None:
            dh += tl.load(dy + row * H + at_h, mask=in_h & alive, other=0.0).to(tl.float32)
    else:
        dh = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
        for k in range(0, P, BLOCK_K):
            a_at = dextra + row * P + (rows * P + k + ks[None, :])
            a = tl.load(a_at, mask=in_batch & (k + ks[None, :] < P), other=0.0)
            b_at = w_hr + first_unit + ((k + ks[:, None]).to(tl.int64) * H + units)
            b = tl.load(b_at, mask=in_units & (k + ks[:, None] < P), other=0.0)
            dh = multiply_gradient(a, b, dh, PRECISION)

    if G > 1:
        at_g = gates + row * (G * H) + first_unit
        saved = load_planes(at_g, rows * (G * H) + units, in_h & alive, H, G)
    else:
        saved = load_planes(y + row * H, at_h, in_h & alive, 0, 1)
    if extra is not None:
        saved = saved + load_planes(extra + row * H, at_h, in_h & alive, 0, 1)
    s = (dh,)
    new = (dh,)
    if READS_H:
        h = tl.load(h0 + own, mask=in_h & from_start, other=0.0).to(tl.float32)
        y_at = y + before * H + at_h
        s = (h + tl.load(y_at, mask=in_h & from_step, other=0.0).to(tl.float32),)
    if S == 2:
        c = tl.load(c0 + own, mask=in_h & from_start, other=0.0).to(tl.float32)
        c_at = cells + before * H + at_h
        s = (dh, c + tl.load(c_at, mask=in_h & from_step, other=0.0).to(tl.float32))
        old_dc = tl.load(dc + own, mask=in_h, other=0.0)
        d = old_dc
        if dcells is not None:
            d += tl.load(dcells + row * H + at_h, mask=in_h & alive, other=0.0).to(tl.float32)
        new = (dh, d)
    dgx, dgh, direct = BACKWARD(new, saved, s)
    dgx, dgh = clear(alive == 0, dgx, G), clear(alive == 0, dgh, G)
    store_planes(dgates + row * (G * H) + first_unit, rows * (G * H) + units, in_h, H, dgx, G)
    if READS_H:
        tl.store(dextra + row * H + at_h, dgh[G - 1], mask=in_h)
    if w_hr is None:
        kept = tl.where(going_on, direct[0], tl.where(alive, 0.0, dh))
        tl.store(carry + own, kept, mask=in_h)
    if S == 2:
        kept = tl.where(alive, limited(direct[1], bound, limit), old_dc)
        tl.store(dc + own, tl.where(alive & (going_on == 0), 0.0, kept), mask=in_h)


@triton.jit(do_not_specialize=["T", "B", "reverse", "bound", "limit"])
def first_state_gradient(
    carry,
    dgates,
    dextra,
    w_hh,
    lengths,
    resets,
    dh0,
    T,
    B,
    H,
    P,
    reverse,
    bound,
    limit,
    G: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of h0 [B, P], after the last step."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    first_out = tl.program_id(1).to(tl.int64) * BLOCK_H
    rows = tl.arange(0, BLOCK_B)[:, None]
    outs = tl.arange(0, BLOCK_H)[None, :]
    in_batch = rows < B - first
    ends = ends_of(lengths, first, rows, in_batch, T, BLOCK_B)
    dh = handed_on(
        carry,
        dgates,
        dextra,
        w_hh,
        resets,
        ends,
        first,
        first_out,
        T,
        T,
        B,
        H,
        P,
        reverse,
        bound,
        limit,
        G,
        PLANES,
        BLOCK_B,
        BLOCK_H,
        BLOCK_K,
        PRECISION,
    )
    at = first * P + first_out + rows * P + outs
    tl.store(dh0 + at, dh.to(dh0.dtype.element_ty), mask=in_batch & (outs < P - first_out))
