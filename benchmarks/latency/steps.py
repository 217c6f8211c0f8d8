"""The model's answer for one size: the best step of each strategy.

Its terms are those of csrc/cuda/plan/model.h, which the plan uses too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .counts import Kernel
from .loops import StepLoop

STRATEGIES = ("resident", "cluster", "grid", "stepwise")
MATHS = ("bf16", "fp16", "tf32", "fp32")
# ns a step; what the chain of a step consists of
PARTS = (
    "mma", "weights_from_shared", "operands", "partials", "specials", "issue", "latency",
    "barrier", "exchange", "fetch", "product", "pointwise", "load", "launch",
)  # fmt: skip
LIMITS = ("bytes", "flops", "specials")
CLUSTER_BLOCKS = (2, 4, 8, 16)
TILES = (1, 2, 3, 4, 6, 8)  # batch tiles of a team
MEASURED = "measured"  # the device of a file of measured rates
ESTIMATED = -1.0  # kEstimated of csrc/cuda/plan/model.h
COLUMNS = 8  # sequences of a batch tile


class Point(NamedTuple):
    """A layer, one direction. T: steps over which launch and loading of weights are spread."""

    device: str
    cell: str
    math: str
    pass_name: str
    H: int
    B: int
    T: int


class Candidate(NamedTuple):
    """A strategy and its numbers: what `_C.cuda_model` takes, and the compiled kernel."""

    strategy: str
    numbers: tuple[tuple[str, int], ...] = ()
    kernel: Kernel | None = None

    @property
    def text(self) -> str:
        return " ".join(f"{name} {n}" for name, n in self.numbers if name != "held_slabs")


@dataclass(frozen=True)
class Step:
    """Nanoseconds of a step, by the model; nothing in it was measured.

    Attributes:
        instructions: of a warp in a step (of one batch tile), counted; NaN where they were not,
            and the model estimated them (csrc/cuda/plan/model_counts.h).
        assumed: the share of `total` that is proportional to constants nobody published.
    """

    point: Point
    choice: Candidate
    total: float
    expected: float
    parts: Mapping[str, float]
    limits: Mapping[str, float]
    memory: float
    assumed: float
    instructions: float = math.nan
    kinds: Mapping[str, int] = field(default_factory=dict)

    @property
    def barriers(self) -> float:
        """What meeting costs, of blocks and of a block's threads, where nothing else hides it."""
        return self.parts["barrier"] + self.parts["exchange"]

    @property
    def bottleneck(self) -> str:
        """The largest of what follows one another in a step, or memory beside them."""
        if self.expected > self.total:
            return "memory"
        part = self.parts
        busy = {
            "product": max(part["mma"], part["weights_from_shared"], part["operands"]),
            "specials": part["specials"],
        }
        if part["issue"] > sum(busy.values()) + part["partials"]:
            busy = {"issue": part["issue"]}
        names = ("partials", "latency", "barrier", "exchange", "fetch", "load", "launch")
        chain = {**busy, **{name: part[name] for name in (*names, "pointwise")}}
        chain["product"] = chain.get("product", 0) + part["product"]
        return max(chain, key=lambda name: chain[name])


class Model:
    """`_C`'s cost model with some rates replaced; raises ValueError for a rate it does not have.

    measured: the numbers of the device that is called "measured", where there is one: compute
    capability as 10·major + minor, SMs, bytes of shared memory and registers of a block, GHz.
    """

    def __init__(
        self,
        module: Any,
        rates: Mapping[str, float] | None = None,
        measured: Sequence[float] | None = None,
    ):
        self.module, self.replaced = module, dict(rates or {})
        self._measured = (*map(int, measured[:4]), float(measured[4])) if measured else None
        module.cuda_rates(replaced=self.replaced)

    def given(self, device: str) -> Any:
        """As `_C` takes it: a name, or numbers. Raises ValueError for an unknown name."""
        if device == MEASURED and self._measured is not None:
            return self._measured
        self.module.cuda_device_numbers(device)
        return device

    def numbers(self, device: str) -> tuple[int, int, int, int, float]:
        """Compute capability, SMs, bytes of shared memory, registers of a block, GHz."""
        given = self.given(device)
        found: tuple[int, int, int, int, float] = (
            self.module.cuda_device_numbers(given) if isinstance(given, str) else given
        )
        return found

    def rates(self, device: str) -> dict[str, tuple[float, str, str]]:
        """name -> (value, unit, publisher; "measured" where replaced, "" where assumed)"""
        found = self.module.cuda_rates(self.given(device), self.replaced)
        return {
            name: (value, unit, "measured" if name in self.replaced else by)
            for name, (value, unit, by) in found.items()
        }

    def cost(
        self, point: Point, choice: Candidate, instructions: float = ESTIMATED, **rates: float
    ) -> Any:
        return self.module.cuda_model(
            choice.strategy,
            backward=point.pass_name == "backward",
            cell=point.cell,
            math=point.math,
            T=point.T,
            B=point.B,
            H=point.H,
            device=self.given(point.device),
            instructions=instructions,
            rates={**self.replaced, **rates},
            **dict(choice.numbers),
        )

    def choices(self, point: Point, strategy: str) -> Iterator[Candidate]:
        """What the strategy could run there."""
        if strategy == "stepwise":
            yield Candidate(strategy)
        elif strategy == "resident":
            yield from self._resident(point)
        else:
            yield from self._teams(point, strategy)

    def best(self, point: Point, strategy: str) -> Candidate | None:
        """The fastest, by the model with estimated instructions; None: nothing takes the size."""
        found = list(self.choices(point, strategy))
        return min(found, key=lambda choice: self.cost(point, choice)["total"], default=None)

    def step(self, point: Point, choice: Candidate, loop: StepLoop | None = None) -> Step:
        """Raises LoopError where the loop can't be that of the choice."""
        kinds: Mapping[str, int] = {}
        counted = ESTIMATED
        if loop is not None:
            kinds = loop.executed(self.cost(point, choice)["products"])
            counted = float(sum(kinds.values()))
        cost = self.cost(point, choice, counted)
        return Step(
            point,
            choice,
            cost["total"],
            cost["expected"],
            {name: cost[name] for name in PARTS},
            cost["limits"],
            cost["memory"],
            self._assumed(point, choice, counted, cost["total"]),
            math.nan if loop is None else counted,
            kinds,
        )

    def _assumed(self, point: Point, choice: Candidate, counted: float, total: float) -> float:
        """How much the step grows where all assumed constants get worse together."""
        worse = {
            name: value * (1 + _NUDGE) if _is_time(name) else value / (1 + _NUDGE)
            for name, (value, _, by) in self.rates(point.device).items()
            if not by and name not in _COUNTS
        }
        grown = self.cost(point, choice, counted, **worse)["total"] / total - 1
        return min(1.0, float(grown / _NUDGE))  # above 1 where two multiply one another

    def _resident(self, point: Point) -> Iterator[Candidate]:
        backward = point.pass_name == "backward"
        sm, _, limit, _, _ = self.numbers(point.device)
        listed = self.module.cuda_shapes(backward, point.cell, point.math, point.H)
        for index, (groups, held, shared, fits) in enumerate(listed):
            if sm >= 80 and fits and shared <= limit:
                kernel = Kernel("resident", point.pass_name, point.cell, point.math, groups, held)
                yield Candidate("resident", (("shape", index),), kernel)

    def _teams(self, point: Point, strategy: str) -> Iterator[Candidate]:
        sms = self.numbers(point.device)[1]
        batch = math.ceil(point.B / COLUMNS)
        cluster = strategy == "cluster"
        for blocks in CLUSTER_BLOCKS if cluster else range(2, sms + 1):
            if blocks > point.H:
                break
            for tiles in (1,) if cluster else TILES:
                teams = math.ceil(batch / tiles)
                if tiles > batch or (not cluster and teams * blocks > sms):
                    continue
                yield from self._team(point, strategy, blocks, tiles)

    def _team(self, point: Point, strategy: str, blocks: int, tiles: int) -> Iterator[Candidate]:
        listed = self.module.cuda_team_shapes(
            strategy,
            point.pass_name == "backward",
            point.cell,
            point.math,
            point.H,
            blocks,
            tiles,
            self.given(point.device),
        )
        for rows, held, _, fits in listed:
            if fits:
                numbers = (("blocks", blocks), ("tiles", tiles), ("held_slabs", held))
                kernel = Kernel(strategy, point.pass_name, point.cell, point.math, rows, held)
                yield Candidate(strategy, numbers, kernel)


_NUDGE = 1e-3
_COUNTS = frozenset({"gpc_sms"})  # not a rate


def _is_time(rate: str) -> bool:
    """Whether more of it is slower."""
    return rate.endswith(("_ns", "_cycles")) and not rate.endswith("_per_ns")


def points(
    devices: Sequence[str],
    cells: Sequence[str],
    maths: Sequence[str],
    hidden: Sequence[int],
    batch: Sequence[int],
    T: int,
) -> list[Point]:
    """Every combination, forward and backward."""
    return [
        Point(device, cell, way, pass_name, H, B, T)
        for device in devices
        for cell in cells
        for way in maths
        for pass_name in ("forward", "backward")
        for B in batch
        for H in hidden
    ]
