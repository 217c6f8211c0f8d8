"""A list of tensors taken apart: by device, and sharded ones (DTensor) by who holds the rest.

A sharded tensor's norm is that of each rank's own part, then one collective for each sharded mesh
dimension: an all-gather of one float64 a rank, added up by everyone in the same order, so that all
ranks have the same bits and no NaN is lost.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from . import kernels
from .kernels import Kernels


class Norm(NamedTuple):
    """``shown``: what the user gets; ``wide``: float64, plain, what the factor is computed from."""

    shown: Tensor
    wide: Tensor


class Part(NamedTuple):
    """Tensors of this process on one device; ``groups``: of the processes that hold other parts of
    the same tensors, one for each sharded mesh dimension."""

    kernels: Kernels
    device: torch.device
    tensors: list[Tensor]
    groups: tuple[Any, ...]


def clip_at_once(grads: list[Tensor], max_norm: float, p: float, if_finite: bool) -> Tensor | None:
    """Norm and scale in one call, where all gradients are plain and on one device; else None."""
    found = kernels.of_device(grads[0].device.type)
    return None if found is None else found.norm(grads, p, False, max_norm, if_finite)


def total_norm(tensors: list[Tensor], p: float) -> Norm | None:
    """The norm of all ``tensors``, p > 0; None where one of them has no kernel."""
    at_once = kernels.of_device(tensors[0].device.type)
    wide = None if at_once is None else at_once.norm(tensors, p, True)
    if wide is None:
        wide = _norm_of_parts(tensors, p)
    if wide is None:
        return None
    dtype = functools.reduce(torch.promote_types, {t.dtype for t in tensors})
    return Norm(_as_shown(wide.to(dtype), tensors), wide)


def _norm_of_parts(tensors: list[Tensor], p: float) -> Tensor | None:
    parts = split(tensors, for_norm=True)
    if parts is None:
        return None
    norms = []
    for part in parts:
        norm = _local_norm(part, p)
        if norm is None:
            return None
        norms.append(norm)
    norms = [_over_ranks(norm, part.groups, p) for norm, part in zip(norms, parts, strict=True)]
    first = tensors[0].device
    return combine(torch.stack([norm.to(first) for norm in norms]), p)


def scale(grads: list[Tensor], norm: Tensor, max_norm: float) -> bool:
    """Multiplies by min(1, max_norm / (norm + 1e-6)); False, and nothing done, where one of them
    has no kernel."""
    if not isinstance(norm, Tensor) or norm.numel() != 1:
        return False
    whole: Any = norm
    plain: Tensor = whole.full_tensor() if is_sharded(norm) else norm
    return _each(grads, lambda of, tensors: of.scale(tensors, plain, max_norm))


def clamp(grads: list[Tensor], bound: float) -> bool:
    """Clamps to [-bound, bound]; False where one of them has no kernel."""
    return _each(grads, lambda of, tensors: of.clamp(tensors, bound))


def _each(grads: list[Tensor], change: Callable[[Kernels, list[Tensor]], bool]) -> bool:
    at_once = kernels.of_device(grads[0].device.type)
    if at_once is not None and change(at_once, grads):
        return True
    parts = split(grads, for_norm=False)
    if parts is None:
        return False
    for index, part in enumerate(parts):
        if part.tensors and not change(part.kernels, part.tensors):
            if index > 0:
                raise RuntimeError("some gradients were clipped, and others cannot be")
            return False
    return True


def split(tensors: list[Tensor], for_norm: bool) -> list[Part] | None:
    """Parts in the order of their first tensors; None where a device or a kind has no kernels."""
    found: dict[Any, Part] = {}
    for tensor in tensors:
        groups: tuple[Any, ...] = ()
        local, device = tensor, tensor.device
        if is_sharded(tensor):
            local, groups = _own_part(tensor, for_norm)
        elif type(tensor) not in (Tensor, torch.nn.Parameter):
            return None
        if not _has_kernel(local):
            return None
        key = (device, groups, is_sharded(tensor))
        if key not in found:
            serving = kernels.of_device(device.type)
            if serving is None:
                return None
            found[key] = Part(serving, device, [], groups)
        if local.numel() > 0 or not is_sharded(tensor):
            found[key].tensors.append(local)
    return list(found.values())


FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _has_kernel(tensor: Tensor) -> bool:
    odd = tensor.is_neg() or tensor.is_inference() or torch._is_zerotensor(tensor)
    return tensor.dtype in FLOATS and tensor.layout == torch.strided and not odd


def is_sharded(tensor: Tensor) -> bool:
    """A DTensor; nobody has one before its module is imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _own_part(tensor: Any, for_norm: bool) -> tuple[Tensor, tuple[Any, ...]]:
    """What this rank holds, and the groups over which the rest is spread.

    A sum that is still pending (Partial) has its norm taken after the sum; scaling commutes.
    """
    from torch.distributed.tensor import Partial, Replicate

    if for_norm and any(isinstance(p, Partial) for p in tensor.placements):
        tensor = tensor.redistribute(
            placements=[Replicate() if isinstance(p, Partial) else p for p in tensor.placements]
        )
    mesh = tensor.device_mesh
    groups = tuple(
        mesh.get_group(dim)
        for dim, placement in enumerate(tensor.placements)
        if not isinstance(placement, (Replicate, Partial))
    )
    local = tensor.to_local()
    if type(local) not in (Tensor, torch.nn.Parameter) and hasattr(local, "wait"):
        local = local.wait()  # a collective that is still under way
    return local, groups


def _local_norm(part: Part, p: float) -> Tensor | None:
    if not part.tensors:
        return torch.zeros((), dtype=torch.float64, device=part.device)
    return part.kernels.norm(part.tensors, p, True)


def _over_ranks(norm: Tensor, groups: tuple[Any, ...], p: float) -> Tensor:
    for group in groups:
        every = norm.new_empty(dist.get_world_size(group))
        dist.all_gather_into_tensor(every, norm.reshape(1), group=group)
        norm = combine(every, p)
    return norm


def combine(norms: Tensor, p: float) -> Tensor:
    """The norm of everything, from the norms of its parts [n]; no power overflows."""
    if norms.numel() == 1:
        return norms.reshape(())
    largest = norms.max()
    if p == float("inf"):
        return largest
    usable = torch.logical_and(largest > 0, largest.isfinite())
    unit = torch.where(usable, largest, torch.ones_like(largest))
    return unit * (norms / unit).pow(p).sum().pow(1 / p)


def _as_shown(norm: Tensor, tensors: list[Tensor]) -> Tensor:
    """``norm``; a replicated DTensor where there are sharded tensors, as torch's is a DTensor."""
    for tensor in tensors:
        if is_sharded(tensor):
            from torch.distributed.tensor import DTensor, Replicate

            mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
            return DTensor.from_local(norm, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return norm
