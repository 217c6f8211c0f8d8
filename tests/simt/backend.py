"""The backend ``simt``: the CUDA backend's Python and the CUDA kernels, on CPU tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rnnfast.backends import registry
from rnnfast.backends.cuda import Cuda

from .build import library


class Simt(Cuda):
    name = "simt"
    device = "cpu"

    def __init__(self) -> None:
        torch.ops.load_library(library())
        self._missing = None

    @property
    def ops(self) -> Any:
        return torch.ops.rnnfast_simt

    def device_numbers(self) -> str:
        return "H100"

    def unusable(self) -> str | None:
        return None


@contextmanager
def registered() -> Iterator[Simt]:
    """Within the block, layers find the backend ``simt``."""
    backend = registry.BACKENDS["simt"] = Simt()
    try:
        yield backend
    finally:
        del registry.BACKENDS["simt"]
