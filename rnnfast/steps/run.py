"""The loops of a compiled cell on the CPU: compiled once for a layer's width, and called by C++."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _ext, library
from ..cells import CELLS, CellSpec
from ..cells.step_error import StepError
from ..problem import Gradients, Needs, Scan
from ..products import multiply
from ..products.projection import multiplied_by_kernel
from . import passes
from .check import check
from .graph import Matrix
from .loops import Call, Loop, Loops, Rows, WeightSums
from .passes import Pass
from .source import Source, source
from .sums import sums_of


class Kernel(Loops):
    """On the CPU, in float32 or float64: a pass is one call into C++ (csrc/python/steps.cpp)."""

    def __init__(
        self, spec: CellSpec, made: Source, loaded: ctypes.CDLL, bias: bool, dtype: torch.dtype
    ) -> None:
        super().__init__(made, loaded, library.status(made.text))
        self.spec, self._bias, self._dtype = spec, bias, dtype
        self._cost = _cost(made)
        self._split = functools.lru_cache(maxsize=64)(self._split_of)
        self._passes: dict[Pass, Any] = {}
        self._differentiating: dict[Pass, Any] = {}
        self._orders: dict[str, Order] = {}
        self._sums: dict[tuple[str, int | None], list[WeightSums]] = {}

    def split(self, B: int) -> tuple[int, int, str]:
        """Threads for the rows and for the units of a batch of B, and that in words."""
        return self._split(B, _module().cpu_threads())

    def _split_of(self, B: int, threads: int) -> tuple[int, int, str]:
        H = self.layout.traced.hidden
        return _module().cpu_split(self._cost, B, H, self._dtype.itemsize)

    def makes_gates(self, scan: Scan) -> bool:
        return multiplied_by_kernel(scan)

    def run(self, own: Pass, given: Sequence[Tensor | None], scan: Scan) -> dict[str, Tensor]:
        order, weights, options = self.order(scan.kind), scan.weights, scan.options
        projected = own.given[0].name == "gx" and given[0] is None
        w_ih, b_ih = order.of_input if projected else (None, None)
        rows, units, _ = self.split(scan.input.shape[1])
        tensors = self.made(own).run(
            given,
            [weights[k] for k in order.of_loop],
            scan.input if projected else None,
            None if w_ih is None else weights[w_ih],
            None if b_ih is None else weights[b_ih],
            scan.lengths,
            scan.resets,
            rows=rows,
            units=units,
            reverse=options.reverse,
            training=options.training,
            grad_clip_time=options.grad_clip_time,
        )
        names = ["gx", *own.returned] if projected and options.training else own.returned
        return dict(zip(names, tensors, strict=True))

    def gradients(
        self, own: Pass, given: Sequence[Tensor | None], scan: Scan, needs: Needs
    ) -> Gradients | None:
        whole = not needs.groups and needs.leading is None
        if not (whole and multiplied_by_kernel(scan) and self.sums_up(scan.kind)):
            return None
        rows, units, _ = self.split(scan.input.shape[1])
        dx, dstates, dweights = self.differentiating(own).gradients(
            given,
            scan.input,
            scan.weights,
            scan.lengths,
            scan.resets,
            of_input=needs.input,
            of_weights=needs.weights,
            rows=rows,
            units=units,
            reverse=scan.options.reverse,
            grad_clip_time=scan.options.grad_clip_time,
        )
        return Gradients(dx, dstates if needs.states else None, dweights if needs.weights else None)

    def sums_up(self, kind: str) -> bool:
        """Whether one pass of sums makes the gradients of all weights, and our product that of the
        input."""
        sums, weights = self.sums(kind, None), self.spec.weight_names(kind, self._bias)
        known = len(sums) == 1 and len(sums[0].numbers) == len(weights)
        return known and self.layout.widths["gx"] <= multiply.MOST_STEPS

    def differentiating(self, own: Pass) -> Any:
        """A pass backward that knows what ``gradients`` makes of it."""
        if own not in self._differentiating:
            (sums,), order = self.sums("dense", None), self.order("dense")
            names = [*(value.name for value in own.given), *own.returned]
            found = self._new(own)
            found.leaves(
                sums=sums.plan,
                tensors=[-1 if name == "x" else names.index(name) for name in sums.tensors],
                weights=order.of_loop,
                w_ih=order.of_input[0],
                dgx=names.index("dgx"),
                dstates=[names.index(f"dinit{k}") for k in range(len(self.spec.states))],
            )
            self._differentiating[own] = found  # only now: other threads may look for it
        return self._differentiating[own]

    def order(self, kind: str) -> Order:
        """Of scans of this kind."""
        if kind not in self._orders:
            names = self.spec.weight_names(kind, self._bias)
            w_ih, b_ih = (names.index(n) if n in names else None for n in ("w_ih", "b_ih"))
            of_loop = [names.index(name) for name in self.source.needs.weights]
            self._orders[kind] = Order(of_loop, (w_ih, b_ih))
        return self._orders[kind]

    def made(self, own: Pass) -> Any:
        """The pass as C++ runs it."""
        if own not in self._passes:
            self._passes[own] = self._new(own)
        return self._passes[own]

    def _new(self, own: Pass) -> Any:
        H, needs = self.layout.traced.hidden, self.source.needs
        function, size = (ctypes.cast(f, ctypes.c_void_p).value for f in self.calls[own.name])
        buffers = self.source.forward if own.name == "forward" else self.source.backward
        return _module().cpu_pass(
            function=function,
            bytes=size,
            H=H,
            dtype=self._dtype,
            products=self._cost[0],
            in_place=own.name == "forward" and all(_lies_together(v) for v in needs.views),
            weights=[self.spec.weight_shape(name, H) for name in needs.weights],
            views=[tuple(getattr(v, field[0]) for field in v._fields_) for v in self._views],
            constants=list(self._constants),
            given=[(value.extent, value.width, value.optional) for value in own.given],
            made=[(v.extent, v.width, v.zeroed, v.lasting) for v in own.made],
            buffers=list(passes.numbers(own, buffers)),
        )

    def sums(self, kind: str, leading: int | None) -> Sequence[WeightSums]:
        key = kind, leading
        if key not in self._sums:
            names = self.spec.weight_names(kind, self._bias)[:leading]
            self._sums[key] = [
                WeightSums(
                    [names.index(name) for name in one.weights],
                    one.tensors,
                    _module().cpu_sum_plan(**one.fields),
                )
                for one in sums_of(self.layout, kind, names)
            ]
        return self._sums[key]

    def prepared(self, name: str, loop: Loop, rows: Mapping[str, Rows]) -> Call:
        """A call that is made elsewhere, more than once, with a workspace of its own; the tensors
        of ``loop`` and ``rows`` are not kept."""
        call = self._described(name, loop, rows)
        call.arguments.rows, call.arguments.units, _ = self.split(loop.B)
        call.arguments.team = _team()
        return call


class Order(NamedTuple):
    """Which of a scan's weights the loop reads, in its order; w_ih and b_ih."""

    of_loop: list[int]
    of_input: tuple[int | None, int | None]


def _lies_together(matrix: Matrix) -> bool:
    """Whether rows or columns of a part of a weight are without gaps."""
    return matrix.row_stride == 1 or matrix.col_stride == 1


def _cost(made: Source) -> tuple[int, int, int]:
    """Weights, gates and meetings of a step, for the plan of its threads."""
    stages = made.layout.forward.stages
    weights = sum(
        group.width * len(group.nodes) * sum(arg.width for arg in group.operands) // group.blocks
        for stage in stages
        for group in stage.groups
    )
    return weights, max(1, len(made.needs.views) // 2), len(stages)


@functools.cache
def _module() -> Any:
    return _ext.cpu()


@functools.cache
def _team() -> int:
    return int(_module().cpu_team())


def kernel(cell: str, hidden: int, bias: bool, dtype: torch.dtype) -> Kernel | str:
    """The compiled loops; why there are none.

    ``dtype``: float32 or float64, what it is computed in.
    """
    try:
        return _made(CELLS[cell], hidden, bias, dtype)  # kept by the cell, not by its name
    except library.LibraryError as error:  # which knows for itself what would be so again
        return str(error)


@functools.lru_cache(maxsize=256)
def _made(spec: CellSpec, hidden: int, bias: bool, dtype: torch.dtype) -> Kernel | str:
    """In a thread of its own, where none of the caller's modes, hooks and settings are."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_make, spec, hidden, bias, dtype).result()


def _make(spec: CellSpec, hidden: int, bias: bool, dtype: torch.dtype) -> Kernel | str:
    try:
        checked(spec, hidden, bias)
        made = _source(spec, hidden, bias, dtype)
        return Kernel(spec, made, library.load(made.text, name=spec.name), bias, dtype)
    except StepError as error:
        return str(error)


@functools.lru_cache(maxsize=256)
def _source(spec: CellSpec, hidden: int, bias: bool, dtype: torch.dtype) -> Source:
    return source(spec, hidden, bias, dtype)


@functools.lru_cache(maxsize=256)
def checked(spec: CellSpec, hidden: int, bias: bool) -> None:
    """As ``check``, once in a process."""
    check(spec, hidden, bias)


def forget() -> None:
    """What was compiled in this process, and what failed; for tests."""
    _made.cache_clear()
    _source.cache_clear()
    checked.cache_clear()
