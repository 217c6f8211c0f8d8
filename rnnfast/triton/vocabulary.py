"""What the text of a generated kernel names (rnnfast/steps/triton_text.py): the functions of its
operators, its loads and stores, and the rules of a scan. All values are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .math import relu, sigmoid, tanh  # noqa: F401
from .rules import (  # noqa: F401
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
from .tiles import multiply, multiply_gradient  # noqa: F401

# --- memory --------------------------------------------------------------------------------------


@triton.jit
def loaded(pointers, mask):
    """As float32, 0 where masked."""
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def added(value, more, offset, mask):
    """``value`` and what ``more`` holds, where that is not None."""
    if more is None:
        return value
    else:
        return value + loaded(more + offset, mask)


# --- reductions: [BLOCK_B, units] → [BLOCK_B, 1] -------------------------------------------------


@triton.jit
def total(x):
    return tl.sum(x, 1, keep_dims=True)


@triton.jit
def largest(x):
    """A NaN is kept."""
    broken = tl.max((x != x).to(tl.int32), 1, keep_dims=True)
    return tl.where(broken > 0, float("nan"), tl.max(x, 1, keep_dims=True))


# --- operators -----------------------------------------------------------------------------------


@triton.jit
def number(x):
    """A number of the text as a value."""
    return tl.full((1, 1), x, tl.float32)


@triton.jit
def abs(x):
    return tl.abs(x)


@triton.jit
def exp(x):
    return tl.exp(x)


@triton.jit
def exp2(x):
    return tl.exp2(x)


@triton.jit
def log(x):
    return tl.log(x)


@triton.jit
def log2(x):
    return tl.log2(x)


@triton.jit
def sqrt(x):
    return tl.sqrt(x)


@triton.jit
def rsqrt(x):
    return tl.rsqrt(x)


@triton.jit
def sin(x):
    return tl.sin(x)


@triton.jit
def cos(x):
    return tl.cos(x)


@triton.jit
def erf(x):
    return tl.erf(x)


@triton.jit
def floor(x):
    return tl.floor(x)


@triton.jit
def ceil(x):
    return tl.ceil(x)


@triton.jit
def where(condition, a, b):
    return tl.where(condition, a, b)


@triton.jit
def negated(x):
    return x == 0


@triton.jit
def maximum(a, b):
    """A NaN in either is kept."""
    return tl.where(a > b, a, tl.where(b >= a, b, a + b))


@triton.jit
def minimum(a, b):
    """A NaN in either is kept."""
    return tl.where(a < b, a, tl.where(b <= a, b, a + b))


@triton.jit
def sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def trunc(x):
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def round(x):
    """To the nearest, of two the even one: beyond 2^22 every float32 is whole or nearly so."""
    magnitude = tl.abs(x)
    below = tl.floor(magnitude)
    rest = magnitude - below
    odd = below - 2.0 * tl.floor(below * 0.5)
    up = (rest > 0.5) | ((rest == 0.5) & (odd == 1.0))
    nearest = below + tl.where(up, 1.0, 0.0)
    return tl.where(x < 0, -nearest, nearest)


@triton.jit
def log1p(x):
    """ln(1 + x): of 1 + x as it was rounded, and what that left of x."""
    u = 1.0 + x
    rest = x - (u - 1.0)
    far = tl.abs(u) > 3.0e38  # also an infinite one
    return tl.log(u) + tl.where(far | (u == 0.0), 0.0, rest / u)


@triton.jit
def _expm1_near(x):
    """Its series, for |x| up to 0.5."""
    p = x * (1.0 / 40320) + 1.0 / 5040
    p = p * x + 1.0 / 720
    p = p * x + 1.0 / 120
    p = p * x + 1.0 / 24
    p = p * x + 1.0 / 6
    p = p * x + 0.5
    return x + x * x * p


@triton.jit
def expm1(x):
    """e^x - 1 = t(t + 2) with t = e^(x/2) - 1, where the difference would cancel."""
    magnitude = tl.abs(x)
    near = _expm1_near(tl.where(magnitude < 0.5, x, 0.0))
    half = _expm1_near(tl.where(magnitude < 1.0, 0.5 * x, 0.0))
    found = tl.where(magnitude < 1.0, half * (half + 2.0), tl.exp(x) - 1.0)
    return tl.where(magnitude < 0.5, near, found)


@triton.jit
def softplus(x):
    """ln(1 + e^x) without overflow."""
    return maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def sinh(x):
    magnitude = tl.abs(x)
    m = expm1(magnitude)
    half = tl.exp(magnitude * 0.5)
    near = 0.5 * (m + m / (m + 1.0))
    found = tl.where(magnitude < 1.0, near, half * (half * 0.5) - 0.5 / (half * half))
    return tl.where(x < 0, -found, found)


@triton.jit
def cosh(x):
    half = tl.exp(tl.abs(x) * 0.5)
    return half * (half * 0.5) + 0.5 / (half * half)


@triton.jit
def log10(x):
    return tl.log(x) * 0.4342944819032518


@triton.jit
def atan(x):
    """The polynomial is Cephes' (atanf, S. L. Moshier), of arguments brought below tan(π/8)."""
    magnitude = tl.abs(x)
    big, middle = magnitude > 2.414213562373095, magnitude > 0.4142135623730950
    turned = tl.where(big, -1.0 / magnitude, (magnitude - 1.0) / (magnitude + 1.0))
    y = tl.where(middle, turned, magnitude)
    start = tl.where(big, 1.5707963267948966, tl.where(middle, 0.7853981633974483, 0.0))
    z = y * y
    p = 8.05374449538e-2 * z - 1.38776856032e-1
    p = p * z + 1.99777106478e-1
    p = p * z - 3.33329491539e-1
    found = start + (p * z * y + y)
    return tl.where(x < 0, -found, found)


@triton.jit
def atan2(y, x):
    """By the half angle's tangent, from the side where nothing cancels."""
    scale = tl.maximum(tl.maximum(tl.abs(x), tl.abs(y)), 1e-30)
    level, up = x / scale, y / scale
    long = tl.sqrt(level * level + up * up)
    forward = 2.0 * atan(up / tl.where(x < 0, 1.0, long + level))
    size = 3.141592653589793 - 2.0 * atan(tl.abs(up) / tl.where(x < 0, long - level, 1.0))
    backward = tl.where(y < 0, -size, size)
    return tl.where(x < 0, backward, tl.where((x == 0) & (y == 0), y, forward))


@triton.jit
def fmod(x, y):
    """In double precision: exact where the quotient has fewer than 53 bits."""
    a, b = tl.abs(x.to(tl.float64)), tl.abs(y.to(tl.float64))
    rest = a - b * tl.floor(a / b)
    rest = tl.where(rest < 0.0, rest + b, tl.where(rest >= b, rest - b, rest)).to(tl.float32)
    rest = tl.where((b == float("inf")) & (a < b), tl.abs(x), rest)
    return tl.where(x < 0, -rest, rest)


@triton.jit
def pow(x, y):
    """In double precision, since y·ln x magnifies the error of ln x. 0⁰ and 1ʸ are 1; of a negative
    x and a y that is not whole: NaN."""
    a, b = x.to(tl.float64), y.to(tl.float64)
    size = tl.abs(a)
    found = tl.exp(b * tl.log(tl.where(size == 0.0, 1.0, size)))
    found = tl.where(size == 0.0, tl.where(b > 0.0, 0.0, float("inf")), found)
    half = b * 0.5
    odd = tl.floor(half) != half
    whole = tl.floor(b) == b
    of_negative = tl.where(whole, tl.where(odd, -found, found), float("nan"))
    found = tl.where(a < 0.0, of_negative, found)
    return tl.where((b == 0.0) | (a == 1.0), 1.0, found).to(tl.float32)
