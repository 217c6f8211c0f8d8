"""``rnnfast::scan_forward`` in torch's own operations, for programs to run without rnnfast.

The steps become one ``torch.ops.higher_order.scan``, so T and B stay symbolic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op

from .backends import registry
from .problem import Scan, ScanResult, problem_of, wide
from .products.projection import project_input
from .rules import alive, without_padding
from .schema import FORWARD, named, scan_of
from .scratch import one_step


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """For ``program.run_decompositions(rnnfast.decompositions())`` of a program by torch.export:
    what is saved then loads where rnnfast is not installed.

    A table for torch's operators too: ``{**torch.export.default_decompositions(),
    **rnnfast.decompositions()}``. The program computes the same; ``grad_clip_time`` and
    ``checkpoint_every``, which are of training, are left out.
    """
    return {torch.ops.rnnfast.scan_forward.default: _forward}


def _forward(*args: Any) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    given = named(FORWARD, args)
    scan, saved = scan_of(given), list[Tensor]()
    if scan.options.training:  # what backward would read: the graph takes it apart
        problem = problem_of(scan)
        likes = registry.named(given["backend"], problem).saved_like(problem)
        saved = [scan.states[0].new_empty(shape, dtype=dtype) for shape, dtype in likes]
    return (*looped(scan), saved)


def looped(scan: Scan) -> ScanResult:
    """``scan`` by torch's scan over the steps, without what its options say of gradients."""
    storage = scan.dtype
    return _run(without_padding(scan).to(wide(storage))).to(storage)


def _run(scan: Scan) -> ScanResult:
    n_states, reverse = len(scan.states), scan.options.reverse
    names = scan.spec.weight_names(scan.kind, scan.has_bias)
    weights = [w for n, w in zip(names, scan.weights, strict=True) if n not in ("w_ih", "b_ih")]
    rows = [t for t in (project_input(scan), alive(scan), scan.resets) if t is not None]
    if reverse:
        rows = [row.flip(0) for row in rows]

    def step(*flat: Tensor) -> tuple[Tensor, ...]:
        states, given = flat[:n_states], list(flat[n_states:])
        gx = given.pop(0)
        live = given.pop(0) if scan.lengths is not None else None
        reset = given.pop(0) if scan.resets is not None else None
        of_step = scan._replace(kind="gates", weights=given).step_weights()
        after, shown = one_step(scan.spec, gx, states, of_step, live, reset)
        shown = shown if scan.options.all_states else shown[:1]
        return tuple(t.clone() for t in (*after, *shown))  # no two of which may share memory

    found = scan_op(step, [s.clone() for s in scan.states], rows, tuple(weights))
    final, series = list(found[:n_states]), list(found[n_states:])
    if reverse:
        series = [each.flip(0) for each in series]
    return ScanResult(series[0], final, series[1:])
