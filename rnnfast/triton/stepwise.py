"""Stepwise kernels, forward: a launch for each product of a step, any H.

A program has a tile of the batch and of the hidden units, with all gates of a phase: its part of
the product over the whole operand, then the gate math. The state goes through memory in float32: h
in two buffers by turns, since the other programs read it; c in one, as nobody else does.

Tensors as in resident.py; besides

    h_in, h_out [B, P] float32     c [B, H] float32
    operand, out                   of this product and for the next, where that is not h: a row of
                                   extra each, or [B, H] float32 where nothing is SAVEd
    step                           0 … T - 1, in the order of the launches
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rules import alive, at, batch_tile, ends_of, going_on, reset, row_of
from .tiles import load_planes, products, store_planes


@triton.jit(do_not_specialize=["step", "T", "B", "reverse"])
def step_forward(
    gates,
    y,
    cells,
    extra,
    operand,
    out,
    h_in,
    h_out,
    c,
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
    BEGIN: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    READS_H: tl.constexpr,
    SAVE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A phase: gates BEGIN … BEGIN + N - 1 of G."""
    first, rows, in_batch = batch_tile(B, BLOCK_B)
    first_unit = tl.program_id(1).to(tl.int64) * BLOCK_H
    units = tl.arange(0, BLOCK_H)[None, :]
    in_units = units < H - first_unit
    in_h = in_batch & in_units
    t = at(step, T, reverse)
    row = row_of(t, B, first)
    goes_on = going_on(in_batch, reset(resets, row, rows, in_batch))
    kept_row = row if SAVE else first

    w = w_hh + (BEGIN * H + first_unit) * P
    plane = tl.cast(H, tl.int64) * P
    if operand is None:
        gh = products(h_in + first * P, goes_on, w, plane, units, in_units, P, N,
                      BLOCK_B, BLOCK_H, BLOCK_K, PRECISION)  # fmt: skip
    else:
        gh = products(operand + kept_row * H, in_batch, w, plane, units, in_units, P, N,
                      BLOCK_B, BLOCK_H, BLOCK_K, PRECISION)  # fmt: skip
    if b_n is not None:
        bias = tl.load(b_n + first_unit + units, mask=in_units, other=0.0).to(tl.float32)
        gh = gh[: N - 1] + (gh[N - 1] + bias,)

    at_h = rows * H + units
    own = first * H + first_unit + at_h
    lives = alive(t, ends_of(lengths, first, rows, in_batch), in_batch)
    old_h = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    if out is None or READS_H:
        old_h = tl.load(h_in + own, mask=in_h, other=0.0)
    s = (tl.where(goes_on, old_h, 0.0),)
    if S == 2:
        old_c = tl.load(c + own, mask=in_h, other=0.0)
        s = (s[0], tl.where(goes_on, old_c, 0.0))
    at_g = gates + row * (G * H) + first_unit
    in_g = rows * (G * H) + units
    earlier = load_planes(at_g, in_g, in_h, H, BEGIN)
    gx = load_planes(at_g + BEGIN * H, in_g, in_h, H, N)
    new, values = FORWARD(gx, gh, s, earlier)

    if SAVE or BEGIN + N < G:  # the next phase reads them
        if G > 1:
            store_planes(at_g + BEGIN * H, in_g, in_h, H, values, N)
    here = row * H + first_unit + at_h
    if out is None:
        tl.store(y + here, tl.where(lives, new[0], 0.0).to(y.dtype.element_ty), mask=in_h)
        tl.store(h_out + own, tl.where(lives, new[0], old_h), mask=in_h)
    else:
        to = kept_row * H + first_unit + at_h
        tl.store(out + to, tl.where(lives, new[0], 0.0), mask=in_h)
    if extra is not None:
        tl.store(extra + here, tl.where(lives, values[N], 0.0), mask=in_h)
    if S == 2:
        tl.store(c + own, tl.where(lives, new[1], old_c), mask=in_h)
        if cells is not None:
            shown = tl.where(lives, new[1], 0.0)
            tl.store(cells + here, shown.to(cells.dtype.element_ty), mask=in_h)


@triton.jit(do_not_specialize=["step", "T", "B", "reverse"])
def step_project(
    y,
    operand,
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
    """h' = m W_hrᵀ, the last launch of a step with a projection."""
    first, rows, in_batch = batch_tile(B, BLOCK_B)
    first_out = tl.program_id(1).to(tl.int64) * BLOCK_H
    outs = tl.arange(0, BLOCK_H)[None, :]
    in_outs = outs < P - first_out
    in_p = in_batch & in_outs
    t = at(step, T, reverse)
    row = row_of(t, B, first)
    kept_row = row if SAVE else first
    (h,) = products(operand + kept_row * H, in_batch, w_hr + first_out * H, 0, outs, in_outs, H, 1,
                    BLOCK_B, BLOCK_H, BLOCK_K, PRECISION)  # fmt: skip
    at_p = first_out + (rows * P + outs)
    lives = alive(t, ends_of(lengths, first, rows, in_batch), in_batch)
    tl.store(y + row * P + at_p, tl.where(lives, h, 0.0).to(y.dtype.element_ty), mask=in_p)
    old = tl.load(h_in + first * P + at_p, mask=in_p, other=0.0)
    tl.store(h_out + first * P + at_p, tl.where(lives, h, old), mask=in_p)
