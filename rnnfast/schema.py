"""Schemas of the custom ops ``rnnfast::scan_forward`` and ``rnnfast::scan_backward``, and their
arguments by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ._build.schemas import SCHEMAS
from .problem import Needs, Options, Scan


def _library() -> torch.library.Library:
    """The namespace, with the ops defined: here, or by librnnfast.so, where a process loaded that
    before (``rnnfast.deploy``). Python's kernels then take the place of those there."""
    if not torch._C._dispatch_has_kernel("rnnfast::scan_forward"):
        made = torch.library.Library("rnnfast", "DEF")
        for schema in SCHEMAS:
            made.define(schema)
        return made
    for schema in SCHEMAS:
        wanted = torch._C.parse_schema(f"rnnfast::{schema}")
        found = getattr(torch.ops.rnnfast, wanted.name.partition("::")[2]).default._schema
        if found != wanted:
            raise ImportError(
                f"this process loaded the librnnfast.so of another version of rnnfast, whose op "
                f"is {found}"
            )
    return torch.library.Library("rnnfast", "FRAGMENT")


lib = _library()


def _names(op: str) -> tuple[str, ...]:
    schema = getattr(torch.ops.rnnfast, op).default._schema
    return tuple(argument.name for argument in schema.arguments)


FORWARD, BACKWARD = _names("scan_forward"), _names("scan_backward")
assert (*Scan._fields[:-1], *Options._fields, "backend") == FORWARD  # as ``pack`` has them


def pack(scan: Scan, backend: str) -> tuple[Any, ...]:
    """The arguments that both ops begin with."""
    return (*scan[:-1], *scan.options, backend)


def named(names: Sequence[str], args: Sequence[Any]) -> dict[str, Any]:
    """The arguments of an op by their names in its schema: ``FORWARD`` or ``BACKWARD``."""
    return dict(zip(names, args, strict=True))


def scan_of(given: Mapping[str, Any]) -> Scan:
    """The scan among the named arguments of either op."""
    options = Options(*[given[name] for name in Options._fields])
    fields = [given[name] for name in Scan._fields[:-1]]
    return Scan._make([*fields, options])


def needs_among(given: Mapping[str, Any]) -> Needs:
    """What of the named arguments of scan_backward says which gradients are wanted."""
    input, states, weights = given["needs"]
    return Needs(input, states, weights, given["groups"])


def in_order(names: Sequence[str], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """A value for each argument of an op, None for those without one."""
    assert values.keys() <= set(names)
    return tuple(values.get(name) for name in names)


class Nest:
    """How the tensors among an op's arguments stand there, and all other arguments. ``moves``: what
    ``transforms`` hands from forward to backward."""

    moves: Any = None

    def __init__(self, args: Sequence[Any]) -> None:
        self._others = [None if _holds_tensors(arg) else arg for arg in args]
        self._counts = [_count(arg) for arg in args]
        self.size = sum(-count if count < 0 else count for count in self._counts)

    def taken_apart(self, values: Sequence[Any]) -> list[Any]:
        """Of a value for each argument those of tensors, flat; None for a list stands for all of
        it."""
        flat: list[Any] = []
        for value, count in zip(values, self._counts, strict=True):
            if count < 0:
                flat.append(value)
            elif count > 0:
                flat += [None] * count if value is None else value
        return flat

    def nested(self, flat: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments, of the tensors flat."""
        return self._nested(flat, self._others)

    def nested_alone(self, flat: Sequence[Any]) -> tuple[Any, ...]:
        """What there is of each tensor, as the arguments are; of others None."""
        alone: list[Any] = [[] if isinstance(o, list) and not o else None for o in self._others]
        return self._nested(flat, alone)

    def _nested(self, flat: Sequence[Any], others: Sequence[Any]) -> tuple[Any, ...]:
        found, at = [], 0
        for count, other in zip(self._counts, others, strict=True):
            if count < 0:
                found.append(flat[at])
                at += 1
            elif count > 0:
                found.append(list(flat[at : at + count]))
                at += count
            else:
                found.append(other)
        return tuple(found)


def _count(arg: Any) -> int:
    """-1: a tensor; else of how many tensors it is a list."""
    if isinstance(arg, torch.Tensor):
        return -1
    return len(arg) if _holds_tensors(arg) else 0


def _holds_tensors(arg: Any) -> bool:
    if isinstance(arg, (list, tuple)):
        return len(arg) > 0 and isinstance(arg[0], torch.Tensor)
    return isinstance(arg, torch.Tensor)
