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
def store_gradients(base, offsets, mask, stride, tiles, lives):
    """As many planes as there are tiles; 0 for dead sequences."""
    for g in tl.static_range(len(tiles)):
        tl.store(base + g * stride + offsets, tl.where(lives, tiles[g], 0.0), mask=mask)


@triton.jit
def only_where(condition, tiles, N: tl.constexpr):
    """The tiles, 0 where the condition fails."""
    cleared = ()
    for k in tl.static_range(N):
        cleared = cleared + (tl.where(condition, tiles[k], 0.0),)
    return cleared


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


@triton.jit
def kept_products(a, w, FROM: tl.constexpr, TO: tl.constexpr, zero, PRECISION: tl.constexpr):
    """a times each of the tiles of weights w[FROM:TO]."""
    found = ()
    for g in tl.static_range(FROM, TO):
        found = found + (multiply(a, w[g], zero, PRECISION),)
    return found


@triton.jit
def products(
    a,
    of,
    w,
    plane,
    outs,
    in_outs,
    K,
    N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """N tiles: rows ``of`` a [·, K], times those of w [·, K] that are a tile of outputs, and those
    ``plane`` elements further on, and so on."""
    rows = tl.arange(0, BLOCK_B)[:, None]
    ks = tl.arange(0, BLOCK_K)
    sums = ()
    for _ in tl.static_range(N):
        sums = sums + (tl.zeros((BLOCK_B, BLOCK_H), tl.float32),)
    for k in range(0, K, BLOCK_K):
        tile = tl.load(a + (rows * K + k + ks[None, :]), mask=of & (k + ks[None, :] < K), other=0.0)
        w_at = outs * K + k + ks[:, None]
        more = ()
        for g in tl.static_range(N):
            w_mask = in_outs & (k + ks[:, None] < K)
            part = tl.load(w + g * plane + w_at, mask=w_mask, other=0.0)
            more = more + (multiply(tile, part, sums[g], PRECISION),)
        sums = more
    return sums


@triton.jit
def gradient_product(
    acc,
    a,
    stride,
    of,
    w,
    width,
    outs,
    in_outs,
    K,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc + rows ``of`` a, K numbers ``stride`` apart, times a tile of columns of w [K, width]."""
    rows = tl.arange(0, BLOCK_B)[:, None]
    ks = tl.arange(0, BLOCK_K)
    for k in range(0, K, BLOCK_K):
        a_mask = of & (k + ks[None, :] < K)
        tile = tl.load(a + (rows * stride + k + ks[None, :]), mask=a_mask, other=0.0)
        w_at = (k + ks[:, None]).to(tl.int64) * width + outs
        part = tl.load(w + w_at, mask=in_outs & (k + ks[:, None] < K), other=0.0)
        acc = multiply_gradient(tile, part, acc, PRECISION)
    return acc
