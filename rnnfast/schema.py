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
