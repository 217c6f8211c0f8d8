"""Which CUDA kernel computes a scan on the device at hand."""

from __future__ import annotations

import functools
import os
from collections import namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ... import _ext
from ...problem import Problem
from .lanes import Lanes, Streams

# compute capability (10 major + minor), SMs, a block's bytes of shared memory and registers, GHz
DeviceNumbers = tuple[int, int, int, int, float]
# of: cell, strategy, math, choice, whether backward, H, the device's index
Room = Callable[..., int]


class Plan(NamedTuple):
    """Which kernel computes a scan: ``strategy`` (stepwise, resident, cluster, grid), ``math``, and
    what the strategy is told: [shape], of a team of blocks [shape, blocks, teams, tiles]."""

    strategy: str
    math: str
    choice: list[int]
    text: str


class Kernels:
    """The compiled kernels, what they run on, and their plans."""

    @property
    def ops(self) -> Any:
        return torch.ops.rnnfast

    def call(self, name: str, **arguments: Any) -> Any:
        """One of the ops, with all its arguments."""
        op = getattr(self.ops, name)
        return op(*_arguments_of(op)(**arguments))

    def lanes(self, count: int, device: torch.device) -> Lanes:
        """What layers that are pipelined run on."""
        return Streams(count, device)

    def device_numbers(self, index: int) -> DeviceNumbers | str:
        """A device as the plan wants it, without the multiprocessors that RNNFAST_FREE_SMS leaves
        to others. Raises ValueError where that is no such number."""
        return _without(self.ops.cuda_device(index), os.environ.get("RNNFAST_FREE_SMS", "0"))

    @functools.cached_property
    def room(self) -> Room:
        """How many blocks of a team kernel a device has at once, by its driver, which is asked once
        about each."""

        @functools.lru_cache(maxsize=4096)
        def asked(*query: Any) -> int:
            return int(self.ops.cuda_room(*query))

        return asked

    def plan(self, direction: str, problem: Problem, directions: int = 1) -> Plan:
        """``direction``: "forward" or "backward"; ``directions`` of one layer in one launch.

        Raises ValueError where RNNFAST_PLAN is malformed or asks for what can't be.
        """
        sizes = (problem.T, problem.B, problem.H, problem.P, directions)
        return _plan(
            direction == "backward",
            problem.cell,
            str(problem.dtype).removeprefix("torch."),
            uses_tf32(),
            sizes,
            self.device_numbers(problem.device_index),
            os.environ.get("RNNFAST_PLAN", ""),
            problem.device_index,
            self.room,
        )


@functools.cache
def _arguments_of(op: Any) -> type[tuple[Any, ...]]:
    """Its arguments as a named tuple: torch itself takes a microsecond for each keyword."""
    names = [argument.name for argument in op.default._schema.arguments]
    return namedtuple("Arguments", names)


@functools.lru_cache(maxsize=4096)
def _plan(
    backward: bool,
    cell: str,
    dtype: str,
    tf32: bool,
    sizes: tuple[int, ...],
    device: DeviceNumbers | str,
    forced: str,
    index: int,
    room: Room,
) -> Plan:
    T, B, H, P, directions = sizes
    return Plan(
        *module().cuda_plan(
            backward=backward,
            cell=cell,
            dtype=dtype,
            tf32=tf32,
            T=T,
            B=B,
            H=H,
            P=P,
            directions=directions,
            device=device,
            forced=forced,
            room=lambda *query: room(*query, index),
        )
    )


def _without(numbers: DeviceNumbers, free: str) -> DeviceNumbers:
    if not free.isdigit() or int(free) >= numbers[1]:
        raise ValueError(
            f"RNNFAST_FREE_SMS is a number below the device's {numbers[1]} multiprocessors, "
            f"not {free!r}"
        )
    return (numbers[0], numbers[1] - int(free), *numbers[2:])


def uses_tf32() -> bool:
    """Whether recurrent products in float32 may be in tf32: what torch's own RNNs follow."""
    switch: Any = torch.backends.cudnn.rnn
    return switch.fp32_precision == "tf32"


@functools.cache
def module() -> Any:
    """The module with the plan; only called where ``unusable`` has no reason."""
    return _ext.cpu()
