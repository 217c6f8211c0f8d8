"""Who clips on which device: the compiled kernels, Triton's on CUDA without them, or nobody."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import _ext


class Kernels(Protocol):
    """The tensors of one call lie on one device. None or False: the list holds what the kernels do
    not take (nothing has been touched)."""

    def norm(
        self,
        tensors: list[Tensor],
        p: float,
        wide: bool,
        max_norm: float | None = None,
        if_finite: bool = False,
    ) -> Tensor | None:
        """The norm, 0-dim, p > 0; float64 if ``wide``, else of the dtype that theirs promote to.

        With ``max_norm`` the tensors are scaled too; ``if_finite``: only for a finite norm.
        """

    def scale(self, tensors: list[Tensor], norm: Tensor, max_norm: float) -> bool:
        """Multiplies by min(1, max_norm / (norm + 1e-6)); ``norm`` 0-dim, on any device."""

    def clamp(self, tensors: list[Tensor], bound: float) -> bool:
        """Clamps to [-bound, bound]."""


class OnCpu:
    """csrc/clip/cpu.h."""

    def __init__(self, module: Any) -> None:
        self._norm, self._scale = module.clip_norm, module.clip_scale
        self._clamp = module.clip_value

    def norm(
        self,
        tensors: list[Tensor],
        p: float,
        wide: bool,
        max_norm: float | None = None,
        if_finite: bool = False,
    ) -> Tensor | None:
        found: Tensor | None = self._norm(tensors, p, wide, max_norm, if_finite)
        return found

    def scale(self, tensors: list[Tensor], norm: Tensor, max_norm: float) -> bool:
        return bool(self._scale(tensors, norm, max_norm))

    def clamp(self, tensors: list[Tensor], bound: float) -> bool:
        return bool(self._clamp(tensors, bound))


class OnCuda:
    """csrc/clip/cuda.h: one launch, and no wait for the device but for ``if_finite``."""

    def __init__(self, module: Any) -> None:
        self._takes = module.clip_takes
        self._ops: Any = torch.ops.rnnfast

    def norm(
        self,
        tensors: list[Tensor],
        p: float,
        wide: bool,
        max_norm: float | None = None,
        if_finite: bool = False,
    ) -> Tensor | None:
        if not self._takes(tensors, max_norm is not None):
            return None
        if max_norm is not None and if_finite:
            return self._if_finite(tensors, p, wide, max_norm)
        found: Tensor | None = self._ops.cuda_clip_norm(tensors, p, wide, max_norm)
        if found is not None and max_norm is not None:
            increment_version(tensors)
        return found

    def _if_finite(
        self, tensors: list[Tensor], p: float, wide: bool, max_norm: float
    ) -> Tensor | None:
        norm: Tensor | None = self._ops.cuda_clip_norm(tensors, p, True, None)
        if norm is None:
            return None
        dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
        shown = norm if wide else norm.to(dtype)
        if shown.isfinite() and not self.scale(tensors, norm, max_norm):
            return None
        return shown

    def scale(self, tensors: list[Tensor], norm: Tensor, max_norm: float) -> bool:
        if not self._takes(tensors, True):
            return False
        return self._changed(tensors, self._ops.cuda_clip_scale(tensors, norm, max_norm))

    def clamp(self, tensors: list[Tensor], bound: float) -> bool:
        if bound != bound or not self._takes(tensors, True, bound):
            return False
        return self._changed(tensors, self._ops.cuda_clip_value(tensors, bound))

    def _changed(self, tensors: list[Tensor], done: bool) -> bool:
        if done:
            increment_version(tensors)
        return done


@functools.cache
def of_device(device: str) -> Kernels | None:
    """The kernels for this type of device, None where torch's own functions have to do."""
    host: Any = _ext.cpu()
    if device == "cpu" and host is not None:
        return OnCpu(host)
    if device == "cuda" and host is not None and _ext.why_no_cuda() is None:
        return OnCuda(host)
    if device == "cuda" and importlib.util.find_spec("triton") is not None:
        lists = importlib.import_module("rnnfast.triton.clip_lists")
        serving: Kernels = lists.TritonKernels()
        return serving
    return None
