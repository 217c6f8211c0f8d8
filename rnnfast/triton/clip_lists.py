"""Calling the kernels of clip.py: lists of tensors as tables, and their launches."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import clip
from .device import Door, capturing, entered, processors

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # by their code


class Table(NamedTuple):
    """``data`` int64 on the device, as clip.py has it; ``dense``: the tensors, those with gaps
    copied; ``overlapping``: two share memory, and are not the very same."""

    data: Tensor
    entries: int
    chunks: int
    dense: list[Tensor]
    overlapping: bool


class TritonKernels:
    """As ``rnnfast.clip.kernels.Kernels``; on CUDA, or on the CPU under TRITON_INTERPRET=1."""

    def norm(
        self,
        tensors: list[Tensor],
        p: float,
        wide: bool,
        max_norm: float | None = None,
        if_finite: bool = False,
    ) -> Tensor | None:
        if not _taken(tensors) or (p == math.inf and any(t.numel() == 0 for t in tensors)):
            return None
        table = make_table(tensors, 1.0 if p == math.inf else p, max_norm or 0.0)
        at_once = max_norm is not None and not if_finite and not table.overlapping
        norm, shown = _launch_norm(table, p, at_once)
        if at_once:
            _write_back(tensors, table)
        elif max_norm is not None and (not if_finite or math.isfinite(shown.item())):
            self.scale(tensors, norm, max_norm)
        return norm if wide else shown

    def scale(self, tensors: list[Tensor], norm: Tensor, max_norm: float) -> bool:
        if not _taken(tensors):
            return False
        norm = norm.to(tensors[0].device, torch.float64)
        for table, those in _in_order(tensors, max_norm):
            _launch(clip.scale_by_norm, table, norm=norm)
            _write_back(those, table)
        return True

    def clamp(self, tensors: list[Tensor], bound: float) -> bool:
        if not _taken(tensors) or math.isnan(bound):
            return False
        if min(torch.finfo(t.dtype).max for t in tensors) < abs(bound) < math.inf:
            return False  # torch raises
        for table, those in _in_order(tensors, bound):
            _launch(clip.clamp_all, table)
            _write_back(those, table)
        return True


def _taken(tensors: list[Tensor]) -> bool:
    """Not while a graph is captured: nobody would keep the table that it copies at each replay."""
    device = tensors[0].device
    return not capturing(device) and all(
        t.device == device
        and type(t) in (Tensor, torch.nn.Parameter)
        and t.dtype in DTYPES
        and t.layout == torch.strided
        and not t.is_neg()
        for t in tensors
    )


def make_table(tensors: list[Tensor], p: float, limit: float) -> Table:
    """The tensors in the order of their addresses; one listed twice is there once."""
    dense = [_dense(t) for t in tensors]
    rows: list[list[int]] = []
    chunks, end, overlapping = 0, 0, False
    pairs = [(t, d) for t, d in zip(tensors, dense, strict=True) if t.numel()]
    for tensor, packed in sorted(pairs, key=lambda pair: pair[0].data_ptr()):
        address, size, code = packed.data_ptr(), packed.numel(), DTYPES.index(tensor.dtype)
        if rows and (rows[-1][0], rows[-1][1], rows[-1][3]) == (address, size, code):
            rows[-1][4] += 1
            continue
        overlapping = overlapping or tensor.data_ptr() < end
        end = max(end, _end(tensor))
        rows.append([address, size, chunks, code, 1])
        chunks += -(-size // clip.CHUNK.value)
    header = struct.unpack("qq", struct.pack("dd", p, limit))
    fields = [*header, *(field for row in rows for field in row)]
    data = torch.tensor(fields, dtype=torch.int64, device="cpu")
    device = tensors[0].device
    with entered(device):  # which pinned memory belongs to
        if device.type == "cuda":
            data = data.pin_memory()
        data = data.to(device, non_blocking=True)
    return Table(data, len(rows), chunks, dense, overlapping)


def _end(tensor: Tensor) -> int:
    """The address behind the last element."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    return tensor.data_ptr() + (last + 1) * tensor.element_size()


def _dense(tensor: Tensor) -> Tensor:
    """``tensor`` itself where its memory has no gaps."""
    return tensor if _has_no_gaps(tensor) else tensor.contiguous()


def _has_no_gaps(tensor: Tensor) -> bool:
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda a: a[1]):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _write_back(tensors: list[Tensor], table: Table) -> None:
    """What was copied goes where it came from; autograd learns of the rest."""
    for tensor, dense in zip(tensors, table.dense, strict=True):
        if dense is not tensor:
            tensor.copy_(dense)
        else:
            torch.autograd.graph.increment_version(tensor)


def _in_order(tensors: list[Tensor], limit: float) -> Iterator[tuple[Table, list[Tensor]]]:
    """One table; where tensors share a part of their memory, one for each, made when those before
    have been changed."""
    table = make_table(tensors, 2.0, limit)
    if not table.overlapping:
        yield table, tensors
        return
    for tensor in tensors:
        yield make_table([tensor], 2.0, limit), [tensor]


def _programs(table: Table) -> int:
    """4 a multiprocessor; so in the interpreter too there are sums of several to put together."""
    return max(1, min(table.chunks, 4 * processors(table.data.device)))


def _launch(kernel: Any, table: Table, **more: Any) -> None:
    what = {"table": table.data, "entries": table.entries, "chunks": table.chunks}
    with Door(table.data.device) as door:
        door.launcher(kernel, (_programs(table),), **what, **more)()


def _launch_norm(table: Table, p: float, scale: bool) -> tuple[Tensor, Tensor]:
    """(the norm in float64, the norm in the dtype of all), both 0-dim; scales too if ``scale``."""
    programs = _programs(table)
    kind = {math.inf: clip.MAX, 1.0: clip.ONE, 2.0: clip.TWO}.get(p, clip.POWER)
    dtype = functools.reduce(torch.promote_types, {t.dtype for t in table.dense})
    new = functools.partial(torch.empty, device=table.data.device)
    norms = new(programs, dtype=torch.float64)
    wide, shown = new((), dtype=torch.float64), new((), dtype=dtype)
    _launch(clip.partial_norms, table, norms=norms, KIND=kind)
    block = max(2, 1 << (programs - 1).bit_length())
    found = {"norms": norms, "programs": programs, "wide": wide, "shown": shown}
    _launch(clip.norm_and_scale, table, **found, KIND=kind, BLOCK=block, SCALE=scale)
    return wide, shown
