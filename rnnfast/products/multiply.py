"""Products of float32 and float64: on the CPU by our own kernel (csrc/cpu/gemm.h) where it measured
faster (docs/benchmarks.md), else by torch's. Not differentiable."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .. import _ext

FASTER = ("avx2",)  # the instruction sets for which it was measured


def product(left: Tensor, right: Tensor, row: Tensor | None = None) -> Tensor:
    """left @ right, 2-D, with ``row`` added to each row."""
    kernel = _kernel(left, right)
    if kernel is not None:
        return kernel(left, right, row=row)
    return left @ right if row is None else torch.addmm(row, left, right)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``total``, to which left @ right was added."""
    kernel = _kernel(left, right)
    if kernel is not None and total.dtype == left.dtype and total.is_contiguous():
        return kernel(left, right, into=total)
    return total.addmm_(left, right)


def _kernel(left: Tensor, right: Tensor) -> Any:
    """Ours, if it takes these."""
    if not left.is_cpu or left.dtype != right.dtype:
        return None
    if left.dtype not in (torch.float32, torch.float64) or not _strided(left, right):
        return None
    return None if torch.is_grad_enabled() and _wanted(left, right) else _loaded()


def _strided(*tensors: Tensor) -> bool:
    return all(
        t.layout == torch.strided and type(t) in (Tensor, torch.nn.Parameter) for t in tensors
    )


def _wanted(*tensors: Tensor) -> bool:
    return any(t.requires_grad for t in tensors)


@functools.cache
def _loaded() -> Any:
    """The kernel, None where there is none for this processor."""
    if _ext.why_missing() is not None:
        return None
    module: Any = _ext.load()
    return module.cpu_product if module.cpu_isa() in FASTER else None
