"""Resident kernels: one program has a tile of the batch, and the weights, for all T steps.

The weights are loaded once, before the loop, and stay in registers or shared memory, whichever the
compiler finds; the state stays in registers. For the H at which that compiles without a spill
(limits.py).

The tensors, here and in the other kernels; what a scan has not is None:

    gates [T, B, G*H] float32     gx on entry; where SAVE, overwritten by the gates
    y [T, B, P]                   outputs, in the storage dtype
    cells [T, B, H]               c of each step          extra [T, B, H] float32   saved[G]
    h0, h_last [B, P]             c0, c_last [B, H]
    w_hh [G*H, P]  w_hr [P, H]    b_n [H] the bias of gh's last gate; other biases are in gx
    lengths [B] int64             resets [T, B] uint8
    dgates [T, B, G*H] float32    of gx; dextra: of gh's last gate [T, B, H], or of h' [T, B, P]

The cell's functions (cells.py): FORWARD and BACKWARD of its last phase; of the phase before that,
where there is one, with gates 0 … BEGIN - 1: FIRST.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rules import (
    across,
    alive,
    at,
    batch_tile,
    before,
    ends_of,
    going_on,
    is_first,
    previous,
    reset,
    row_of,
)
from .tiles import (
    kept_products,
    load_planes,
    multiply,
    multiply_gradient,
    only_where,
    store_planes,
)


@triton.jit(do_not_specialize=["T", "B", "reverse"])
def resident_forward(
    gates,
    y,
    cells,
    extra,
    h0,
    c0,
    h_last,
    c_last,
    w_hh,
    w_hr,
    b_n,
    lengths,
    resets,
    T,
    B,
    H,
    P,
    reverse,
    FIRST: tl.constexpr,
    FORWARD: tl.constexpr,
    G: tl.constexpr,
    BEGIN: tl.constexpr,
    S: tl.constexpr,
    SAVE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first, rows, in_batch = batch_tile(B, BLOCK_B)
    units = tl.arange(0, BLOCK_H)[None, :]
    outs = tl.arange(0, BLOCK_P)[None, :]
    in_h, in_p = in_batch & (units < H), in_batch & (outs < P)
    at_g, at_h, at_p = rows * (G * H) + units, rows * H + units, rows * P + outs

    into = tl.arange(0, BLOCK_P)[:, None]
    w = ()
    for g in tl.static_range(G):
        tile = tl.load(
            w_hh + g * H * P + (units * P + into), mask=(units < H) & (into < P), other=0.0
        )
        w = w + (tile,)
    if w_hr is not None:
        ks = tl.arange(0, BLOCK_H)[:, None]
        w_out = tl.load(w_hr + (outs * H + ks), mask=(outs < P) & (ks < H), other=0.0)
    if b_n is not None:
        bias = tl.load(b_n + units, mask=units < H, other=0.0).to(tl.float32)

    s = (tl.load(h0 + first * P + at_p, mask=in_p, other=0.0).to(tl.float32),)
    if S == 2:
        s = (s[0], tl.load(c0 + first * H + at_h, mask=in_h, other=0.0).to(tl.float32))
    ends = ends_of(lengths, first, rows, in_batch)
    zero = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)

    for step in range(T):
        t = at(step, T, reverse)
        row = row_of(t, B, first)
        gx = load_planes(gates + row * (G * H), at_g, in_h, H, G)
        old = s
        if resets is not None:
            s = only_where(reset(resets, row, rows, in_batch) == 0, s, S)
        operand, values = s[0], ()
        if FIRST is not None:
            gh = kept_products(operand, w, 0, BEGIN, zero, PRECISION)
            out, values = FIRST(gx[:BEGIN], gh, s, ())
            operand = out[0]
        gh = kept_products(operand, w, BEGIN, G, zero, PRECISION)
        if b_n is not None:
            gh = gh[: G - 1] + (gh[G - 1] + bias,)
        new, own = FORWARD(gx[BEGIN:], gh, s, values)
        values = values + own
        hidden = new[0]
        if w_hr is not None:
            hidden = multiply(hidden, w_out, tl.zeros((BLOCK_B, BLOCK_P), tl.float32), PRECISION)
        if SAVE:
            if G > 1:
                store_planes(gates + row * (G * H), at_g, in_h, H, values, G)
        lives = alive(t, ends, in_batch)
        shown = tl.where(lives, hidden, 0.0)
        tl.store(y + row * P + at_p, shown.to(y.dtype.element_ty), mask=in_p)
        if extra is not None:
            if FIRST is not None:
                kept = operand
            elif w_hr is not None:
                kept = new[0]
            else:
                kept = values[G]
            tl.store(extra + row * H + at_h, tl.where(lives, kept, 0.0), mask=in_h)
        if cells is not None:
            c = tl.where(lives, new[1], 0.0)
            tl.store(cells + row * H + at_h, c.to(cells.dtype.element_ty), mask=in_h)
        h = tl.where(in_p & lives, hidden, old[0])
        if S == 2:
            s = (h, tl.where(in_h & lives, new[1], old[1]))
        else:
            s = (h,)

    tl.store(h_last + first * P + at_p, s[0].to(h_last.dtype.element_ty), mask=in_p)
    if S == 2:
        tl.store(c_last + first * H + at_h, s[1].to(c_last.dtype.element_ty), mask=in_h)


@triton.jit(do_not_specialize=["T", "B", "reverse", "bound", "limit"])
def resident_backward(
    gates,
    y,
    cells,
    extra,
    h0,
    c0,
    w_hh,
    w_hr,
    lengths,
    resets,
    dy,
    dcells,
    dh_last,
    dc_last,
    dgates,
    dextra,
    dh0,
    dc0,
    T,
    B,
    H,
    P,
    reverse,
    bound,
    limit,
    FIRST: tl.constexpr,
    BACKWARD: tl.constexpr,
    G: tl.constexpr,
    BEGIN: tl.constexpr,
    S: tl.constexpr,
    READS_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first, rows, in_batch = batch_tile(B, BLOCK_B)
    units = tl.arange(0, BLOCK_H)[None, :]
    outs = tl.arange(0, BLOCK_P)[None, :]
    in_h, in_p = in_batch & (units < H), in_batch & (outs < P)
    at_g, at_h, at_p = rows * (G * H) + units, rows * H + units, rows * P + outs

    ks = tl.arange(0, BLOCK_H)[:, None]
    w = ()
    for g in tl.static_range(G):
        tile = tl.load(w_hh + g * H * P + (ks * P + outs), mask=(ks < H) & (outs < P), other=0.0)
        w = w + (tile,)
    if w_hr is not None:
        into = tl.arange(0, BLOCK_P)[:, None]
        w_out = tl.load(w_hr + (into * H + units), mask=(into < P) & (units < H), other=0.0)

    ds = (tl.load(dh_last + first * P + at_p, mask=in_p, other=0.0).to(tl.float32),)
    if S == 2:
        ds = (ds[0], tl.load(dc_last + first * H + at_h, mask=in_h, other=0.0).to(tl.float32))
    ends = ends_of(lengths, first, rows, in_batch)
    zero = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)

    for back in range(T):
        t = at(T - 1 - back, T, reverse)
        row = row_of(t, B, first)
        lives = alive(t, ends, in_batch)
        is_reset = reset(resets, row, rows, in_batch)
        goes_on = going_on(lives, is_reset)
        is_start = is_first(t, ends, T, reverse)
        if G > 1:
            saved = load_planes(gates + row * (G * H), at_g, in_h & lives, H, G)
        else:
            saved = load_planes(y + row * P, at_p, in_p & lives, 0, 1)
        if extra is not None:
            saved = saved + load_planes(extra + row * H, at_h, in_h & lives, 0, 1)
        s = ds
        if READS_H:
            y_at = before(row, B, reverse) * P + at_p
            s = (previous(h0, first * P + at_p, y, y_at, goes_on, is_start, in_p),)
        if S == 2:
            c_at = before(row, B, reverse) * H + at_h
            c = previous(c0, first * H + at_h, cells, c_at, goes_on, is_start, in_h)
            s = (ds[0], c)

        dh = ds[0]
        if dy is not None:
            dh += tl.load(dy + row * P + at_p, mask=in_p & lives, other=0.0).to(tl.float32)
        new = (dh,)
        if w_hr is not None:
            shown = tl.where(lives, dh, 0.0)
            tl.store(dextra + row * P + at_p, shown, mask=in_p)
            new = (multiply_gradient(shown, w_out, zero, PRECISION),)
        if S == 2:
            dc = ds[1]
            if dcells is not None:
                d_at = dcells + row * H + at_h
                dc += tl.load(d_at, mask=in_h & lives, other=0.0).to(tl.float32)
            new = (new[0], dc)
        dgx, dgh, direct, left = BACKWARD(new, saved, s, ())
        dgx, dgh = only_where(lives, dgx, G - BEGIN), only_where(lives, dgh, G - BEGIN)
        handed = tl.zeros((BLOCK_B, BLOCK_P), tl.float32)
        if READS_H:
            handed = direct[0]
        if FIRST is not None:
            d = zero
            for g in tl.static_range(BEGIN, G):
                d = multiply_gradient(dgh[g - BEGIN], w[g], d, PRECISION)
            some, _, through, _ = FIRST((d,), saved, s, left)
            dgh = only_where(lives, some + left[len(left) + len(some) - BEGIN :], BEGIN)
            dgx = dgh + dgx
            handed = handed + through[0]
        store_planes(dgates + row * (G * H), at_g, in_h, H, dgx, G)
        if dextra is not None and w_hr is None:
            tl.store(dextra + row * H + at_h, dgh[G - 1], mask=in_h)

        for g in tl.static_range(G if FIRST is None else BEGIN):
            handed = multiply_gradient(dgh[g], w[g], handed, PRECISION)
        # a padded unit stays as it is, too
        dh = across(handed, ds[0], in_p & lives, is_reset, bound, limit)
        if S == 2:
            dc = across(direct[1], ds[1], in_h & lives, is_reset, bound, limit)
            ds = (dh, dc)
        else:
            ds = (dh,)

    tl.store(dh0 + first * P + at_p, ds[0].to(dh0.dtype.element_ty), mask=in_p)
    if S == 2:
        tl.store(dc0 + first * H + at_h, ds[1].to(dc0.dtype.element_ty), mask=in_h)
