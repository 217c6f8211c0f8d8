"""Products of 16-bit storage, summed in float32 and rounded once; scaled where float16 needs it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import cast, wide
from . import multiply


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, of 16-bit tensors in float32; 2-D, of one dtype."""
    dtype = wide(left.dtype)
    if left.dtype == dtype:
        return multiply.product(left, right)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=dtype)
    return multiply.product(left.to(dtype), right.to(dtype))


def block_product(left: Tensor, right: Tensor, blocks: int) -> Tensor:
    """leftᵀ @ right [R, C], of [N, R] and [N, C]; or, with ``blocks`` K, that of each K-th of the
    columns with its own: [K, R/K, C/K]. In float32, of 16-bit tensors."""
    if blocks == 1:
        return wide_product(left.t(), right)
    dtype = wide(left.dtype)
    by_block = [t.to(dtype).unflatten(-1, (blocks, -1)).transpose(0, 1) for t in (left, right)]
    return by_block[0].transpose(1, 2) @ by_block[1]


def summed_product(left: Tensor, right: Tensor, blocks: int, groups: int) -> Tensor:
    """``block_product`` of [T, B, R] and [T, B, C]; with ``groups`` that of each part of the batch
    with its own: [groups, R, C] or [groups, K, R/K, C/K]."""
    if not groups:
        return block_product(left.flatten(0, 1), right.flatten(0, 1), blocks)
    dtype = wide(left.dtype)
    left, right = (_by_group(t.to(dtype), groups) for t in (left, right))
    if blocks == 1:
        return torch.bmm(left.transpose(1, 2), right)
    by_block = [t.unflatten(-1, (blocks, -1)).transpose(1, 2) for t in (left, right)]
    return by_block[0].transpose(2, 3) @ by_block[1]


def _by_group(values: Tensor, groups: int) -> Tensor:
    """[T, B, N] → [groups, T*B/groups, N]; of groups of one sequence no copy."""
    apart = values.unflatten(1, (groups, values.shape[1] // groups))
    if apart.shape[2] == 1:
        return apart.squeeze(2).transpose(0, 1)
    return apart.transpose(0, 1).flatten(1, 2)


def summed(values: Tensor, groups: int) -> Tensor:
    """[…, B, N] → [N], the sum in the wide dtype; with ``groups`` each part's: [groups, N]."""
    dtype = wide(values.dtype)
    if not groups:
        return multiply.sum_of_rows(values.flatten(0, -2), dtype)
    apart = values.unflatten(-2, (groups, values.shape[-2] // groups))
    return apart.transpose(-3, 0).flatten(1, -2).sum(1, dtype=dtype)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``total``, to which left @ right was added."""
    if left.dtype == total.dtype:
        return multiply.add_product(total, left, right)
    return total.add_(wide_product(left, right))


class Rounding(NamedTuple):
    """How sums become gradients: in the dtype ``storage``, divided by ``scale`` ([1], a power of
    two, float32; a scalar would be rounded to float16), which what was summed had been
    multiplied by."""

    storage: torch.dtype
    scale: Tensor | None = None

    def __call__(self, total: Tensor) -> Tensor:
        return cast(total if self.scale is None else total / self.scale, self.storage)


def power_of_two(largest: Tensor, exponent: int) -> Tensor:
    """The power of two that brings ``largest`` to 2**(exponent - 1) … 2**exponent; nobody waits
    for the device."""
    _, found = torch.frexp(largest)
    return torch.ldexp(torch.ones_like(largest), exponent - found.clamp(-80, 80))


def largest_of(values: Tensor) -> Tensor:
    """The largest absolute value, float32."""
    return torch.linalg.vector_norm(values, float("inf"), dtype=torch.float32)
