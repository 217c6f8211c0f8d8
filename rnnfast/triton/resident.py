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
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import clear, limited, load_planes, multiply, multiply_gradient, store_planes


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
    FORWARD: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    SAVED: tl.constexpr,
    SAVE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    rows = tl.arange(0, BLOCK_B)[:, None]
    units = tl.arange(0, BLOCK_H)[None, :]
    outs = tl.arange(0, BLOCK_P)[None, :]
    in_batch = rows < B - first
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

    h = tl.load(h0 + first * P + at_p, mask=in_p, other=0.0).to(tl.float32)
    s = (h,)
    if S == 2:
        s = (h, tl.load(c0 + first * H + at_h, mask=in_h, other=0.0).to(tl.float32))
    if lengths is not None:
        ends = tl.load(lengths + first + rows, mask=in_batch, other=0)

    begin = tl.where(reverse != 0, T - 1, 0)
    way = tl.where(reverse != 0, -1, 1)
    for i in range(T):
        t = begin + i * way
        row = t.to(tl.int64) * B + first
        gx = load_planes(gates + row * (G * H), at_g, in_h, H, G)
        old = s
        if resets is not None:
            restart = tl.load(resets + row + rows, mask=in_batch, other=0) != 0
            s = clear(restart, s, S)
        gh = ()
        for g in tl.static_range(G):
            zero = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
            gh = gh + (multiply(s[0], w[g], zero, PRECISION),)
        if b_n is not None:
            gh = (gh[0], gh[1], gh[2] + bias)
        new, saved = FORWARD(gx, gh, s)
        hidden = new[0]
        if w_hr is not None:
            zero = tl.zeros((BLOCK_B, BLOCK_P), tl.float32)
            hidden = multiply(hidden, w_out, zero, PRECISION)
        if SAVE:
            if G > 1:
                store_planes(gates + row * (G * H), at_g, in_h, H, saved, G)
        if lengths is not None:
            alive = t < ends
            keep_h, keep_p = in_h & alive, in_p & alive
        else:
            alive = in_batch
            keep_h, keep_p = in_h, in_p
        shown = tl.where(alive, hidden, 0.0)
        tl.store(y + row * P + at_p, shown.to(y.dtype.element_ty), mask=in_p)
        if extra is not None:
            tl.store(extra + row * H + at_h, tl.where(alive, saved[SAVED - 1], 0.0), mask=in_h)
        if cells is not None:
            c = tl.where(alive, new[1], 0.0)
            tl.store(cells + row * H + at_h, c.to(cells.dtype.element_ty), mask=in_h)
        h = tl.where(keep_p, hidden, old[0])
        if S == 2:
            s = (h, tl.where(keep_h, new[1], old[1]))
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
    BACKWARD: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    READS_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    rows = tl.arange(0, BLOCK_B)[:, None]
    units = tl.arange(0, BLOCK_H)[None, :]
    outs = tl.arange(0, BLOCK_P)[None, :]
    in_batch = rows < B - first
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

    dh = tl.load(dh_last + first * P + at_p, mask=in_p, other=0.0).to(tl.float32)
    ds = (dh,)
    if S == 2:
        ds = (dh, tl.load(dc_last + first * H + at_h, mask=in_h, other=0.0).to(tl.float32))
    ends = tl.zeros((BLOCK_B, 1), tl.int64) + T
    if lengths is not None:
        ends = tl.minimum(tl.load(lengths + first + rows, mask=in_batch, other=0), ends)
    began = tl.where(reverse != 0, ends - 1, 0)

    begin = tl.where(reverse != 0, 0, T - 1)
    way = tl.where(reverse != 0, 1, -1)
    for i in range(T):
        t = begin + i * way
        row = t.to(tl.int64) * B + first
        before = row + way.to(tl.int64) * B
        alive = in_batch & (t < ends)
        from_start, from_step = alive & (t == began), alive & (t != began)
        if resets is not None:
            restart = tl.load(resets + row + rows, mask=in_batch, other=0) != 0
            from_start, from_step = from_start & (restart == 0), from_step & (restart == 0)
        if G > 1:
            saved = load_planes(gates + row * (G * H), at_g, in_h & alive, H, G)
        else:
            saved = load_planes(y + row * P, at_p, in_p & alive, 0, 1)
        if extra is not None:
            saved = saved + load_planes(extra + row * H, at_h, in_h & alive, 0, 1)
        s = ds
        if READS_H:
            h = tl.load(h0 + first * P + at_p, mask=in_p & from_start, other=0.0).to(tl.float32)
            y_at = y + before * P + at_p
            s = (h + tl.load(y_at, mask=in_p & from_step, other=0.0).to(tl.float32),)
        if S == 2:
            c = tl.load(c0 + first * H + at_h, mask=in_h & from_start, other=0.0).to(tl.float32)
            c_at = cells + before * H + at_h
            s = (ds[0], c + tl.load(c_at, mask=in_h & from_step, other=0.0).to(tl.float32))

        dh = ds[0]
        if dy is not None:
            dh += tl.load(dy + row * P + at_p, mask=in_p & alive, other=0.0).to(tl.float32)
        new = (dh,)
        if w_hr is not None:
            shown = tl.where(alive, dh, 0.0)
            tl.store(dextra + row * P + at_p, shown, mask=in_p)
            zero = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
            new = (multiply_gradient(shown, w_out, zero, PRECISION),)
        if S == 2:
            dc = ds[1]
            if dcells is not None:
                d_at = dcells + row * H + at_h
                dc += tl.load(d_at, mask=in_h & alive, other=0.0).to(tl.float32)
            new = (new[0], dc)
        dgx, dgh, direct = BACKWARD(new, saved, s)
        dgx, dgh = clear(alive == 0, dgx, G), clear(alive == 0, dgh, G)
        store_planes(dgates + row * (G * H), at_g, in_h, H, dgx, G)
        if READS_H:
            tl.store(dextra + row * H + at_h, dgh[G - 1], mask=in_h)

        handed = tl.zeros((BLOCK_B, BLOCK_P), tl.float32)
        if READS_H:
            handed = direct[0]
        for g in tl.static_range(G):
            handed = multiply_gradient(dgh[g], w[g], handed, PRECISION)
        if resets is not None:
            handed = tl.where(restart, 0.0, handed)
        dh = tl.where(in_p & alive, limited(handed, bound, limit), ds[0])
        if S == 2:
            dc = direct[1]
            if resets is not None:
                dc = tl.where(restart, 0.0, dc)
            ds = (dh, tl.where(in_h & alive, limited(dc, bound, limit), ds[1]))
        else:
            ds = (dh,)

    tl.store(dh0 + first * P + at_p, ds[0].to(dh0.dtype.element_ty), mask=in_p)
    if S == 2:
        tl.store(dc0 + first * H + at_h, ds[1].to(dc0.dtype.element_ty), mask=in_h)
