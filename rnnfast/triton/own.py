"""Cells of one's own: the functions of a generated text, and their launches, step by step."""

from __future__ import annotations

import functools
import hashlib
import linecache
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..steps.triton_text import Launch, Text
from . import graphs, vocabulary
from .device import Door, facts_of
from .launch import Clip
from .plan import INTERPRETER, Device, Tiling, fitting, power_of_two, stepwise_tiling

WIDEST = 1024  # units of a row that a program has at a time


class Pass(NamedTuple):
    """A pass over T steps.

    Attributes:
        text: of the cell, for its H.
        direction: ``"forward"`` or ``"backward"``.
        states: how many. T, B: steps, sequences. itemsize: bytes of a weight.
        training: whether a backward is to come. clip: of what a step hands to the one before.
        precision: ``"tf32"`` or ``"ieee"``, of float32 products.
    """

    text: Text
    direction: str
    states: int
    T: int
    B: int
    itemsize: int
    reverse: bool
    training: bool
    clip: Clip
    precision: str

    @property
    def launches(self) -> Sequence[Launch]:
        return self.text.forward if self.direction == "forward" else self.text.backward


def tiling_of(launch: Launch, B: int, itemsize: int, device: Device) -> Tiling:
    """One for each kind of launch, until a GPU has measured others."""
    interpreted = device == INTERPRETER  # whose time goes by operations, not by their size
    if launch.planes:
        if interpreted:
            return stepwise_tiling(16, min(128, power_of_two(launch.units)), 128)
        rows = 16 if B <= 32 else 64
        warps = 8 if rows == 64 and launch.planes >= 4 else 4  # with 4 an sLSTM spills in bf16
        tiling = stepwise_tiling(rows, num_warps=warps)
        return fitting(tiling, launch.planes, itemsize, device)
    if launch.whole:
        width = min(WIDEST, power_of_two(launch.units))
        return Tiling(False, 16 if interpreted else 1, width, 16, 0, 4, 1)
    width = min(128, power_of_two(launch.units))
    return Tiling(False, 16 if interpreted else 512 // width, width, 16, 0, 4, 1)


def run(
    own: Pass,
    given: Mapping[str, Tensor | None],
    written: Sequence[str],
    changed: Sequence[Tensor],
) -> None:
    """All steps. ``given``: tensors by the names of triton_text.py but "tmp" and "kept", and

        init0, …, last0, …      forward: the states that it begins and ends with [B, H]
        dlast0, …, dinit0, …    backward: their gradients

    ``written``: those of them that it fills or changes; ``changed``: the latter.
    """
    if own.B == 0:
        return
    names = sorted(given)
    read = [name for name in names if name not in written]
    groups = [tuple(given[name] for name in some) for some in (read, written)]
    device = next(t.device for t in given.values() if t is not None)

    def work(*tensors: tuple[Tensor | None, ...]) -> None:
        each = zip((*read, *written), (t for group in tensors for t in group), strict=True)
        _steps(own, device, dict(each))

    first = given[written[0]]
    assert first is not None
    if own.T < graphs.FEWEST_STEPS or not graphs.allowed(first):
        work(*groups)
        return
    what = (own.text.text, *own[1:], *read, None, *written)
    graphs.GRAPHS.run(what, work, groups[:1], groups[1:], changed)


def _steps(own: Pass, device: torch.device, given: dict[str, Any]) -> None:
    forward = own.direction == "forward"
    begin, end, old, new = (
        ("init", "last", "state", "next") if forward else ("dlast", "dinit", "dstate", "dold")
    )
    pairs = []
    for k in range(own.states):
        start = given[f"{begin}{k}"].to(torch.float32, copy=True)
        pairs.append((start, torch.empty_like(start)))
    apart = {name: widths[own.direction] for name, widths in own.text.apart.items()}
    more = {name: pairs[0][0].new_empty(own.B, width) for name, width in apart.items()}
    more |= _scalars(own)
    facts = facts_of(device)
    with Door(device) as door:
        runs = []
        for turn in (0, 1):
            turned = {f"{old}{k}": pair[turn] for k, pair in enumerate(pairs)}
            turned |= {f"{new}{k}": pair[1 - turn] for k, pair in enumerate(pairs)}
            values = {**given, **more, **turned}
            runs.append([_bound(door, launch, own, facts, values) for launch in own.launches])
        for count, step in enumerate(range(own.T) if forward else reversed(range(own.T))):
            for launch in runs[count % 2]:
                launch(step=step)
    for k, pair in enumerate(pairs):
        given[f"{end}{k}"].copy_(pair[own.T % 2])


def _scalars(own: Pass) -> dict[str, Any]:
    return {"T": own.T, "B": own.B, "reverse": int(own.reverse), **own.clip._asdict()}


def _bound(
    door: Door, launch: Launch, own: Pass, facts: Device, values: Mapping[str, Any]
) -> Callable[..., Any]:
    kernel = functions_of(own.text.text)[launch.function]
    tiling = tiling_of(launch, own.B, own.itemsize, facts)
    grid = [triton.cdiv(own.B, tiling.block_b)]
    if not launch.whole:
        grid += [triton.cdiv(launch.units, tiling.block_h), launch.blocks]
    taken = {name: values[name] for name in kernel.arg_names if name in values}
    constants = {"TRAINING": own.training, "PRECISION": own.precision, **tiling.blocks}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    return door.launcher(kernel, tuple(grid), **taken, **constants, **tiling.options)


@functools.lru_cache(maxsize=256)
def functions_of(text: str) -> Mapping[str, Any]:
    """The functions of a text, by name. Triton reads the lines of a function again: they are kept
    where Python looks for those of code that has no file."""
    name = f"<rnnfast {hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    module = ModuleType("rnnfast.triton.generated")
    words = {word: found for word, found in vars(vocabulary).items() if not word.startswith("__")}
    vars(module).update(words)
    exec(compile(text, name, "exec"), vars(module))
    return MappingProxyType({w: found for w, found in vars(module).items() if w not in words})
