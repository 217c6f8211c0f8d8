"""In which order a loop computes a graph's nodes.

A step is a list of stages, and threads that share a sequence's units meet between them. Within a
stage everything is for each unit by itself, but for reductions, which every thread makes of the
whole row, and products, whose operands stages before have left in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from .graph import LEAVES, REDUCTIONS, Matrix, Node, ordered
from .operators import OPERATORS

Item = TypeVar("Item")
MOST_PLANES = 6  # outputs of a product whose sums stay in registers until they are used
MOST_OPERATIONS = 8  # that are done again in a later stage, rather than kept in memory


class Store(NamedTuple):
    """``node`` goes to the row ``buffer`` at ``offset``. ``add``: to what is there. ``always``:
    not only where a backward is to come."""

    node: Node
    buffer: str
    offset: int
    add: bool = False
    always: bool = True


class Term(NamedTuple):
    """A summand of a group's products: where the operand is, and its matrix in each of them."""

    buffer: str
    offset: int
    width: int
    matrices: tuple[Matrix, ...]

    def goes_on_with(self, other: Term) -> bool:
        """Whether ``other`` lies behind it, in memory and in each matrix."""
        if (other.buffer, other.offset) != (self.buffer, self.offset + self.width):
            return False
        return all(
            m._replace(offset=m.offset + m.cols * m.col_stride, cols=o.cols) == o
            for m, o in zip(self.matrices, other.matrices, strict=True)
        )

    def with_more(self, other: Term) -> Term:
        """As one with a term that it goes on with."""
        matrices = tuple(m._replace(cols=m.cols + other.width) for m in self.matrices)
        return self._replace(width=self.width + other.width, matrices=matrices)


class Group(NamedTuple):
    """Products of the same operands, equally wide and of as many blocks: made together."""

    nodes: tuple[Node, ...]

    @property
    def operands(self) -> tuple[Node, ...]:
        return self.nodes[0].args

    @property
    def width(self) -> int:
        return self.nodes[0].width

    @property
    def blocks(self) -> int:
        return int(self.nodes[0].attrs[0].blocks)

    @property
    def matrices(self) -> list[tuple[Matrix, ...]]:
        """Of each node, one for each operand."""
        return [node.attrs for node in self.nodes]

    def terms(self, place: Callable[[Node], tuple[str, int]]) -> list[Term]:
        """As the operands lie in memory, where ``place`` finds them; those that go on side by side,
        in memory and in every matrix, as one."""
        each = zip(self.operands, zip(*self.matrices, strict=True), strict=True)
        terms = [Term(*place(arg), arg.width, matrices) for arg, matrices in each]
        found: list[Term] = []
        for term in sorted(terms, key=lambda term: term[:2]):
            if found and self.blocks == 1 and found[-1].goes_on_with(term):
                term = found.pop().with_more(term)
            found.append(term)
        return found


def by_width(items: Iterable[Item], width: Callable[[Item], int]) -> list[tuple[int, list[Item]]]:
    found: dict[int, list[Item]] = {}
    for item in items:
        found.setdefault(width(item), []).append(item)
    return sorted(found.items(), key=lambda one: one[0])


def reduced_width(node: Node) -> int:
    """Of what a reduction goes over."""
    return node.args[0].width


@dataclass
class Stage:
    """``waves``: reductions, each wave of which needs the one before. ``fused``: the pointwise part
    is done on the sums of the stage's products while they are at hand."""

    groups: list[Group] = field(default_factory=list)
    waves: list[list[Node]] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    fused: bool = False

    @property
    def scalars(self) -> list[Store]:
        return [store for store in self.stores if store.node.scalar]

    def vectors(self) -> list[tuple[int, list[Store]]]:
        """The other stores, by their width."""
        return by_width((s for s in self.stores if not s.node.scalar), lambda s: s.node.width)


@dataclass
class Program:
    """``temporary``: units of the row "tmp". ``scalars``: reductions that later stages read, by
    where they are kept. ``at``: where a node can be read once its stage is over. ``reads``: of each
    load the stages that read it, and whether all of its row (or its own unit only)."""

    stages: list[Stage]
    temporary: int
    scalars: dict[Node, int]
    at: dict[Node, tuple[str, int]]
    stage_of: dict[Node, int]
    reads: dict[Node, set[tuple[int, bool]]]

    def operand(self, node: Node) -> tuple[str, int]:
        """The buffer and the offset where a product reads it."""
        if _in_memory(node):
            return str(node.attrs[0]), int(node.attrs[1])
        return self.at[node]


READABLE = ("new", "saved", "gx", "dgx", "dproduct", "tmp")  # buffers that hold what was stored


def plan(stores: Sequence[Store], together: bool = False) -> Program:
    """The stages of a step that makes ``stores``. ``together``: a stage with several products that
    are alike is fused, too."""
    return _Planner(stores, together).program()


class _Planner:
    def __init__(self, stores: Sequence[Store], together: bool) -> None:
        self.stores, self.together = list(stores), together
        self.nodes = ordered(store.node for store in stores)
        self.stage: dict[Node, int] = {}
        for node in self.nodes:
            self.stage[node] = self._earliest(node)
        self._delay_reductions()
        self.at = {
            store.node: (store.buffer, store.offset)
            for store in reversed(self.stores)
            if store.buffer.rstrip("0123456789") in READABLE and not store.node.scalar
        }
        self.temporary = 0
        self.kept_scalars: dict[Node, int] = {}
        self.waiting: list[tuple[Node, int]] = []
        self.reads: dict[Node, set[tuple[int, bool]]] = {}
        self.read_back: set[Node] = set()

    # --- when -------------------------------------------------------------------------------

    def _earliest(self, node: Node) -> int:
        if node.op in LEAVES:
            return 0
        if node.op == "product":
            return max(self.stage[arg] + (not _in_memory(arg)) for arg in node.args)
        if node.op in REDUCTIONS:
            (arg,) = node.args
            at = self.stage[arg]
            return at if self._inline(arg, at) else at + 1
        return max(self.stage[arg] for arg in node.args)

    def _inline(self, node: Node, stage: int) -> bool:
        """Whether a reduction in ``stage`` can make ``node`` again for each unit it visits."""
        if node.op in LEAVES or (not node.scalar and self.stage[node] < stage):
            return True
        if node.op in REDUCTIONS:
            return self.stage[node] <= stage
        if node.op == "product" or not OPERATORS[node.op].cheap:
            return node.scalar and node.op != "product"
        return all(self._inline(arg, stage) for arg in node.args)

    def _delay_reductions(self) -> None:
        """To the first stage that reads them, where a pass over the row may be under way."""
        readers: dict[Node, list[Node]] = {}
        for node in self.nodes:
            for arg in node.args:
                readers.setdefault(arg, []).append(node)
        stored = {store.node for store in self.stores}
        latest: dict[Node, int] = {}
        for node in reversed(self.nodes):
            later = [latest[reader] for reader in readers.get(node, [])]
            movable = node.scalar and node.op not in LEAVES and node not in stored and later
            latest[node] = min(later) if movable else self.stage[node]
        for node in self.nodes:
            if node.scalar:
                self.stage[node] = max(self.stage[node], latest[node])

    # --- what is kept from one stage to the next -----------------------------------------------

    def program(self) -> Program:
        stages = [Stage() for _ in range(1 + max(self.stage.values()))]
        done: set[tuple[Node, int, bool]] = set()
        for node in self.nodes:
            if node.op in REDUCTIONS:
                self._keep_for(node.args[0], self.stage[node], True, done)
            if node.op == "product":
                for arg in node.args:
                    self._keep_operand(arg, self.stage[node])
        pending = [(s.node, self.stage[s.node]) for s in self.stores]
        while pending or self.waiting:
            node, stage = pending.pop() if pending else self.waiting.pop()
            self._keep_for(node, stage, False, done)
        for store in self.stores:
            again = store._replace(always=store.always or store.node in self.read_back)
            stages[self.stage[store.node]].stores.append(again)
        for node, (buffer, offset) in self.at.items():
            if buffer == "tmp":
                stages[self.stage[node]].stores.append(Store(node, "tmp", offset))
        for index, made in enumerate(stages):
            self._fill(made, index)
        return Program(stages, self.temporary, self.kept_scalars, self.at, self.stage, self.reads)

    def _keep_operand(self, node: Node, stage: int) -> None:
        if _in_memory(node):
            self.reads.setdefault(node, set()).add((stage, True))
        elif node in self.at:
            self.read_back.add(node)
        else:
            self._keep(node)

    def _keep_for(
        self, node: Node, stage: int, whole: bool, done: set[tuple[Node, int, bool]]
    ) -> None:
        """Sees that all that ``node`` needs in ``stage`` can be read there."""
        if node.op == "load":
            self.reads.setdefault(node, set()).add((stage, whole))
        if (node, stage, whole) in done or node.op in LEAVES:
            return
        done.add((node, stage, whole))
        if node.op in REDUCTIONS:
            if self.stage[node] < stage:
                self.kept_scalars.setdefault(node, len(self.kept_scalars))
            return
        if not node.scalar and self.stage[node] < stage:
            if node in self.at:
                self.read_back.add(node)
                return
            if node.op == "product" or not (node.boolean or self._made_again(node)):
                self._keep(node)
                return
        if node.op != "product":
            for arg in node.args:
                self._keep_for(arg, stage, whole, done)

    def _made_again(self, node: Node) -> bool:
        """Whether a few cheap operations on rows in memory make it."""
        count = 0
        for inner in ordered([node], stop=lambda n: n in self.at or n.op in REDUCTIONS):
            if inner in self.at or inner.op in LEAVES or inner.scalar:
                continue
            if inner.op == "product" or not OPERATORS[inner.op].cheap:
                return False
            count += 1
        return count <= MOST_OPERATIONS

    def _keep(self, node: Node) -> None:
        if node not in self.at:
            self.at[node] = ("tmp", self.temporary)
            self.temporary += node.width
            self.waiting.append((node, self.stage[node]))

    # --- a stage's contents ----------------------------------------------------------------------

    def _fill(self, stage: Stage, index: int) -> None:
        products: dict[tuple[tuple[Node, ...], int, int], list[Node]] = {}
        reductions = []
        for node in self.nodes:
            if self.stage[node] == index and node.op == "product":
                alike = (node.args, node.width, node.attrs[0].blocks)
                products.setdefault(alike, []).append(node)
            elif self.stage[node] == index and node.op in REDUCTIONS:
                reductions.append(node)
        for nodes in products.values():
            for first in range(0, len(nodes), MOST_PLANES):
                stage.groups.append(Group(tuple(nodes[first : first + MOST_PLANES])))
        stage.waves = _waves(reductions)
        scalars = any(store.node.scalar for store in stage.stores)
        widths = {store.node.width for store in stage.stores}
        shapes = {(group.width, group.blocks, len(group.nodes)) for group in stage.groups}
        one = len(shapes) == 1 and (self.together or len(stage.groups) == 1)
        fits = one and widths <= {stage.groups[0].width}
        stage.fused = fits and not reductions and not scalars
        if not stage.fused:
            for node in (node for group in stage.groups for node in group.nodes):
                if self.at.get(node, ("", 0))[0] != "tmp":
                    self.at[node] = ("tmp", self.temporary)
                    self.temporary += node.width
                stage.stores = [s for s in stage.stores if (s.node, s.buffer) != (node, "tmp")]


def _in_memory(node: Node) -> bool:
    """Whether a product can read it as it is; a gradient of a state has a part elsewhere."""
    return node.op == "load" and not node.attrs[0].startswith("dstate") and not node.scalar


def _waves(reductions: Iterable[Node]) -> list[list[Node]]:
    nodes = list(reductions)
    wave: dict[Node, int] = {}
    for node in nodes:  # in order: those that one needs stand before it
        inner = ordered(node.args, stop=lambda n: n in wave)
        wave[node] = max((wave[n] + 1 for n in inner if n in wave), default=0)
    found: list[list[Node]] = [[] for _ in range(1 + max(wave.values(), default=-1))]
    for node in nodes:
        found[wave[node]].append(node)
    return found
