"""Products of float32 and float64: on the CPU by our own kernel (csrc/cpu/gemm.h) where it measured
faster (docs/benchmarks.md), else by torch's. Not differentiable."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _ext

FASTER = ("avx2", "avx512")  # the instruction sets for which it was measured
WIDE_DTYPES = (torch.float32, torch.float64)
NARROW_DTYPES = (torch.bfloat16, torch.float16)
MOST_VALUES = 1 << 20  # of which a sum is made as a product
MOST_STEPS = 8192  # of a sum: beyond them torch's is faster
NARROW = (
    16  # rows or columns; a result of fewer is ours all the same: torch's is ten times as far off
)


def product(left: Tensor, right: Tensor, row: Tensor | None = None) -> Tensor:
    """left @ right, 2-D, with ``row`` added to each row."""
    kernel = _kernel(left, right) if row is None else _kernel(left, right, row)
    if kernel is not None:
        return kernel(left, right, row=row)
    return left @ right if row is None else torch.addmm(row, left, right)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``total``, to which left @ right was added."""
    kernel = _kernel(left, right, total)
    if kernel is not None and total.is_contiguous():
        return kernel(left, right, into=total)
    return total.addmm_(left, right)


def sum_of_rows(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of the rows of [N, C] in ``dtype``: [C]. A small one as a product with ones: torch
    would open a team of threads for it, which takes a loaded machine longer than all the rest. A
    long one is torch's, which adds up by halves."""
    small = values.numel() <= MOST_VALUES and len(values) <= MOST_STEPS
    if small and values.dtype == dtype and values.device.type == "cpu":
        ones = values.new_ones(1, len(values))
        if (kernel := _kernel(ones, values)) is not None:
            return kernel(ones, values)[0]
    return values.sum(0, dtype=dtype)


def product_to(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``out``, which becomes left @ right."""
    kernel = _kernel(left, right)
    return torch.mm(left, right, out=out) if kernel is None else out.copy_(kernel(left, right))


def product_into(out: Tensor, left: Tensor, right: Tensor, row: Tensor | None = None) -> None:
    """``out``, whose rows may lie apart, becomes left @ right, with ``row`` added to each row."""
    kernel = _kernel(left, right, out) if row is None else _kernel(left, right, out, row)
    if kernel is not None:
        kernel(left, right, row=row, out=out)
    else:
        out.copy_(product(left, right, row))


def is_faster() -> bool:
    """Whether our kernel is the faster one on this processor."""
    return _loaded() is not None


def wide_product(left: Tensor, right: Tensor) -> Tensor | None:
    """left @ right, 2-D, in float32, of ``right`` in 16 bits and ``left`` like it or in float32;
    None for all others, and where our own kernel does not take them."""
    if right.dtype not in NARROW_DTYPES or left.dtype not in (right.dtype, torch.float32):
        return None
    if not _unrecorded(left, right) or left.shape[1] > MOST_STEPS or _loaded() is None:
        return None
    made: Tensor = _module().cpu_wide_product(left, right)
    return made


def is_ours(*tensors: Tensor) -> bool:
    """Whether products of these, which may be stored in 16 bits, are made by kernels of ours."""
    return _takes(*tensors, dtypes=WIDE_DTYPES + NARROW_DTYPES) and _loaded() is not None


def _kernel(*tensors: Tensor) -> Any:
    """Ours, if it takes these: two to be multiplied, and what their product is added to."""
    if not _takes(*tensors):
        return None
    left, right = tensors[:2]
    if left.shape[1] <= MOST_STEPS:
        return _loaded()
    narrow = min(len(left), right.shape[1]) < NARROW
    return _loaded(slower=True) if narrow else None


def _takes(*tensors: Tensor, dtypes: Sequence[torch.dtype] = WIDE_DTYPES) -> bool:
    """Whether the kernel can multiply these, and nobody records it."""
    dtype = tensors[0].dtype
    return dtype in dtypes and all(t.dtype == dtype for t in tensors) and _unrecorded(*tensors)


def _unrecorded(*tensors: Tensor) -> bool:
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return not recorded and all(map(_plain, tensors))


def _plain(tensor: Tensor) -> bool:
    known = type(tensor) in (Tensor, torch.nn.Parameter)
    return known and tensor.device.type == "cpu" and tensor.layout == torch.strided


@functools.cache
def _loaded(slower: bool = False) -> Any:
    """The kernel, None where nothing was compiled; nor, unless ``slower`` will do, where it is not
    the faster one on this processor."""
    module = _module()
    if module is None:
        return None
    return module.cpu_product if slower or module.cpu_isa() in FASTER else None


@functools.cache
def _module() -> Any:
    return _ext.cpu()
