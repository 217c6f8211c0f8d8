"""Clipping gradients after backward: torch.nn.utils' functions as kernels (docs/clipping.md)."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from . import ops, parts

Tensors = Tensor | Iterable[Tensor]


def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales the gradients in place so that their norm, taken together, is at most ``max_norm``.

    As :func:`torch.nn.utils.clip_grad_norm_`: gradients are multiplied by
    min(1, max_norm / (norm + 1e-6)).

    Args:
        parameters: one tensor or several; those without ``.grad`` take no part, one listed twice
            counts twice.
        max_norm: the largest norm that is left as it is.
        norm_type: p of the norm; may be ``inf`` or ``"inf"``.
        error_if_nonfinite: raise for a norm that is NaN or infinite; waits for the device.
        foreach: taken for compatibility; there is one way to compute it.

    Returns:
        The norm before clipping, 0-dim, on the first gradient's device, of the dtype that theirs
        are promoted to. Where gradients are sharded (DTensor): a replicated DTensor.

    Raises:
        RuntimeError: the norm is not finite and ``error_if_nonfinite``; the gradients are as they
            were.
    """
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    else:
        is_generator = isinstance(parameters, types.GeneratorType)
        parameters = list(parameters)
        if is_generator and len(parameters) == 0:
            warnings.warn(
                "`parameters` is an empty generator, no gradient clipping will occur.",
                stacklevel=2,
            )
    grads = _grads(parameters)
    norm_type, max_norm = float(norm_type), float(max_norm)
    if not grads:
        return torch.tensor(0.0)
    with torch.no_grad():
        if ops.wanted(grads, norm_type) and not error_if_nonfinite:
            norm: Tensor | None = torch.ops.rnnfast.clip_norm_(grads, max_norm, norm_type)
        else:
            norm = _clip(parameters, grads, max_norm, norm_type, error_if_nonfinite)
        if norm is None:
            norm = torch.nn.utils.clip_grad_norm_(
                parameters, max_norm, norm_type, error_if_nonfinite, foreach
            )
    return norm


def _clip(
    parameters: list[Tensor], grads: list[Tensor], max_norm: float, p: float, check: bool
) -> Tensor | None:
    if p > 0 and not ops.observed():
        norm = parts.clip_at_once(grads, max_norm, p, if_finite=check)
        if norm is not None:
            if check:
                _check_finite(norm, p)
            return norm
    total = _total_norm(grads, p, check)
    if total is None:
        return None
    _scale(parameters, grads, max_norm, total.wide)
    return total.shown


def get_total_norm(
    tensors: Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """The norm of all tensors taken together, as :func:`torch.nn.utils.get_total_norm`.

    Arguments, result and errors are those of :func:`clip_grad_norm_`.
    """
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    norm_type = float(norm_type)
    if not tensors:
        return torch.tensor(0.0)
    with torch.no_grad():
        norm = _total_norm(tensors, norm_type, error_if_nonfinite)
    if norm is not None:
        return norm.shown
    return torch.nn.utils.get_total_norm(tensors, norm_type, error_if_nonfinite, foreach)


def clip_grads_with_norm_(
    parameters: Tensors, max_norm: float, total_norm: Tensor, foreach: bool | None = None
) -> None:
    """Multiplies the gradients by min(1, max_norm / (total_norm + 1e-6)), in place.

    As :func:`torch.nn.utils.clip_grads_with_norm_`. ``total_norm`` is 0-dim, of any float dtype.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    grads = _grads(parameters)
    max_norm = float(max_norm)
    if grads:
        with torch.no_grad():
            _scale(parameters, grads, max_norm, total_norm, foreach)


def clip_grad_value_(parameters: Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Clamps every element of the gradients to [-clip_value, clip_value], in place.

    As :func:`torch.nn.utils.clip_grad_value_`; without gradients it does nothing. A NaN is kept.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    clip_value = float(clip_value)
    grads = _grads(parameters)
    if not grads:
        return
    with torch.no_grad():
        if ops.wanted(grads, 2.0):
            torch.ops.rnnfast.clip_value_(grads, clip_value)
        elif ops.observed() or not parts.clamp(grads, clip_value):
            torch.nn.utils.clip_grad_value_(parameters, clip_value, foreach)


def _grads(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _total_norm(tensors: list[Tensor], p: float, check: bool) -> parts.Norm | None:
    """None: it is torch's to compute, or to refuse."""
    norm: parts.Norm | None = None
    if ops.wanted(tensors, p):
        shown = torch.ops.rnnfast.clip_total_norm(tensors, p)
        norm = parts.Norm(shown, shown)
    elif p > 0 and not ops.observed():
        norm = parts.total_norm(tensors, p)
    if norm is not None and check:
        _check_finite(norm.shown, p)
    return norm


def _check_finite(norm: Tensor, p: float) -> None:
    if torch.logical_or(norm.isnan(), norm.isinf()):
        raise RuntimeError(
            f"The total norm of order {p} for gradients from `parameters` is non-finite, so it "
            "cannot be clipped. To disable this error and scale the gradients by the non-finite "
            "norm anyway, set `error_if_nonfinite=False`"
        )


def _scale(
    parameters: list[Tensor],
    grads: list[Tensor],
    max_norm: float,
    norm: Tensor,
    foreach: bool | None = None,
) -> None:
    if ops.wanted(grads, 2.0) and isinstance(norm, Tensor):
        torch.ops.rnnfast.clip_scale_(grads, norm, max_norm)
    elif ops.observed() or not parts.scale(grads, norm, max_norm):
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm, foreach)
