"""Stepwise kernels, backward: a launch for each product of a step, any H.

A step hands the gradient of h to the one before it in two parts: what does not go through the
product ("carry") in a buffer, the rest by its gates' gradients, which the next launch multiplies
with the weights (``handed_on``). Of two phases the first, which runs last here, finishes the carry.

Tensors as in resident.py; besides

    carry [B, P] float32, dc [B, H] float32      gradients of the states, in place
    step                                         T - 1 … 0, in the order of the launches
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
    limited,
    previous,
    reset,
    row_of,
)
from .tiles import gradient_product, load_planes, store_gradients


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
    """The gradient of h [BLOCK_B, BLOCK_H] that the step after ``step`` hands on.

    ``PLANES``: how many gates' gradients of ``dgates`` take part; the last gate's are in
    ``dextra``, unless that is None.
    """
    rows = tl.arange(0, BLOCK_B)[:, None]
    outs = tl.arange(0, BLOCK_H)[None, :]
    in_batch = rows < B - first
    in_outs = outs < P - first_out
    exists = step + 1 < T
    later = at(step + 1, T, reverse)
    row = row_of(later, B, first)
    was_alive = alive(later, ends, in_batch)
    # != 0: in the interpreter ``exists`` may be a number, and a mask must not
    through = going_on(was_alive, reset(resets, row, rows, (in_batch & exists) != 0))
    # one range for all: W's rows and dgates' columns both go over gates and units
    K = tl.where(exists, PLANES * H, 0)
    w = w_hh + first_out
    dh = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    dh = gradient_product(dh, dgates + row * (G * H), G * H, through, w, P, outs, in_outs, K,
                          BLOCK_B, BLOCK_K, PRECISION)  # fmt: skip
    if dextra is not None:
        w += tl.cast(PLANES * H, tl.int64) * P
        K = tl.where(exists, H, 0)
        dh = gradient_product(dh, dextra + row * H, H, through, w, P, outs, in_outs, K,
                              BLOCK_B, BLOCK_K, PRECISION)  # fmt: skip
    own = first * P + first_out + rows * P + outs
    dh += tl.load(carry + own, mask=in_batch & in_outs, other=0.0)
    return tl.where(was_alive & exists, limited(dh, bound, limit), dh)


@triton.jit(do_not_specialize=["step", "T", "B", "reverse", "bound", "limit"])
def step_output_gradient(
    carry,
    dgates,
    dextra,
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
    first, rows, in_batch = batch_tile(B, BLOCK_B)
    first_out = tl.program_id(1).to(tl.int64) * BLOCK_H
    outs = tl.arange(0, BLOCK_H)[None, :]
    in_p = in_batch & (outs < P - first_out)
    ends = ends_of(lengths, first, rows, in_batch)
    dh = handed_on(carry, dgates, None, w_hh, resets, ends, first, first_out, step,
                   T, B, H, P, reverse, bound, limit, G, G,
                   BLOCK_B, BLOCK_H, BLOCK_K, PRECISION)  # fmt: skip
    t = at(step, T, reverse)
    row = row_of(t, B, first)
    lives = alive(t, ends, in_batch)
    at_p = first_out + (rows * P + outs)
    if dy is not None:
        dh += tl.load(dy + row * P + at_p, mask=in_p & lives, other=0.0).to(tl.float32)
    tl.store(dextra + row * P + at_p, tl.where(lives, dh, 0.0), mask=in_p)
    tl.store(carry + first * P + at_p, tl.where(lives, 0.0, dh), mask=in_p)


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
    BEGIN: tl.constexpr,
    N: tl.constexpr,
    PLANES: tl.constexpr,
    S: tl.constexpr,
    READS_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A phase's gradients: gates BEGIN … BEGIN + N - 1 of G. With a projection (w_hr), dextra has
    the gradient of h'."""
    first, rows, in_batch = batch_tile(B, BLOCK_B)
    first_unit = tl.program_id(1).to(tl.int64) * BLOCK_H
    units = tl.arange(0, BLOCK_H)[None, :]
    in_units = units < H - first_unit
    in_h = in_batch & in_units
    ends = ends_of(lengths, first, rows, in_batch)
    t = at(step, T, reverse)
    row = row_of(t, B, first)
    lives = alive(t, ends, in_batch)
    is_reset = reset(resets, row, rows, in_batch)
    goes_on = going_on(lives, is_reset)
    is_start = is_first(t, ends, T, reverse)
    at_h = first_unit + (rows * H + units)
    own = first * H + at_h
    LAST: tl.constexpr = BEGIN + N == G

    if not LAST:  # of its operand, through the next phase
        d = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
        w = w_hh + first_unit + tl.cast((BEGIN + N) * H, tl.int64) * P
        d = gradient_product(d, dgates + row * (G * H) + (BEGIN + N) * H, G * H, in_batch,
                             w, P, units, in_units, (G - BEGIN - N) * H,
                             BLOCK_B, BLOCK_K, PRECISION)  # fmt: skip
    elif w_hr is not None:
        d = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
        d = gradient_product(d, dextra + row * P, P, in_batch, w_hr + first_unit, H, units,
                             in_units, P, BLOCK_B, BLOCK_K, PRECISION)  # fmt: skip
    else:
        d = handed_on(carry, dgates, dextra, w_hh, resets, ends, first, first_unit, step,
                      T, B, H, P, reverse, bound, limit, G, PLANES,
                      BLOCK_B, BLOCK_H, BLOCK_K, PRECISION)  # fmt: skip
        if dy is not None:
            d += tl.load(dy + row * H + at_h, mask=in_h & lives, other=0.0).to(tl.float32)

    in_g = rows * (G * H) + units
    if G > 1:
        saved = load_planes(gates + row * (G * H) + first_unit, in_g, in_h & lives, H, G)
    else:
        saved = load_planes(y + row * H, at_h, in_h & lives, 0, 1)
    if extra is not None:
        saved = saved + load_planes(extra + row * H, at_h, in_h & lives, 0, 1)
    s = (d,)
    new = (d,)
    if READS_H:
        y_at = before(row, B, reverse) * H + at_h
        s = (previous(h0, own, y, y_at, goes_on, is_start, in_h),)
    if S == 2:
        c_at = before(row, B, reverse) * H + at_h
        s = (d, previous(c0, own, cells, c_at, goes_on, is_start, in_h))
        old_dc = tl.load(dc + own, mask=in_h, other=0.0)
        total = old_dc
        if dcells is not None:
            total += tl.load(dcells + row * H + at_h, mask=in_h & lives, other=0.0).to(tl.float32)
        new = (d, total)

    out = dgates + row * (G * H) + first_unit
    left = ()
    if not LAST:
        left = load_planes(out, in_g, in_h, H, N)
    dgx, dgh, direct, left = BACKWARD(new, saved, s, left)
    store_gradients(out + BEGIN * H, in_g, in_h, H, dgx, lives)
    store_gradients(out + (BEGIN - len(left)) * H, in_g, in_h, H, left, lives)
    if BEGIN == 0 and PLANES < N:
        tl.store(dextra + row * H + at_h, tl.where(lives, dgh[N - 1], 0.0), mask=in_h)
    if w_hr is None:
        if BEGIN > 0:
            kept = tl.where(lives, direct[0], d)
        elif LAST:
            kept = across(direct[0], d, lives, is_reset, None, None)
        else:
            dh = tl.load(carry + own, mask=in_h, other=0.0)
            kept = across(dh + direct[0], dh, lives, is_reset, None, None)
        tl.store(carry + own, kept, mask=in_h)
    if S == 2:
        kept = across(direct[1], old_dc, lives, is_reset, bound, limit)
        tl.store(dc + own, kept, mask=in_h)


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
    """The gradient of h0 [B, P], after the last launch for a step."""
    first, rows, in_batch = batch_tile(B, BLOCK_B)
    first_out = tl.program_id(1).to(tl.int64) * BLOCK_H
    outs = tl.arange(0, BLOCK_H)[None, :]
    ends = ends_of(lengths, first, rows, in_batch)
    dh = handed_on(carry, dgates, dextra, w_hh, resets, ends, first, first_out, -1,
                   T, B, H, P, reverse, bound, limit, G, PLANES,
                   BLOCK_B, BLOCK_H, BLOCK_K, PRECISION)  # fmt: skip
    to = first * P + first_out + rows * P + outs
    tl.store(dh0 + to, dh.to(dh0.dtype.element_ty), mask=in_batch & (outs < P - first_out))
