"""Compiling a cell's loops for a GPU, and calling them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import library
from ..cells import CellSpec
from ..cells.step_error import StepError
from ..products.arithmetic import largest_of, power_of_two
from . import resident
from .cuda_text import cuda_source
from .gpu import layout_of
from .layout import Layout
from .loops import Arguments, Loop, Loops, Rows
from .resident import Budget, Shape
from .resident_text import facts, resident_source
from .source import Source

SCALED_EXPONENT = 5  # float16: gradients are scaled to at most 2**5; 2**11 is left for their growth


class Gpus:
    """Where kernels are compiled for the devices of a kind, loaded, and run."""

    def load(self, text: str, name: str, index: int) -> tuple[ctypes.CDLL, str]:
        """For the device of this number, and where it is kept. Raises LibraryError."""
        target = library.cuda_target(*torch.cuda.get_device_capability(index))
        return library.load(text, name=name, target=target), library.status(text, target)

    def budget(self, index: int) -> Budget:
        capability, _, shared, *_ = torch.ops.rnnfast.cuda_device(index)
        return Budget(capability, shared)

    @contextmanager
    def stream(self, device: torch.device) -> Iterator[int | None]:
        with torch.cuda.device(device):
            yield torch.cuda.current_stream(device).cuda_stream


KINDS = {"cuda": Gpus()}  # by the type of device that tensors are on; tests have another


class CudaKernel(Loops):
    """On a GPU, in float32: launches, one after the other, on the current stream."""

    def __init__(self, made: Source, on: Gpus, name: str, index: int, *passes: str) -> None:
        super().__init__(made, *on.load(made.text, name, index), passes or resident.PASSES)
        self.on = on
        for call, _ in self.calls.values():
            call.restype = ctypes.c_char_p

    def launch(self, name: str, arguments: Arguments, device: torch.device) -> None:
        with self.on.stream(device) as stream:
            size = self.bytes(name, arguments)
            workspace = torch.empty(size, dtype=torch.uint8, device=device)
            arguments.workspace = workspace.data_ptr()
            failed = self.calls[name][0](ctypes.byref(arguments), ctypes.c_void_p(stream))
        if failed is not None:
            raise RuntimeError(failed.decode())


class ResidentKernel(CudaKernel):
    """A pass in one launch. All but the product is in float32; ``matrix``: the weight's name."""

    def __init__(
        self, made: Source, on: Gpus, name: str, index: int, passed: str, shape: Shape, matrix: str
    ) -> None:
        super().__init__(made, on, name, index, passed)
        self.shape, self.matrix = shape, matrix

    def weights(self, name: str, loop: Loop, rows: Mapping[str, Rows]) -> Sequence[Tensor | None]:
        matrix = loop.weights[self.matrix].to(resident.MATHS[self.shape.math])
        scaled = name == "backward" and self.shape.math == "fp16"
        return [*super().weights(name, loop, rows), matrix, _scale(rows) if scaled else None]


def _scale(rows: Mapping[str, Rows]) -> Tensor:
    """float32 [1]: the power of two that brings the largest gradient to 2**SCALED_EXPONENT, without
    waiting for the device."""
    given = [row.init for name, row in rows.items() if name.startswith("dstate")]
    given += [row.base for name, row in rows.items() if name.startswith("dy")]
    each = [largest_of(t) for t in given if t is not None and t.numel() > 0]
    return power_of_two(torch.stack(each).amax(), SCALED_EXPONENT).view(1)


def kernel(kind: str, index: int, spec: CellSpec, hidden: int, bias: bool) -> CudaKernel | str:
    """The compiled stepwise loops for a device; why there are none. Kept by the cell, not by its
    name."""
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
    return made if isinstance(made, str) else CudaKernel(made, KINDS[kind], spec.name, index)


@functools.lru_cache(maxsize=256)
def _source(layout: Layout) -> Source | str:
    try:
        return cuda_source(layout)
    except StepError as error:
        return str(error)


def shape(layout: Layout, pass_name: str, math: str, budget: Budget) -> Shape | str:
    """Of the kernel that runs all steps of a pass; why there is none."""
    if budget.capability < resident.OLDEST:
        return f"compute capability {budget.capability / 10} is below {resident.OLDEST / 10}"
    found = resident.steps(layout)
    if isinstance(found, str):
        return found
    step = found[resident.PASSES.index(pass_name)]
    params, live = _facts(layout, pass_name)
    sizes = (layout.traced.hidden, len(step.gates), params, live)
    return resident.shape(pass_name, *sizes, math, budget)


@functools.lru_cache(maxsize=256)
def _facts(layout: Layout, pass_name: str) -> tuple[int, int]:
    found = resident.steps(layout)
    assert not isinstance(found, str), found
    return facts(pass_name, layout, found[resident.PASSES.index(pass_name)])


def resident_kernel(
    kind: str, index: int, spec: CellSpec, layout: Layout, pass_name: str, chosen: Shape
) -> ResidentKernel | str:
    """A pass in one launch, of that shape; why it can't be compiled."""
    try:
        return _resident(kind, index, spec, layout, pass_name, chosen)
    except library.LibraryError as error:
        return str(error)


@functools.lru_cache(maxsize=256)
def _resident(
    kind: str, index: int, spec: CellSpec, layout: Layout, pass_name: str, chosen: Shape
) -> ResidentKernel:
    made, weight = source_of(layout, pass_name, chosen)
    one = (KINDS[kind], spec.name, index, pass_name, chosen, weight)
    return ResidentKernel(made, *one)


def source_of(layout: Layout, pass_name: str, chosen: Shape) -> tuple[Source, str]:
    """The text of a pass in one launch, and its matrix' name."""
    found = resident.steps(layout)
    assert not isinstance(found, str), found
    step = found[resident.PASSES.index(pass_name)]
    return resident_source(pass_name, layout, step, chosen), step.weight


def cuda_library(
    spec: CellSpec, hidden: int, bias: bool, target: str, math: str
) -> ctypes.CDLL | str:
    """Compiled for GPUs of an architecture, that need not be there; why it can't be: the stepwise
    loops, and what is resident there, with products in ``math``."""
    layout = layout_of(spec.name, hidden, bias, blocks=True)
    made = layout if isinstance(layout, str) else _source(layout)
    if isinstance(made, str):
        return made
    texts = [made.text]
    budget = resident.budget_of(target)
    for pass_name in resident.PASSES:
        chosen = shape(made.layout, pass_name, math, budget)
        if isinstance(chosen, Shape):
            texts.append(source_of(made.layout, pass_name, chosen)[0].text)
    try:
        stepwise, *_ = [library.load(text, name=spec.name, target=target) for text in texts]
        return stepwise
    except library.LibraryError as error:
        return str(error)


def forget() -> None:
    """What was compiled in this process, and what failed; for tests."""
    for remembered in (_made, _source, _facts, _resident):
        remembered.cache_clear()
