"""Activations and their derivatives in Triton, as csrc/cells/math.h has them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x); the exponent is never positive, so nothing overflows."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def tanh(x):
    """1 - 2 / (1 + e^2|x|) with the sign of x, and near 0, where that would cancel, x + x³p(x²).

    The polynomial is Cephes' (tanhf, S. L. Moshier), for |x| < 0.625. e^2|x| overflows to inf, and
    the quotient to 0: the result is ±1, and a NaN stays one.
    """
    magnitude = tl.abs(x)
    far = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * magnitude))
    square = x * x
    p = -5.70498872745e-3 * square + 2.06390887954e-2
    p = p * square - 5.37397155531e-2
    p = p * square + 1.33314422036e-1
    p = p * square - 3.33332819422e-1
    near = x + x * square * p
    return tl.where(magnitude < 0.625, near, tl.where(x < 0, -far, far))


@triton.jit
def relu(x):
    """A NaN is kept, as in torch."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def sigmoid_backward(dy, y):
    return dy * (1.0 - y) * y


@triton.jit
def tanh_backward(dy, y):
    return dy * (1.0 - y * y)


@triton.jit
def relu_backward(dy, y):
    """Slope 0 at 0, and a choice rather than a product (0 · inf is no NaN)."""
    return tl.where(y <= 0, 0.0, dy)
