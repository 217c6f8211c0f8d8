"""Schemas of the custom ops ``rnnfast::scan_forward`` and ``rnnfast::scan_backward``, and their
arguments by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .problem import Needs, Options, Scan

_INPUTS = (
    "str cell, str kind, Tensor input, Tensor[] states, Tensor[] weights, Tensor? lengths, "
    "Tensor? resets, bool reverse, bool all_states, bool training, int checkpoint_every, "
    "float grad_clip_time, str backend"
)
lib = torch.library.Library("rnnfast", "DEF")
lib.define(f"scan_forward({_INPUTS}) -> (Tensor y, Tensor[] final, Tensor[] trace, Tensor[] saved)")
lib.define(
    f"scan_backward({_INPUTS}, Tensor? dy, Tensor[] dfinal, Tensor[] dtrace, Tensor y, "
    "Tensor[] trace, Tensor[] saved, bool[] needs, int groups) "
    "-> (Tensor dinput, Tensor[] dstates, Tensor[] dweights)"
)


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
