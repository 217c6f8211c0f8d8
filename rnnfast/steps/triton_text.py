"""Triton functions of a program: one for each launch of a step, over rnnfast/triton/vocabulary.py.

A product is a launch of its own, over tiles of the batch and of its units; with it goes what is
pointwise, where the stage is ``fused``. The rest of a stage is another: a program has whole rows
where it reduces them, else a tile of their units. The text is for one H: sizes and numbers stand in
it, and it knows nothing of dtypes but that weights may have 16 bits.

Arguments, beside those of a scan: the rows of the layout by name, and

    state0, next0, …     forward: the states before and after the step [B, H] float32
    init0, new0, …       the states that sequences begin with; their values at every step [T, B, H],
                         or None where nobody reads them
    dstate0, dold0, …    backward: the gradients after and before the step [B, H] float32
    dy0, …               the gradients of the values at every step, or None
    kept                 scalars of a row that later launches read [B, ·]
    weight0, …           as ``Text.weights`` names them
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .layout import Layout
from .stages import Group, Stage, Store
from .triton_code import Function, Own


class Launch(NamedTuple):
    """``function``: its name. ``units``: the most that it makes of a row. ``whole``: a program has
    whole rows, else a tile of them. ``planes``: the sums of a product that a program holds for each
    unit, 0 for none. ``blocks``: the grid goes over so many blocks of ``units`` each."""

    function: str
    units: int
    whole: bool
    planes: int
    blocks: int = 1


@dataclass
class Text:
    """``text``: a module's, but for its imports. ``forward``, ``backward``: the launches of a step,
    in order. ``weights``: by the numbers that the text uses. ``apart``: how wide the rows of a
    sequence "tmp" and "kept" are, forward and backward."""

    text: str
    forward: list[Launch]
    backward: list[Launch]
    weights: list[str]
    apart: dict[str, dict[str, int]]


def text_of(layout: Layout) -> Text:
    weights: list[str] = []
    passes = {}
    for name in ("forward", "backward"):
        passes[name] = _Pass(name, layout, weights)
        passes[name].write()
    forward, backward = passes["forward"], passes["backward"]
    return Text(
        "\n\n".join(forward.functions + backward.functions),
        forward.launches,
        backward.launches,
        weights,
        {
            row: {name: one.own.width(row) for name, one in passes.items()}
            for row in ("tmp", "kept")
        },
    )


class _Pass:
    """All launches of a step, forward or backward."""

    def __init__(self, name: str, layout: Layout, weights: list[str]) -> None:
        self.name, self.program = name, getattr(layout, name)
        self.own = Own(layout, self.program, name == "backward", weights)
        self.functions: list[str] = []
        self.launches: list[Launch] = []

    def write(self) -> None:
        waiting: dict[int, Stage] = {}
        for index, stage in enumerate(self.program.stages):
            if stage.groups:
                self._apart(waiting)
                waiting = {}
            if stage.fused:
                self._product(index, stage.groups[0], stage)
                continue
            for group in stage.groups:
                self._product(index, group, None)
            if stage.waves or stage.stores:
                waiting[index] = stage
        self._apart(waiting)

    def _apart(self, stages: dict[int, Stage]) -> None:
        """What stands between two products: one launch of whole rows, where one is reduced."""
        if any(stage.waves or stage.scalars for stage in stages.values()):
            self._rows(stages)
            return
        for index, stage in stages.items():
            self._units(index, stage)

    def add(
        self, function: Function, planes: int = 0, whole: bool = False, blocks: int = 1
    ) -> None:
        name = f"{self.name}_{len(self.functions)}"
        self.functions.append(function.text(name))
        self.launches.append(Launch(name, function.widest, whole, planes, blocks))

    def _product(self, index: int, group: Group, stage: Stage | None) -> None:
        """``stage``: the one whose pointwise part is done on the sums; None: they go to memory."""
        function = Function(self.own, index)
        function.tile(group.width, group.blocks)
        function.multiply(group)
        names = {node: f"x{plane}" for plane, node in enumerate(group.nodes)}
        stores = [] if stage is None else stage.stores
        if stage is None:
            for node in group.nodes:
                buffer, offset = self.program.at[node]
                stores.append(Store(node, buffer, offset))
        function.pointwise(stores, names)
        self.add(function, planes=len(group.nodes), blocks=group.blocks)

    def _units(self, index: int, stage: Stage) -> None:
        function = Function(self.own, index)
        for width, stores in stage.vectors():
            function.tile(width)
            function.pointwise(stores, {})
        self.add(function)

    def _rows(self, stages: dict[int, Stage]) -> None:
        function = Function(self.own, min(stages))
        for index, stage in stages.items():
            function.begin(index)
            for wave in stage.waves:
                function.reduce(wave)
            function.scalars(stage.scalars)
            for width, stores in stage.vectors():
                function.each(width, stores)
        self.add(function, whole=True)
