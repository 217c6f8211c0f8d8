"""Parts of the kernels: loading and storing planes of tiles, and the products."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def load_planes(base, offsets, mask, stride, N: tl.constexpr):
    """N tiles, ``stride`` elements apart, as float32, 0 where masked."""
    tiles = ()
    for g in tl.static_range(N):
        tile = tl.load(base + g * stride + offsets, mask=mask, other=0.0)
        tiles = tiles + (tile.to(tl.float32),)
    return tiles


@triton.jit
def store_planes(base, offsets, mask, stride, tiles, N: tl.constexpr):
    for g in tl.static_range(N):
        tl.store(base + g * stride + offsets, tiles[g].to(base.dtype.element_ty), mask=mask)


@triton.jit
def clear(condition, tiles, N: tl.constexpr):
    """The tiles, 0 where the condition holds."""
    cleared = ()
    for k in tl.static_range(N):
        cleared = cleared + (tl.where(condition, 0.0, tiles[k]),)
    return cleared


@triton.jit
def limited(g, bound, limit):
    """What lies beyond ±bound becomes ±limit (grad_clip_time); a NaN stays one."""
    return tl.where(g > bound, limit, tl.where(g < -bound, -limit, g))


@triton.jit
def row_scale(a):
    """[rows, 1] powers of two, scale and 1 / scale, which bring each row's largest value to 1 … 2.

    A row of zeros keeps its scale, and so does one with an inf or a NaN.
    """
    largest = tl.max(tl.abs(a), axis=1, keep_dims=True)
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
    usable = (exponent > 0) & (exponent < 254)
    exponent = tl.where(usable, exponent, 127)
    scale = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    inverse = (exponent << 23).to(tl.float32, bitcast=True)
    return scale, inverse


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """acc + a·b for two tiles of one dtype, summed in float32."""
    if INTERPRETED:  # whose tl.dot takes bfloat16 for integers; widened, the values are the same
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr):
    """acc + a·b for a float32 tile of states and a tile of weights in their storage dtype."""
    return product(a.to(b.dtype), b, acc, PRECISION)


@triton.jit
def multiply_gradient(a, b, acc, PRECISION: tl.constexpr):
    """acc + a·b for a tile of gradients: float16 holds only a narrow range, so there its rows are
    scaled."""
    if b.dtype == tl.float16:
        scale, inverse = row_scale(a)
        scaled = product((a * scale).to(b.dtype), b, tl.zeros_like(acc), PRECISION)
        return acc + scaled * inverse
    else:
        return product(a.to(b.dtype), b, acc, PRECISION)
