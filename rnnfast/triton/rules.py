"""The rules of a scan: lengths, resets, both directions, clipping in time. Every kernel calls them.

A kernel has a tile of the batch: sequences ``first`` + ``rows`` [BLOCK_B, 1], of which
``in_batch`` exist. Answers about them are [BLOCK_B, 1]. ``t`` is a time, ``row`` = t·B + first the
row of a tensor [T, B, ·] that the tile has there. Names as in csrc.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def batch_tile(B, BLOCK_B: tl.constexpr):
    """first, rows, in_batch."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    rows = tl.arange(0, BLOCK_B)[:, None]
    return first, rows, rows < B - first


@triton.jit
def at(step, T, reverse):
    """The time of a step, which counts from 0 in the order of forward."""
    return tl.where(reverse != 0, T - 1 - step, step)


@triton.jit
def row_of(t, B, first):
    return t.to(tl.int64) * B + first


@triton.jit
def before(row, B, reverse):
    """The row of the step before."""
    return row + tl.where(reverse != 0, 1, -1).to(tl.int64) * B


@triton.jit
def ends_of(lengths, first, rows, in_batch):
    """Where each sequence ends, or beyond 0 … T as ``lengths`` may; None: all at T."""
    if lengths is None:
        return None
    else:
        return tl.load(lengths + first + rows, mask=in_batch, other=0)


@triton.jit
def alive(t, ends, in_batch):
    """Whether a sequence has not ended at t, for t in 0 … T - 1."""
    if ends is None:
        return in_batch
    else:  # outside the batch ends is 0
        return t < ends


@triton.jit
def is_first(t, ends, T, reverse):
    """Whether t is a sequence's first step."""
    if ends is None:
        return t == tl.where(reverse != 0, T - 1, 0)
    else:
        return t == tl.where(reverse != 0, tl.minimum(ends, T) - 1, 0)


@triton.jit
def reset(resets, row, rows, in_batch):
    """Whether a sequence is reset before this step; None: none is."""
    if resets is None:
        return None
    else:  # masked by the batch alone: with ``alive`` Triton loads it again in each layout
        return tl.load(resets + row + rows, mask=in_batch, other=0) != 0


@triton.jit
def going_on(of, is_reset):
    """Those ``of`` the sequences that are not reset."""
    if is_reset is None:
        return of
    else:
        return of & (is_reset == 0)


@triton.jit
def previous(initial, initial_at, every, every_at, goes_on, is_start, in_tile):
    """The state that a step began with: ``initial`` at a sequence's first step, else a row of
    ``every``; 0 where it does not go on."""
    from_start, from_step = goes_on & is_start, goes_on & (is_start == 0)
    start = tl.load(initial + initial_at, mask=in_tile & from_start, other=0.0)
    step = tl.load(every + every_at, mask=in_tile & from_step, other=0.0)
    return start.to(tl.float32) + step.to(tl.float32)


@triton.jit
def limited(g, bound, limit):
    """What lies beyond ±bound becomes ±limit (grad_clip_time); a NaN stays one."""
    return tl.where(g > bound, limit, tl.where(g < -bound, -limit, g))


@triton.jit
def across(handed, ds, is_alive, is_reset, bound, limit):
    """The gradient that goes to the step before: ``handed`` within its bound (None: not limited
    yet), nothing over a reset; what a dead sequence got (``ds``) as it is."""
    if is_reset is not None:
        handed = tl.where(is_reset, 0.0, handed)
    if bound is not None:
        handed = limited(handed, bound, limit)
    return tl.where(is_alive, handed, ds)
