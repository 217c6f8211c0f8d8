"""The loops of a compiled cell, on any device: memory, and what they are given.

The structures are those of csrc/scan/steps.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..problem import Gradients, Needs, Scan
from . import passes
from .passes import Pass
from .source import Source

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
        ("in_place", _int),
        ("input", _pointer),
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

    def gradients(
        self, own: Pass, given: Sequence[Tensor | None], scan: Scan, needs: Needs
    ) -> Gradients | None:
        """All that ``needs`` names by one call, as ``run`` is given its pass backward; None where
        there is no such call for ``scan``."""
        return None


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
