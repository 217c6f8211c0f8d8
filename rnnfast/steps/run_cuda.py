"""Compiling a cell's loops for a GPU, and calling them."""

from __future__ import annotations

import ctypes
import functools

import torch

from .. import library
from ..cells import CellSpec
from ..cells.step_error import StepError
from .cuda_text import cuda_source
from .gpu import layout_of
from .layout import Layout
from .run import Arguments, Loops
from .source import Source


class CudaKernel(Loops):
    """On a GPU, in float32: launches, one after the other, on the current stream."""

    def __init__(self, made: Source, loaded: ctypes.CDLL, where: str) -> None:
        super().__init__(made, loaded, where)
        for call, _ in self.calls.values():
            call.restype = ctypes.c_char_p

    def run(self, name: str, arguments: Arguments, device: torch.device) -> None:
        with torch.cuda.device(device):
            self.start(name, arguments, device, torch.cuda.current_stream().cuda_stream)

    def start(
        self, name: str, arguments: Arguments, device: torch.device, stream: int | None
    ) -> None:
        size = self.bytes(name, arguments)
        workspace = torch.empty(size, dtype=torch.uint8, device=device)
        arguments.workspace = workspace.data_ptr()
        failed = self.calls[name][0](ctypes.byref(arguments), ctypes.c_void_p(stream))
        if failed is not None:
            raise RuntimeError(failed.decode())


class Gpus:
    """Where kernels are compiled for the devices of a kind, and loaded."""

    def load(self, made: Source, name: str, index: int) -> CudaKernel:
        """For the device of this number. Raises LibraryError."""
        target = library.cuda_target(*torch.cuda.get_device_capability(index))
        loaded = library.load(made.text, name=name, target=target)
        return CudaKernel(made, loaded, library.status(made.text, target))


KINDS = {"cuda": Gpus()}  # by the type of device that tensors are on; tests have another


def kernel(kind: str, index: int, spec: CellSpec, hidden: int, bias: bool) -> CudaKernel | str:
    """The compiled loops for a device; why there are none. Kept by the cell, not by its name."""
    try:
        return _made(kind, index, spec, hidden, bias)
    except library.LibraryError as error:  # the library knows what would be so again
        return str(error)


@functools.lru_cache(maxsize=256)
def _made(kind: str, index: int, spec: CellSpec, hidden: int, bias: bool) -> CudaKernel | str:
    layout = layout_of(spec.name, hidden, bias, blocks=True)
    if isinstance(layout, str):
        return layout
    made = _source(layout)
    return made if isinstance(made, str) else KINDS[kind].load(made, spec.name, index)


@functools.lru_cache(maxsize=256)
def _source(layout: Layout) -> Source | str:
    try:
        return cuda_source(layout)
    except StepError as error:
        return str(error)


def cuda_library(spec: CellSpec, hidden: int, bias: bool, target: str) -> ctypes.CDLL | str:
    """Compiled for GPUs of an architecture, that need not be there; why it can't be."""
    layout = layout_of(spec.name, hidden, bias, blocks=True)
    made = layout if isinstance(layout, str) else _source(layout)
    return made if isinstance(made, str) else _loaded(made, spec.name, target)


def _loaded(made: Source, name: str, target: str) -> ctypes.CDLL | str:
    try:
        return library.load(made.text, name=name, target=target)
    except library.LibraryError as error:
        return str(error)


def forget() -> None:
    """What was compiled in this process, and what failed; for tests."""
    _made.cache_clear()
    _source.cache_clear()
