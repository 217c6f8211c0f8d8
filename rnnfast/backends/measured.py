"""What was measured about who is faster on the CPU: by us on a few machines, by ``tune`` on this.

A table has points: a cell's call of T steps, B sequences and H units (I = H, one layer, one
direction, float32) with the times that torch's kernels and those of ``cpu`` took. Between its
points it is read on logarithmic scales, beyond them at the nearest.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import math
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import _ext, store
from .._version import __version__

CELLS = ("lstm", "gru", "rnn_tanh")  # of which a table has points


class Point(NamedTuple):
    """``torch`` and ``cpu``: microseconds of one call, with backward if ``training``."""

    cell: str
    training: bool
    T: int
    B: int
    H: int
    torch: float
    cpu: float


class Table:
    """Points and where they were measured: ``machine`` is a line of text."""

    def __init__(self, machine: str, points: Sequence[Point]) -> None:
        self.machine = machine
        self._ratios: dict[tuple[str, bool], dict[tuple[int, ...], float]] = {}
        for p in points:
            found = self._ratios.setdefault((p.cell, p.training), {})
            found[p.T, p.B, p.H] = math.log(p.torch / p.cpu)

    def ratio(self, cell: str, training: bool, T: int, B: int, H: int) -> float | None:
        """torch's time over that of ``cpu``; None where this was not measured at all."""
        known = self._ratios.get((cell, training))
        return None if known is None else math.exp(between(known, (T, B, H)))


def between(known: dict[tuple[int, ...], float], at: tuple[int, ...]) -> float:
    """Linear between the values around ``at``, coordinates by their logarithms. Where the grid has
    gaps, of the corners that there are; without any the nearest point."""
    corners = [_around(sorted({k[i] for k in known}), x) for i, x in enumerate(at)]
    total = weight = 0.0
    for corner in itertools.product(*corners):
        value = known.get(tuple(x for x, _ in corner))
        share = math.prod(w for _, w in corner)
        if value is not None:
            total, weight = total + share * value, weight + share
    if weight > 0:
        return total / weight

    def distance(point: tuple[int, ...]) -> float:
        return sum(math.log(max(x, 1) / p) ** 2 for x, p in zip(at, point, strict=True))

    return known[min(known, key=distance)]


def _around(axis: list[int], x: int) -> list[tuple[int, float]]:
    """The one or two values of ``axis`` next to x, and their shares."""
    if x <= axis[0] or x >= axis[-1]:
        return [(axis[0] if x <= axis[0] else axis[-1], 1.0)]
    right = bisect.bisect_left(axis, x)
    low, high = axis[right - 1], axis[right]
    share = math.log(x / low) / math.log(high / low)
    return [(low, 1 - share), (high, share)]


# --- what ships, and what this machine's user measured --------------------------------------------


@functools.cache
def shipped(isa: str) -> list[Table]:
    """Tables measured by us for an instruction set, the closest one first."""
    order = {"avx512": ("avx512", "avx2"), "avx2": ("avx2", "avx512")}.get(isa, ("avx2",))
    return [_load(f"measured-{name}.json") for name in order]


def _load(name: str) -> Table:
    found = json.loads((resources.files(__package__) / name).read_text(encoding="utf-8"))
    return Table(found["machine"], [Point(*row) for row in found["points"]])


class Local(NamedTuple):
    """What ``tune`` measured here: points, the table of them, and the fastest backend of single
    calls by their key."""

    points: list[Point]
    table: Table | None
    calls: dict[str, str]


_changes = 0
_unsaved: dict[Path, store.Facts] = {}  # of this process, where the folder can't be written


def changes() -> tuple[int, int]:
    """Another value where a choice that was made by ``local`` is to be made anew."""
    return _changes, torch.get_num_threads()


def local() -> Local:
    """What was measured on this machine, with these versions and so many threads; nothing where
    RNNFAST_TUNE=0."""
    if os.environ.get("RNNFAST_TUNE") == "0":
        return Local([], None, {})
    return _local(torch.get_num_threads(), _changes)


@functools.lru_cache(maxsize=16)
def _local(threads: int, _changes: int) -> Local:
    path = file_of(threads)
    facts = _sane(_unsaved.get(path) or store.read(path))
    points = [Point(*row) for row in facts["points"]]
    table = Table(f"this machine, by `python -m rnnfast tune`, {threads} threads", points)
    calls = {key: call["backend"] for key, call in facts["calls"].items()}
    return Local(points, table if points else None, calls)


def _sane(facts: store.Facts) -> store.Facts:
    """What of a file's facts is of this module's making; the rest counts as not measured."""
    points, calls = facts.get("points"), facts.get("calls")
    return {
        "points": [row for row in points if _is_point(row)] if isinstance(points, list) else [],
        "calls": {k: c for k, c in calls.items() if isinstance(c, dict) and "backend" in c}
        if isinstance(calls, dict)
        else {},
    }


def _is_point(row: object) -> bool:
    kinds = (str, bool, int, int, int, float, float)
    return (
        isinstance(row, (list, tuple))
        and len(row) == len(kinds)
        and all(isinstance(value, kind) for value, kind in zip(row, kinds, strict=True))
        and all(value > 0 for value in row[2:])
    )


def remember(change: Callable[[store.Facts], store.Facts]) -> Path:
    """Changes the facts of this machine's file, whose path is returned. Where it can't be written a
    RuntimeWarning says so, and they hold in this process."""
    global _changes
    path = file_of(torch.get_num_threads())
    try:
        store.update(path, lambda facts: {**change(_sane(facts)), "machine": machine()})
    except OSError as error:
        _unsaved[path] = change(_sane(_unsaved.get(path) or store.read(path)))
        message = f"{path} can't be written ({error}): what was measured is kept for this process"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    _changes += 1
    return path


def file_of(threads: int) -> Path:
    """One file for each machine, versions and number of threads."""
    name = "-".join([*_identity(), f"{threads}threads"])
    safe = "".join(c if c.isalnum() or c in ".+" else "-" for c in name)
    return store.folder() / f"tune-{safe}.json"


@functools.cache
def _identity() -> tuple[str, ...]:
    return (processor(), isa(), f"torch{torch.__version__}", f"rnnfast{__version__}")


def machine() -> dict[str, Any]:
    return dict(zip(("processor", "isa", "torch", "rnnfast"), _identity(), strict=True))


@functools.cache
def isa() -> str:
    """The instruction set of the backend ``cpu``; "none" where it is not built."""
    module: Any = _ext.cpu()
    return "none" if module is None else str(module.cpu_isa())


@functools.cache
def has_dots() -> bool:
    """Whether ``cpu`` has dot products of bfloat16, and oneDNN no better instructions (AMX)."""
    module: Any = _ext.cpu()
    return module is not None and module.cpu_has_dots() and not torch.cpu._is_amx_tile_supported()


@functools.cache
def processor() -> str:
    """The processor's name, as the system has it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
