"""Which kernels have shown on a GPU that they are right and fast: what ``python -m rnnfast tune``
found there (rnnfast/qualify), and the order in which ``auto`` asks by it.

A backend has passed, for a cell and a way of computing, where every strategy that could be tried
there was right. It goes before torch's kernels where it was faster at sizes next to a problem's.

What was found is kept in the cache folder; tables of the same form that were made by us ship beside
this file (``gpu-*.json``) and hold for their kind of GPU where nothing else is known.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import store
from .._version import __version__
from ..problem import Problem
from ..surroundings import constant_while_tracing
from .measured import between

COMMAND = "python -m rnnfast tune"
BACKENDS = ("cuda", "triton")
TABLES = Path(__file__).parent  # that ship
RIGHT, ABSENT = "right", "absent"  # states of a trial; any other says what went wrong


class Trial(NamedTuple):
    """One case by one strategy of a backend; strategy "": the one that its plan takes.

    Attributes:
        math: float32, tf32, bfloat16 or float16.
        state: ``RIGHT``; ``ABSENT``, there is no such kernel for it; else what went wrong.
        us, torch_us: of a call, where both were timed.
    """

    backend: str
    strategy: str
    cell: str
    math: str
    training: bool
    T: int
    B: int
    H: int
    state: str
    us: float | None = None
    torch_us: float | None = None


class Standing(NamedTuple):
    """Of a backend, for a cell and a way of computing.

    Attributes:
        fault: what went wrong, None where nothing did.
        passed: whether it was tried, and nothing went wrong.
        least: torch's time over the backend's, where that is the smallest; 0: it was not timed.
    """

    backend: str
    fault: str | None
    passed: bool
    least: float


class Qualification:
    """What was found on one device; ``by``: where that is from."""

    def __init__(self, trials: Sequence[Trial], by: str = "") -> None:
        self.trials, self.by = list(trials), by
        self.faults: dict[tuple[str, str, str], Trial] = {}  # by backend, cell, math
        self._right: set[tuple[str, str, str]] = set()
        self._ratios: dict[tuple[Any, ...], dict[tuple[int, ...], float]] = {}
        for trial in self.trials:
            key = (trial.backend, trial.cell, trial.math)
            if trial.state == RIGHT:
                self._right.add(key)
            elif trial.state != ABSENT:
                self.faults.setdefault(key, trial)
            if trial.us and trial.torch_us:
                found = self._ratios.setdefault((*key, trial.training), {})
                found[trial.T, trial.B, trial.H] = math.log(trial.torch_us / trial.us)

    def standing(self, backend: str, cell: str, way: str, training: bool) -> Standing:
        key = (backend, cell, way)
        fault = self.faults.get(key)
        known = self._ratios.get((*key, training), {})
        return Standing(
            backend,
            None if fault is None else described(fault),
            fault is None and key in self._right,
            math.exp(min(known.values())) if known else 0.0,
        )

    def ratio(self, backend: str, problem: Problem) -> float:
        """torch's time over the backend's; 0 where that was not measured."""
        way = math_of(problem.dtype)
        known = self._ratios.get((backend, problem.cell, way, problem.options.training))
        sizes = (problem.T, problem.B, problem.H)
        return math.exp(between(known, sizes)) if known else 0.0


@constant_while_tracing
def standings(index: int, cell: str, dtype: torch.dtype, training: bool) -> list[Standing] | None:
    """Of each backend on this GPU; None where it was not qualified."""
    known, way = of(index), math_of(dtype)
    if known is None:
        return None
    return [known.standing(b, cell, way, training) for b in BACKENDS]


def described(trial: Trial) -> str:
    """A line for people."""
    strategy = trial.strategy or "as planned"
    mode = "training" if trial.training else "inference"
    return (
        f"{trial.backend} {strategy}: {trial.cell} {trial.math} {mode} "
        f"T={trial.T} B={trial.B} H={trial.H}: {trial.state}"
    )


def math_of(dtype: torch.dtype) -> str:
    """The way of computing: the dtype, or tf32 where torch's switch for RNNs says so."""
    switch: Any = torch.backends.cudnn.rnn
    if dtype == torch.float32 and switch.fp32_precision == "tf32":
        return "tf32"
    return str(dtype).removeprefix("torch.")


@constant_while_tracing
def unknown() -> str:
    """Why nothing is known of a GPU."""
    if _switched_off():
        return "RNNFAST_TUNE=0: whether this device was qualified does not count"
    return f"not qualified on this device: {COMMAND}"


def summary(index: int) -> str:
    """A line for people: what was found on this GPU."""
    known = of(index)
    if known is None:
        return unknown()
    wrong = [t for t in known.trials if t.state not in (RIGHT, ABSENT)]
    tried = sum(t.state != ABSENT for t in known.trials)
    told = f"qualified {known.by}: {tried - len(wrong)} of {tried} trials right"
    return told + (f"; first that was not: {described(wrong[0])}" if wrong else "")


# --- what is kept ---------------------------------------------------------------------------------


def of(index: int) -> Qualification | None:
    """Of this GPU: what ``tune`` found with these versions, unless RNNFAST_TUNE=0, else what ships
    for its kind; None where there is neither."""
    own = None if _switched_off() else _read(file_of(index), _changes)
    return own or shipped(device_of(index))


def _switched_off() -> bool:
    return os.environ.get("RNNFAST_TUNE") == "0"


@functools.lru_cache(maxsize=16)
def _read(path: Path, _changes: int) -> Qualification | None:
    return _qualification(store.read(path), "on this kind of device")


@functools.cache
def shipped(device: str) -> Qualification | None:
    """What was found by us on such a device."""
    for file in TABLES.glob("gpu-*.json"):
        facts = json.loads(file.read_text(encoding="utf-8"))
        if facts["device"] == device:
            return _qualification(facts, f"by us on {device}")
    return None


def _qualification(facts: store.Facts, by: str) -> Qualification | None:
    rows = facts.get("trials")
    if not isinstance(rows, list):
        return None
    trials = [Trial(*row) for row in rows if _is_trial(row)]
    return Qualification(trials, by) if trials else None


def _is_trial(row: object) -> bool:
    kinds = (str, str, str, str, bool, int, int, int, str)
    if not isinstance(row, (list, tuple)) or len(row) != len(Trial._fields):
        return False
    if not all(isinstance(v, kind) for v, kind in zip(row, kinds, strict=False)):
        return False
    times = row[len(kinds) :]
    return all(t is None or (isinstance(t, (int, float)) and t > 0) for t in times)


_changes = 0


def changes(device: str, dtype: torch.dtype) -> object:
    """Another value where a choice that was made by ``standings`` is to be made anew."""
    return (_changes, math_of(dtype)) if device == "cuda" else None


def remember(index: int, trials: Sequence[Trial]) -> Path:
    """Keeps what was found on this GPU, in place of what was. Raises OSError."""
    global _changes
    path, facts = file_of(index), {"device": device_of(index), **versions()}
    store.update(path, lambda _: {**facts, "trials": [list(t) for t in trials]})
    _changes += 1
    return path


def forget(index: int) -> bool:
    """Deletes what is kept of this GPU; whether there was anything."""
    global _changes
    path = file_of(index)
    known = path.exists()
    path.unlink(missing_ok=True)
    _changes += 1
    return known


def file_of(index: int) -> Path:
    """One file for each kind of GPU, driver and versions."""
    words = [device_of(index), *(f"{name}{v}" for name, v in versions().items())]
    safe = "".join(c if c.isalnum() or c in ".+" else "-" for c in "-".join(words))
    return store.folder() / f"gpu-{safe}.json"


def device_of(index: int) -> str:
    """Its name; "none" where torch sees no GPU."""
    if not torch.cuda.is_available():
        return "none"
    return str(torch.cuda.get_device_properties(index).name)


@functools.cache
def versions() -> dict[str, str]:
    """Of all that takes part in making and running a kernel."""
    return {
        "driver": _driver(),
        "torch": torch.__version__,
        "cudnn": str(torch.backends.cudnn.version()),
        "triton": _triton(),
        "rnnfast": __version__,
    }


def _driver() -> str:
    try:
        told = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        told = ""
    found = re.search(r"\s(\d+\.[\d.]+)\s", told)
    return found[1] if found else "unknown"


def _triton() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"
