"""Who clips on which device: the compiled kernels, Triton's on CUDA without them, or nobody."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, Protocol

from torch import Tensor

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


class Compiled:
    """csrc/clip/cpu.h; with the prefix "cuda_" csrc/clip/cuda.h: one launch, and no wait for the
    device but for ``if_finite``."""

    def __init__(self, module: Any, prefix: str = "") -> None:
        self._norm = getattr(module, f"{prefix}clip_norm")
        self._scale = getattr(module, f"{prefix}clip_scale")
        self._clamp = getattr(module, f"{prefix}clip_value")

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


@functools.cache
def of_device(device: str) -> Kernels | None:
    """The kernels for this type of device, None where torch's own functions have to do."""
    host: Any = _ext.cpu()
    if device == "cpu" and host is not None:
        return Compiled(host)
    module: Any = _ext.load() if device == "cuda" else None
    if device == "cuda" and module is not None and module.with_cuda:
        return Compiled(module, "cuda_")
    if device == "cuda" and importlib.util.find_spec("triton") is not None:
        lists = importlib.import_module("rnnfast.triton.clip_lists")
        serving: Kernels = lists.TritonKernels()
        return serving
    return None
