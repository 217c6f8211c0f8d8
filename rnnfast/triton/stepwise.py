"""Stepwise kernels, forward: one launch a step (two with a projection), any H.

A program has a tile of the batch and of the hidden units, with all their gates: its part of the
product over the whole state, then the gate math. The state goes through memory in float32: h in two
buffers by turns, since the other programs read it; c in one, as nobody else does.

Tensors as in resident.py; besides

    h_in, h_out [B, P] float32     c [B, H] float32
    m                              extra, or [B, H] float32 where nothing is SAVEd
    step                           0 … T - 1, in the order of the launches
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import load_planes, multiply, store_planes


@triton.jit(do_not_specialize=["step", "T", "B", "reverse"])
def step_forward(
    gates,
    y,
    cells,
    extra,
    h_in,
    h_out,
    c,
    m,
    w_hh,
    b_n,
    lengths,
    resets,
    step,
    T,
    B,
    H,
    P,
    reverse,
    FORWARD: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    SAVED: tl.constexpr,
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

    gh = ()
    for _ in tl.static_range(G):
        gh = gh + (tl.zeros((BLOCK_B, BLOCK_H), tl.float32),)
    for k in range(0, P, BLOCK_K):
        a_mask = going_on & (k + ks[None, :] < P)
        a = tl.load(h_in + first * P + (rows * P + k + ks[None, :]), mask=a_mask, other=0.0)
        sums = ()
        for g in tl.static_range(G):
            w_at = w_hh + (g * H + first_unit) * P + (units * P + k + ks[:, None])
            w = tl.load(w_at, mask=in_units & (k + ks[:, None] < P), other=0.0)
            sums = sums + (multiply(a, w, gh[g], PRECISION),)
        gh = sums
    if b_n is not None:
        bias = tl.load(b_n + first_unit + units, mask=in_units, other=0.0).to(tl.float32)
        gh = (gh[0], gh[1], gh[2] + bias)

    at_h = rows * H + units
    own = first * H + first_unit + at_h
    alive = in_batch
    if lengths is not None:
        alive = t < tl.load(lengths + first + rows, mask=in_batch, other=0)
    old_h = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    if m is None:
        old_h = tl.load(h_in + own, mask=in_h, other=0.0)
    s = (tl.where(going_on, old_h, 0.0),)
    if S == 2:
        old_c = tl.load(c + own, mask=in_h, other=0.0)
        s = (s[0], tl.where(going_on, old_c, 0.0))
    at_g = gates + row * (G * H) + first_unit
    gx = load_planes(at_g, rows * (G * H) + units, in_h, H, G)
    new, saved = FORWARD(gx, gh, s)

    if SAVE:
        if G > 1:
            store_planes(at_g, rows * (G * H) + units, in_h, H, saved, G)
    at = row * H + first_unit + at_h
    if m is None:
        shown = tl.where(alive, new[0], 0.0)
        tl.store(y + at, shown.to(y.dtype.element_ty), mask=in_h)
        tl.store(h_out + own, tl.where(alive, new[0], old_h), mask=in_h)
        if extra is not None:
            tl.store(extra + at, tl.where(alive, saved[SAVED - 1], 0.0), mask=in_h)
    else:
        if SAVE:
            tl.store(m + at, tl.where(alive, new[0], 0.0), mask=in_h)
        else:
            tl.store(m + own, tl.where(alive, new[0], 0.0), mask=in_h)
    if S == 2:
        tl.store(c + own, tl.where(alive, new[1], old_c), mask=in_h)
        if cells is not None:
            shown_c = tl.where(alive, new[1], 0.0)
            tl.store(cells + at, shown_c.to(cells.dtype.element_ty), mask=in_h)


@triton.jit(do_not_specialize=["step", "T", "B", "reverse"])
def step_project(
    y,
    m,
    h_in,
    h_out,
    w_hr,
    lengths,
    step,
    T,
    B,
    H,
    P,
    reverse,
    SAVE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """h' = m W_hrᵀ, the second launch of a step with a projection."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    first_out = tl.program_id(1).to(tl.int64) * BLOCK_H
    rows = tl.arange(0, BLOCK_B)[:, None]
    outs = tl.arange(0, BLOCK_H)[None, :]
    ks = tl.arange(0, BLOCK_K)
    in_batch = rows < B - first
    in_outs = outs < P - first_out
    in_p = in_batch & in_outs
    t = tl.where(reverse != 0, T - 1 - step, step)
    row = t.to(tl.int64) * B + first
    m_row = first
    if SAVE:
        m_row = row
    h = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    for k in range(0, H, BLOCK_K):
        a_mask = in_batch & (k + ks[None, :] < H)
        a = tl.load(m + m_row * H + (rows * H + k + ks[None, :]), mask=a_mask, other=0.0)
        w_at = w_hr + first_out * H + (outs * H + k + ks[:, None])
        w = tl.load(w_at, mask=in_outs & (k + ks[:, None] < H), other=0.0)
        h = multiply(a, w, h, PRECISION)
    at_p = first_out + (rows * P + outs)
    alive = in_batch
    if lengths is not None:
        alive = t < tl.load(lengths + first + rows, mask=in_batch, other=0)
    tl.store(y + row * P + at_p, tl.where(alive, h, 0.0).to(y.dtype.element_ty), mask=in_p)
    old = tl.load(h_in + first * P + at_p, mask=in_p, other=0.0)
    tl.store(h_out + first * P + at_p, tl.where(alive, h, old), mask=in_p)
