"""``grad_clip_time``: limiting the gradient that a step hands back to the one before.

docs/clipping.md says where exactly. Here stand the option's forms, and the limit as a torch call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .surroundings import warn_of_trace

GradClipTime = float | tuple[str, float]


def as_option(value: GradClipTime) -> float:
    """The float that ``Options`` and the op have: v clips to [-v, v], -v zeroes beyond v, 0 is off.

    Args:
        value: v >= 0, or ("clip", v) or ("zero", v).

    Raises:
        TypeError: neither a number nor such a pair. ValueError: v is negative, NaN or infinite.
    """
    mode, bound = value if isinstance(value, tuple) and len(value) == 2 else ("clip", value)
    is_number = isinstance(bound, (int, float)) and not isinstance(bound, bool)
    if mode not in ("clip", "zero") or not is_number:
        raise TypeError(f'grad_clip_time should be a number or ("zero", number), got: {value!r}')
    if not 0 <= bound < math.inf:  # false of a NaN; isfinite could not be traced
        raise ValueError(f"grad_clip_time should be finite and not negative, got {bound}")
    return -float(bound) if mode == "zero" else float(bound)


def clip_of(option: float, training: bool, recorded: bool) -> float:
    """``option`` for one call: 0 where no gradient will be asked for, and in a trace of
    torch.jit.trace, whose graph has no operation that limits a gradient."""
    if not training or option == 0:
        return 0.0
    if recorded:
        warn_of_trace("leaves grad_clip_time out: the gradients of the trace are not limited")
        return 0.0
    return option


def limited(grad: Tensor, option: float) -> Tensor:
    """``grad`` within the limit ``option`` (as ``as_option`` gives it). A NaN is kept.
    Differentiable, at the limit itself as torch.clamp is."""
    bound = abs(option)
    if option > 0:
        return grad.clamp(-bound, bound)
    return torch.where(grad.abs() > bound, torch.zeros_like(grad), grad)
