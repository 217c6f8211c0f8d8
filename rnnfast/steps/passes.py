"""The memory of a pass of a compiled loop: the tensors that it is given, those that it makes, and
which of them each row is that the loop reads and writes.

Shapes: T steps, B sequences. csrc/python/steps.cpp makes the memory on the CPU, ``loops.Loops`` on
any other device.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .layout import Layout

STEPS, SEQUENCES, SLOTS = range(3)  # extents: [T, B, width], [B, width], [2, B, width]
# kinds of rows, as csrc/scan/steps.h has them
STEP, SEQUENCE, OLD, OLD_SLOT, NEW_SLOT, NEW, INCOMING, OUTGOING = range(8)


class Value(NamedTuple):
    """A tensor. Of what is given ``optional``: None is as zeros. Of what is made ``zeroed``: it
    begins as zeros; ``lasting``: it outlives the call."""

    name: str
    extent: int
    width: int
    optional: bool = False
    zeroed: bool = False
    lasting: bool = True


class Row(NamedTuple):
    """A buffer of a loop: how a sequence's row is found in ``base``, what a sequence begins with,
    where what it ends with goes, and whether padding gets zeros. Memory by the names of values."""

    kind: int
    width: int
    base: str | None
    init: str | None = None
    last: str | None = None
    clear: bool = False


@dataclass(frozen=True, eq=False)  # found by identity
class Pass:
    """``given`` are in order what a call has to give."""

    name: str
    given: tuple[Value, ...]
    made: tuple[Value, ...]
    rows: dict[str, Row]

    @property
    def returned(self) -> list[str]:
        return [value.name for value in self.made if value.lasting]


class _Memory:
    def __init__(self) -> None:
        self.given: list[Value] = []
        self.made: list[Value] = []
        self.rows: dict[str, Row] = {}

    def row(
        self,
        name: str,
        kind: int,
        width: int,
        *,
        clear: bool = False,
        zeroed: bool = False,
        lasting: bool = True,
    ) -> None:
        """A row of memory of its own, which is made; nothing where it has no units."""
        extent = STEPS if kind == STEP else SEQUENCES
        if width:
            self.made.append(Value(name, extent, width, zeroed=zeroed, lasting=lasting))
        self.rows[name] = Row(kind, width, name if width else None, clear=clear)

    def done(self, name: str) -> Pass:
        return Pass(name, tuple(self.given), tuple(self.made), self.rows)


@functools.lru_cache(maxsize=1024)
def forward(layout: Layout, training: bool, all_states: bool) -> Pass:
    """Given "gx" and "init0", …; made "new0", … (every state, of the output and where somebody
    wants it), "last0", … and, in training, "saved" and "scalars"."""
    found, H, count = _Memory(), layout.traced.hidden, len(layout.traced.states)
    found.given = [Value("gx", STEPS, layout.widths["gx"])]
    found.rows["gx"] = Row(STEP, layout.widths["gx"], "gx", clear=training)
    kind = STEP if training else SEQUENCE
    for name in ("saved", "scalars"):
        found.row(name, kind, layout.widths[name], clear=training, lasting=training)
    found.row("tmp", SEQUENCE, layout.forward.temporary, lasting=False)
    for k in range(count):
        init, last = f"init{k}", f"last{k}"
        found.given.append(Value(init, SEQUENCES, H))
        found.made.append(Value(last, SEQUENCES, H))
        if k == 0 or all_states or (training and k in layout.history):
            new = f"new{k}"
            found.made.append(Value(new, STEPS, H))
            found.rows[f"state{k}"] = Row(OLD, H, new, init)
            found.rows[new] = Row(NEW, H, new, init, last, clear=True)
        else:
            slots = f"slots{k}"
            found.made.append(Value(slots, SLOTS, H, lasting=False))
            found.rows[f"state{k}"] = Row(OLD_SLOT, H, slots, init)
            found.rows[f"new{k}"] = Row(NEW_SLOT, H, slots, init, last)
    return found.done("forward")


@functools.lru_cache(maxsize=1024)
def backward(layout: Layout, kept: tuple[str, ...]) -> Pass:
    """``kept``: of forward's rows "gx", "saved" and "scalars" those that there are.

    Given the states as forward made them ("new0", and others that backward reads), ``kept``, of
    each state "init0", …, "dlast0", … (the gradients of the last) and "dy0", … (of every); made
    "dgx", "dproduct", "acc", "acc1", and "dinit0", …, the gradients of the initial ones.
    """
    found, H = _Memory(), layout.traced.hidden
    read = sorted({0, *layout.history})
    found.given = [Value(f"new{k}", STEPS, H) for k in read]
    for name in kept:
        found.given.append(Value(name, STEPS, layout.widths[name]))
        found.rows[name] = Row(STEP, layout.widths[name], name)
    for name in ("dgx", "dproduct"):
        found.row(name, STEP, layout.widths[name], clear=True)
    for name in ("acc", "acc1"):
        found.row(name, SEQUENCE, layout.widths[name], zeroed=True)
    found.row("tmp", SEQUENCE, layout.backward.temporary, lasting=False)
    for k in range(len(layout.traced.states)):
        init, dlast, dy, slots = (f"{name}{k}" for name in ("init", "dlast", "dy", "slots"))
        new = f"new{k}" if k in read else None
        found.given += [Value(init, SEQUENCES, H), Value(dlast, SEQUENCES, H)]
        found.given.append(Value(dy, STEPS, H, optional=True))
        found.made += [Value(slots, SLOTS, H, lasting=False), Value(f"dinit{k}", SEQUENCES, H)]
        found.rows[f"dstate{k}"] = Row(INCOMING, H, slots, dlast)
        found.rows[f"dold{k}"] = Row(OUTGOING, H, slots, dlast, f"dinit{k}")
        found.rows[dy] = Row(STEP, H, dy)
        found.rows[f"state{k}"] = Row(OLD, H, new, init)
        found.rows[f"new{k}"] = Row(STEP, H, new)
    return found.done("backward")


def numbers(found: Pass, buffers: list[str]) -> Iterator[tuple[int, int, int, int, int, bool]]:
    """(base, init, last, width, kind, clear) of each of ``buffers``: of memory its number among
    what is given and then made, or -1."""
    at = {value.name: k for k, value in enumerate((*found.given, *found.made))}
    for name in buffers:
        kind, width, base, init, last, clear = found.rows[name]
        first, begin, end = (-1 if value is None else at[value] for value in (base, init, last))
        yield first, begin, end, width, kind, clear
