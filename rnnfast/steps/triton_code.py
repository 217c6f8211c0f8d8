"""One function of the text: its arguments, its lines, its way to the rows (triton_text.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .graph import REDUCTIONS, Node
from .layout import Layout
from .operators import OPERATORS
from .stages import Group, Program, Store, by_width, reduced_width

OPTIONS = ("TRAINING", "BLOCK_B", "BLOCK_H", "BLOCK_K", "PRECISION")
SCAN = ("lengths", "resets", "step", "T", "B", "reverse")
NUMBERS = ("step", "T", "B", "reverse", "bound", "limit")  # Triton makes nothing special of them


@dataclass
class Own:
    """What the functions of a pass have in common. ``weights``: by the numbers that they use."""

    layout: Layout
    program: Program
    backward: bool
    weights: list[str]

    def width(self, buffer: str) -> int:
        """Of a row."""
        if buffer == "tmp":
            return self.program.temporary
        if buffer == "kept":
            return len(self.program.scalars)
        return self.layout.widths.get(buffer, self.layout.traced.hidden)


@dataclass
class _Where:
    """The units at hand: the names of their numbers and of the mask of those that exist."""

    unit: str = "unit"
    mask: str = "m"
    exists: str = "in_units"


class Function:
    """One function's lines."""

    def __init__(self, own: Own, stage: int) -> None:
        self.own, self.stage = own, stage
        self.arguments: dict[str, None] = {}
        self.rows: dict[str, str] = {}  # by name: the line that makes the pointer
        self.lines: list[str] = []
        self.scalar_names: dict[Node, str] = {}
        self.read: set[str] = set()  # buffers
        self.widest = 1

    def text(self, name: str) -> str:
        arguments = [*self.arguments, *SCAN, *(("bound", "limit") if self.own.backward else ())]
        numbers = [f'"{name}"' for name in arguments if name in NUMBERS]
        lines = [
            f"@triton.jit(do_not_specialize=[{', '.join(numbers)}])",
            f"def {name}(",
            *(f"    {argument}," for argument in arguments),
            *(f"    {option}: tl.constexpr," for option in OPTIONS),
            "):",
            *("    " + line for line in (*self._scan(), *self.rows.values(), *self.lines)),
        ]
        return "\n".join(lines) + "\n"

    def _scan(self) -> list[str]:
        lines = [
            "first, rows, in_batch = batch_tile(B, BLOCK_B)",
            "t = at(step, T, reverse)",
            "row = row_of(t, B, first)",
            "ends = ends_of(lengths, first, rows, in_batch)",
            "lives = alive(t, ends, in_batch)",
            "is_reset = reset(resets, row, rows, in_batch)",
        ]
        if self.own.backward:
            lines += [
                "goes_on = going_on(lives, is_reset)",
                "is_start = is_first(t, ends, T, reverse)",
            ]
        else:
            lines.append("goes_on = going_on(in_batch, is_reset)")
        return lines

    # --- parts ------------------------------------------------------------------------------------

    def begin(self, stage: int) -> None:
        """Another stage, which reads what all threads of the program have left."""
        if stage != self.stage:
            self.lines.append("tl.debug_barrier()")
        self.stage = stage

    def tile(self, width: int, blocks: int = 1) -> None:
        """The program's units of ``width``, all of one block."""
        each = width // blocks
        self.widest = max(self.widest, each)
        self.lines += [
            "own_unit = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]",
            f"in_units = own_unit < {each}",
            "block = tl.program_id(2)",
            "unit = own_unit" if blocks == 1 else f"unit = block * {each} + own_unit",
            "m = in_batch & in_units",
        ]

    def multiply(self, group: Group) -> None:
        planes = range(len(group.nodes))
        self.lines += [f"x{p} = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)" for p in planes]
        how = "multiply_gradient" if self.own.backward else "multiply"
        for name, offset, width, matrices in group.terms(self.own.program.operand):
            of = _Where("ks[None, :]", "in_ks")
            if group.blocks > 1:
                width //= group.blocks
                of.unit = f"(block * {width} + ks[None, :])"
            body = [
                "ks = k + tl.arange(0, BLOCK_K)",
                f"in_ks = in_batch & (ks[None, :] < {width})",
                f"a = {self.load(name, offset, of)}",
                f"in_w = in_units & (ks[:, None] < {width})",
            ]
            for plane, matrix in enumerate(matrices):
                at = f"{matrix.offset} + own_unit * {matrix.row_stride}"
                if group.blocks > 1:
                    at += f" + block * {matrix.block_stride}"
                at += f" + ks[:, None] * {matrix.col_stride}"
                load = f"tl.load({self.weight(matrix.weight)} + ({at}), mask=in_w, other=0.0)"
                body.append(f"b = {load}")
                body.append(f"x{plane} = {how}(a, b, x{plane}, PRECISION)")
            self.lines.append(f"for k in range(0, {width}, BLOCK_K):")
            self.lines += ["    " + line for line in body]

    def pointwise(self, stores: Sequence[Store], names: dict[Node, str]) -> None:
        self.lines += self._body(stores, names)

    def each(self, width: int, stores: Sequence[Store]) -> None:
        """Of whole rows."""
        self._loop(width, self._body(stores, {}))

    def _body(self, stores: Sequence[Store], names: dict[Node, str]) -> list[str]:
        code = _Code(self, names, _Where())
        for store in stores:
            code.store(store)
        return code.lines + self._between(stores) + code.stores

    def reduce(self, wave: Sequence[Node]) -> None:
        for width, nodes in by_width(wave, reduced_width):
            code = _Code(self, {}, _Where())
            body: list[str] = []
            for node in nodes:
                total, value = f"t{node.index}", code.vector(node.args[0])
                if node.op == "rsum":
                    self.lines.append(f"{total} = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)")
                    body.append(f"{total} += tl.where(m, {value}, 0.0)")
                else:
                    low = 'float("-inf")'
                    self.lines.append(f"{total} = tl.full((BLOCK_B, BLOCK_H), {low}, tl.float32)")
                    body.append(f"{total} = maximum({total}, tl.where(m, {value}, {low}))")
            self._loop(width, code.lines + body)
            for node in nodes:
                how = "total" if node.op == "rsum" else "largest"
                self.lines.append(f"s{node.index} = {how}(t{node.index})")
                self.scalar_names[node] = f"s{node.index}"
                if node in self.own.program.scalars:
                    at = f"{self.row('kept')} + {self.own.program.scalars[node]}"
                    self.lines.append(f"tl.store({at}, s{node.index}, mask=in_batch)")

    def scalars(self, stores: Sequence[Store]) -> None:
        for store in stores:
            value = self.scalar(store.node)
            at, mask = f"{self.row(store.buffer)} + {store.offset}", "in_batch"
            if store.add:
                value, mask = f"loaded({at}, in_batch) + {value}", "in_batch & lives"
            else:
                value = f"tl.where(lives, {value}, 0.0)"
            self._store(store, f"tl.store({at}, {value}, mask={mask})", self.lines)

    def _store(self, store: Store, line: str, lines: list[str]) -> None:
        lines += [line] if store.always else ["if TRAINING:", f"    {line}"]

    def _loop(self, width: int, body: Sequence[str]) -> None:
        self.widest = max(self.widest, width)
        self.lines += [
            f"for begin in range(0, {width}, BLOCK_H):",
            "    unit = begin + tl.arange(0, BLOCK_H)[None, :]",
            f"    in_units = unit < {width}",
            "    m = in_batch & in_units",
            *("    " + line for line in body),
        ]

    def _between(self, stores: Sequence[Store]) -> list[str]:
        """A value may take the place of one that another thread of the program still reads."""
        return ["tl.debug_barrier()"] if {store.buffer for store in stores} & self.read else []

    # --- memory -----------------------------------------------------------------------------------

    def argument(self, name: str) -> str:
        self.arguments[name] = None
        return name

    def weight(self, name: str) -> str:
        if name not in self.own.weights:
            self.own.weights.append(name)
        return self.argument(f"weight{self.own.weights.index(name)}")

    def row(self, buffer: str) -> str:
        """The pointers [BLOCK_B, 1] to the rows of the sequences."""
        self.argument(buffer)
        width = self.own.width(buffer)
        first = "row" if _each_step(buffer) else "first"
        if buffer in ("saved", "scalars"):  # of the step at hand alone, where nobody comes back
            first = "(row if TRAINING else first)"
        self.rows.setdefault(buffer, f"p_{buffer} = {buffer} + {first} * {width} + rows * {width}")
        return f"p_{buffer}"

    def load(self, name: str, offset: int, of: _Where) -> str:
        """Of a row that the layout names, the units ``of``."""
        self.read.add(name)
        at = of.unit if offset == 0 else f"({offset} + {of.unit})"
        kind, number = _numbered(name)
        H = self.own.layout.traced.hidden
        if kind == "state" and self.own.backward:
            self.argument(f"init{number}")
            self.argument(f"new{number}")
            self.rows.setdefault("own", f"own = first * {H} + rows * {H}")
            self.rows.setdefault("earlier", f"earlier = before(row, B, reverse) * {H} + rows * {H}")
            return (
                f"previous(init{number}, own + {at}, new{number}, earlier + {at}, goes_on, "
                f"is_start, {of.mask})"
            )
        if kind == "state":
            return f"loaded({self.row(name)} + {at}, {of.mask} & goes_on)"
        if kind == "new" and not self.own.backward:
            return f"loaded({self.row(f'next{number}')} + {at}, {of.mask})"
        if kind == "dstate":
            more = self.argument(f"dy{number}")
            value = f"loaded({self.row(name)} + {at}, {of.mask})"
            return f"added({value}, {more}, row * {H} + rows * {H} + {at}, {of.mask} & lives)"
        return f"loaded({self.row(name)} + {at}, {of.mask})"

    # --- scalars of a row -------------------------------------------------------------------------

    def scalar(self, node: Node) -> str:
        if node.op == "const":
            return _literal(node.attrs[0])
        if node not in self.scalar_names:
            text = self._scalar(node)
            self.scalar_names[node] = f"s{node.index}"
            self.lines.append(f"s{node.index} = {text}")
        return self.scalar_names[node]

    def _scalar(self, node: Node) -> str:
        if node.op == "load":
            return f"loaded({self.row(node.attrs[0])} + {node.attrs[1]}, in_batch)"
        if node.op == "param":
            weight, offset, _ = node.attrs
            return f"tl.load({self.weight(weight)} + {offset}).to(tl.float32)"
        if node.op in REDUCTIONS:
            return f"loaded({self.row('kept')} + {self.own.program.scalars[node]}, in_batch)"
        return _operator(node, [self.scalar(arg) for arg in node.args])


@dataclass
class _Code:
    """Lines that define vectors of units, each once."""

    own: Function
    names: dict[Node, str]
    of: _Where
    lines: list[str] = field(default_factory=list)
    stores: list[str] = field(default_factory=list)  # after all that is read

    def vector(self, node: Node) -> str:
        if node.scalar:
            return self.own.scalar(node)
        if node not in self.names:
            text = self._vector(node)
            self.names[node] = f"v{node.index}"
            self.lines.append(f"v{node.index} = {text}")
        return self.names[node]

    def _vector(self, node: Node) -> str:
        program = self.own.own.program
        if node.op == "load":
            return self.own.load(node.attrs[0], node.attrs[1], self.of)
        if node.op == "param":
            weight, offset, stride = node.attrs
            at = f"{self.own.weight(weight)} + ({offset} + {self.of.unit} * {stride})"
            return f"loaded({at}, {self.of.exists})"
        earlier = program.stage_of[node] < self.own.stage
        if (earlier and node in program.at) or node.op == "product":
            return self.own.load(*program.at[node], self.of)
        return _operator(node, [self.vector(arg) for arg in node.args])

    def store(self, store: Store) -> None:
        value, own = self.vector(store.node), self.own
        buffer, offset = store.buffer, store.offset
        at = self.of.unit if offset == 0 else f"({offset} + {self.of.unit})"
        kind, number = _numbered(buffer)
        if kind == "new":
            self._new(number, at, value)
            return
        if kind == "dold":
            old = f"loaded({own.row(f'dstate{number}')} + {at}, m)"
            value = f"across({value}, {old}, lives, is_reset, bound, limit)"
        elif _each_step(buffer):
            value = f"tl.where(lives, {value}, 0.0)"
        mask = "m"
        if store.add:
            value = f"loaded({own.row(buffer)} + {at}, m) + {value}"
            mask = "m & lives"
        own._store(store, f"tl.store({own.row(buffer)} + {at}, {value}, mask={mask})", self.stores)

    def _new(self, number: str, at: str, value: str) -> None:
        """A state after the step: dead sequences keep theirs; zeros at every step beyond."""
        own = self.own
        old = f"loaded({own.row(f'state{number}')} + {at}, m)"
        H, every = own.own.layout.traced.hidden, own.argument(f"new{number}")
        kept = f"tl.where(lives, {value}, {old})"
        shown = f"tl.where(lives, {value}, 0.0).to({every}.dtype.element_ty)"
        self.stores += [
            f"tl.store({own.row(f'next{number}')} + {at}, {kept}, mask=m)",
            f"if {every} is not None:",
            f"    tl.store({every} + (row * {H} + rows * {H} + {at}), {shown}, mask=m)",
        ]


def _each_step(buffer: str) -> bool:
    """Whether the buffer has a row for each step and sequence, not one for each sequence."""
    return _numbered(buffer)[0] in ("gx", "saved", "scalars", "dgx", "dproduct", "new")


def _numbered(name: str) -> tuple[str, str]:
    kind = name.rstrip("0123456789")
    return kind, name[len(kind) :]


def _operator(node: Node, arguments: list[str]) -> str:
    constant = all(_is_constant(arg) for arg in node.args)
    if constant or node.op == "pow":  # functions take values, not numbers of the text
        arguments = [
            f"number({text})" if _is_constant(arg) else text
            for arg, text in zip(node.args, arguments, strict=True)
        ]
    return OPERATORS[node.op].text.format(*arguments)


def _is_constant(node: Node) -> bool:
    return node.op == "const" or (node.op == "spread" and _is_constant(node.args[0]))


def _literal(value: float) -> str:
    text = repr(float(value))
    return text if text.lstrip("-")[0].isdigit() else f'float("{text}")'
