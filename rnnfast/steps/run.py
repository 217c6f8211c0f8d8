"""Calling the loops of a compiled cell: memory, pointers, threads.

The structures are those of csrc/scan/steps.h.
"""

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
from ..problem import Scan
from ..products.projection import multiplied_by_kernel
from . import passes
from .check import check
from .passes import Pass
from .source import Source, source
from .sums import sums_of

_int = ctypes.c_int64
_pointer = ctypes.c_void_p


class _View(ctypes.Structure):
    _fields_ = [(name, _int) for name in ("weight", "offset", "row", "column", "block")]


class Arguments(ctypes.Structure):
    _fields_ = [
        ("T", _int),
        ("B", _int),
        ("H", _int),
        ("reverse", _int),
        ("training", _int),
        ("rows", _int),
        ("units", _int),
        ("lengths", _pointer),
        ("resets", _pointer),
        ("buffers", _pointer),
        ("weights", _pointer),
        ("views", _pointer),
        ("constants", _pointer),
        ("grad_clip_time", ctypes.c_double),
        ("workspace", _pointer),
        ("team", _pointer),
        ("packed", _int),
    ]


class Rows(NamedTuple):
    """A buffer of a loop: its memory, how a sequence's row is found in it, what a sequence begins
    with, where what it ends with goes, and whether padding gets zeros."""

    base: Tensor | None
    kind: int
    width: int
    init: Tensor | None = None
    last: Tensor | None = None
    clear: bool = False


class Loop(NamedTuple):
    """What forward and backward of one call have in common."""

    T: int
    B: int
    weights: Mapping[str, Tensor]
    lengths: Tensor | None
    resets: Tensor | None
    reverse: bool
    training: bool
    grad_clip_time: float = 0.0

    @staticmethod
    def of(scan: Scan) -> Loop:
        (T, B), options = scan.input.shape[:2], scan.options
        return Loop(
            T,
            B,
            {name: weight.contiguous() for name, weight in scan.named_weights().items()},
            None if scan.lengths is None else scan.lengths.contiguous(),
            None if scan.resets is None else scan.resets.contiguous(),
            options.reverse,
            options.training,
            options.grad_clip_time,
        )


class WeightSums(NamedTuple):
    """The gradients of some weights in one pass: their numbers among a scan's, the names of the
    tensors that ``plan`` is to be given, and that (csrc/python/sums.cpp)."""

    numbers: Sequence[int]
    tensors: Sequence[str]
    plan: Any


class Call(NamedTuple):
    """A loop, what it is given, and the tables that this points to."""

    function: Any
    arguments: Arguments
    kept: list[Any]

    @property
    def addresses(self) -> tuple[int, int]:
        """Of the function and of its arguments."""
        function = ctypes.cast(self.function, _pointer).value
        assert function is not None
        return function, ctypes.addressof(self.arguments)


class Loops:
    """The compiled loops of a cell for layers of H units: of ``passes``."""

    def __init__(
        self,
        made: Source,
        loaded: ctypes.CDLL,
        where: str,
        passes: Sequence[str] = ("forward", "backward"),
    ) -> None:
        self.source, self.layout, self.where = made, made.layout, where
        views = [
            _View(
                made.needs.weights.index(m.weight),
                m.offset,
                m.row_stride,
                m.col_stride,
                m.block_stride,
            )
            for m in made.needs.views
        ]
        self._views = (_View * max(len(views), 1))(*views)
        constants = made.needs.constants
        self._constants = (ctypes.c_double * max(len(constants), 1))(*constants)
        self.calls = {}
        for name in passes:
            call, size = (getattr(loaded, f"rnnfast_{name}{end}") for end in ("", "_bytes"))
            size.restype = _int
            self.calls[name] = call, size

    def describe(self) -> str:
        """What was made of the step, and where it is kept."""
        layout, H = self.layout, self.layout.traced.hidden
        stages = layout.forward.stages
        kept = sum(1 for stage in stages for store in stage.stores if not store.always)
        products = sum(len(stage.groups) for stage in stages)
        units = layout.widths["saved"] + layout.widths["gx"] * (kept > 0) + H * len(layout.history)
        return (
            f"{_count(products, 'product')}, {_count(len(stages), 'stage')}, backward "
            f"{_count(len(layout.backward.stages), 'stage')}, saves {units / H:g} H of each step; "
            f"{self.where}"
        )

    def makes_gates(self, scan: Scan) -> bool:
        """Whether a pass makes the input's part of the gates itself."""
        return False

    def run(self, own: Pass, given: Sequence[Tensor | None], scan: Scan) -> dict[str, Tensor]:
        """What a pass makes and returns, by name. ``given`` as it says; with ``makes_gates`` the
        first of forward's is None, and is returned."""
        tensors = {v.name: t for v, t in zip(own.given, given, strict=True) if t is not None}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        like = tensors[own.given[0].name]
        T, B, _ = like.shape
        for value in own.made:
            shape = {passes.STEPS: (T, B), passes.SEQUENCES: (B,), passes.SLOTS: (2, B)}
            make = like.new_zeros if value.zeroed else like.new_empty
            tensors[value.name] = make(*shape[value.extent], value.width)
        rows = {
            name: Rows(
                tensors.get(row.base or ""),
                row.kind,
                row.width,
                tensors.get(row.init or ""),
                tensors.get(row.last or ""),
                row.clear,
            )
            for name, row in own.rows.items()
        }
        if B > 0:
            call = self._described(own.name, Loop.of(scan), rows)
            self.launch(own.name, call.arguments, like.device)
        return {name: tensors[name] for name in own.returned}

    def _described(self, name: str, loop: Loop, rows: Mapping[str, Rows]) -> Call:
        buffers = self.source.forward if name == "forward" else self.source.backward
        fields: list[int] = []
        for buffer in buffers:
            fields += _buffer(*rows[buffer])
        table = (_int * len(fields))(*fields)
        given = self.weights(name, loop, rows)
        weights = (_int * len(given))(*[0 if w is None else w.data_ptr() for w in given])
        arguments = Arguments(
            loop.T,
            loop.B,
            self.layout.traced.hidden,
            loop.reverse,
            loop.training,
            0,
            0,
            None if loop.lengths is None else loop.lengths.data_ptr(),
            None if loop.resets is None else loop.resets.data_ptr(),
            ctypes.addressof(table),
            ctypes.addressof(weights),
            ctypes.addressof(self._views),
            ctypes.addressof(self._constants),
            loop.grad_clip_time,
        )
        return Call(self.calls[name][0], arguments, [table, weights, given])

    def weights(self, name: str, loop: Loop, rows: Mapping[str, Rows]) -> Sequence[Tensor | None]:
        """What the text calls weights."""
        return [loop.weights[weight] for weight in self.source.needs.weights]

    def bytes(self, name: str, arguments: Arguments) -> int:
        """Of workspace."""
        return int(self.calls[name][1](ctypes.byref(arguments)))

    def launch(self, name: str, arguments: Arguments, device: torch.device) -> None:
        """Calls the loop; what is of a device in the arguments is not filled in yet."""
        raise NotImplementedError

    def sums(self, kind: str, leading: int | None) -> Sequence[WeightSums]:
        """The gradients of weights that one pass of sums makes, of scans of this kind; ``leading``
        as Needs has it."""
        return ()


class Kernel(Loops):
    """On the CPU, in float32 or float64: a pass is one call into C++ (csrc/python/steps.cpp)."""

    def __init__(
        self, spec: CellSpec, made: Source, loaded: ctypes.CDLL, bias: bool, dtype: torch.dtype
    ) -> None:
        super().__init__(made, loaded, library.status(made.text))
        self.spec, self._bias, self._dtype = spec, bias, dtype
        self._cost = _cost(made)
        self._split = functools.lru_cache(maxsize=64)(self._split_of)
        self._made: dict[Pass, Any] = {}
        self._orders: dict[str, _Order] = {}
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
        order, weights, options = self._order(scan.kind), scan.weights, scan.options
        projected = own.given[0].name == "gx" and given[0] is None
        w_ih, b_ih = order.of_input if projected else (None, None)
        rows, units, _ = self.split(scan.input.shape[1])
        tensors = self._pass(own).run(
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
        return dict(zip(["gx", *own.returned] if projected else own.returned, tensors, strict=True))

    def _order(self, kind: str) -> _Order:
        if kind not in self._orders:
            names = self.spec.weight_names(kind, self._bias)
            w_ih, b_ih = (names.index(n) if n in names else None for n in ("w_ih", "b_ih"))
            of_loop = [names.index(name) for name in self.source.needs.weights]
            self._orders[kind] = _Order(of_loop, (w_ih, b_ih))
        return self._orders[kind]

    def _pass(self, own: Pass) -> Any:
        if own not in self._made:
            H, needs = self.layout.traced.hidden, self.source.needs
            function, size = (ctypes.cast(f, _pointer).value for f in self.calls[own.name])
            buffers = self.source.forward if own.name == "forward" else self.source.backward
            self._made[own] = _module().cpu_pass(
                function=function,
                bytes=size,
                H=H,
                dtype=self._dtype,
                weights=[self.spec.weight_shape(name, H) for name in needs.weights],
                views=[tuple(getattr(v, field[0]) for field in v._fields_) for v in self._views],
                constants=list(self._constants),
                given=[(value.extent, value.width, value.optional) for value in own.given],
                made=[(v.extent, v.width, v.zeroed, v.lasting) for v in own.made],
                buffers=list(passes.numbers(own, buffers)),
            )
        return self._made[own]

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


class _Order(NamedTuple):
    """Which of a scan's weights the loop reads, in its order; w_ih and b_ih."""

    of_loop: list[int]
    of_input: tuple[int | None, int | None]


def _cost(made: Source) -> tuple[float, int, int]:
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


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _buffer(
    base: Tensor | None,
    kind: int,
    width: int,
    init: Tensor | None,
    last: Tensor | None,
    clear: bool,
) -> tuple[int, ...]:
    """The fields of a Buffer."""
    return (
        0 if base is None else base.data_ptr(),
        0 if init is None else init.data_ptr(),
        0 if last is None else last.data_ptr(),
        width,
        kind,
        clear,
    )


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
