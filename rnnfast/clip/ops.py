"""The custom ops, for tracers and for whoever records torch's calls; eager code goes without them.

Gradients are declared as written to, the norm is a new tensor.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import parts

_lib = torch.library.Library("rnnfast", "FRAGMENT")
_lib.define("clip_norm_(Tensor(a!)[] grads, float max_norm, float norm_type) -> Tensor")
_lib.define("clip_total_norm(Tensor[] tensors, float norm_type) -> Tensor")
_lib.define("clip_scale_(Tensor(a!)[] grads, Tensor total_norm, float max_norm) -> ()")
_lib.define("clip_value_(Tensor(a!)[] grads, float clip_value) -> ()")


def observed() -> bool:
    """Whether a compiler traces, or someone records or replaces torch's calls."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def wanted(tensors: list[Tensor], p: float) -> bool:
    """Whether this call is to go through an op: it is observed, and the op's kernels can serve."""
    if not observed():
        return False
    device = tensors[0].device
    return p > 0 and all(
        not parts.is_sharded(t)
        and t.device == device
        and device.type in ("cpu", "cuda")
        and t.dtype in parts.FLOATS
        and t.layout == torch.strided
        and (p != float("inf") or t.numel() > 0)
        for t in tensors
    )


def _clip_norm_(grads: list[Tensor], max_norm: float, norm_type: float) -> Tensor:
    norm = parts.clip_at_once(grads, max_norm, norm_type, if_finite=False)
    if norm is not None:
        return norm
    norm = torch.nn.utils.get_total_norm(grads, norm_type)
    _clip_scale_(grads, norm, max_norm)
    return norm


def _clip_total_norm(tensors: list[Tensor], norm_type: float) -> Tensor:
    norm = parts.total_norm(tensors, norm_type)
    return torch.nn.utils.get_total_norm(tensors, norm_type) if norm is None else norm.shown


def _clip_scale_(grads: list[Tensor], total_norm: Tensor, max_norm: float) -> None:
    if not parts.scale(grads, total_norm, max_norm):
        torch._foreach_mul_(grads, torch.clamp(max_norm / (total_norm + 1e-6), max=1.0))


def _clip_value_(grads: list[Tensor], clip_value: float) -> None:
    if not parts.clamp(grads, clip_value):
        torch._foreach_clamp_min_(grads, -clip_value)
        torch._foreach_clamp_max_(grads, clip_value)


_lib.impl("clip_norm_", _clip_norm_, "CompositeExplicitAutograd")
_lib.impl("clip_total_norm", _clip_total_norm, "CompositeExplicitAutograd")
_lib.impl("clip_scale_", _clip_scale_, "CompositeExplicitAutograd")
_lib.impl("clip_value_", _clip_value_, "CompositeExplicitAutograd")


def _norm_like(tensors: list[Tensor]) -> Tensor:
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    return tensors[0].new_empty((), dtype=dtype)


@torch.library.register_fake("rnnfast::clip_norm_", lib=_lib)
def _(grads: list[Tensor], max_norm: float, norm_type: float) -> Tensor:
    return _norm_like(grads)


@torch.library.register_fake("rnnfast::clip_total_norm", lib=_lib)
def _(tensors: list[Tensor], norm_type: float) -> Tensor:
    return _norm_like(tensors)


@torch.library.register_fake("rnnfast::clip_scale_", lib=_lib)
def _(grads: list[Tensor], total_norm: Tensor, max_norm: float) -> None:
    return None


@torch.library.register_fake("rnnfast::clip_value_", lib=_lib)
def _(grads: list[Tensor], clip_value: float) -> None:
    return None
