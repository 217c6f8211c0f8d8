"""The derivative of a scan along given tangents of its inputs: again a scan, of the tangent cell.

Forward mode is that scan. With it the derivatives of backward need no kernels of their own: for
y = F(x), and dx the gradient that backward makes of dy,

    <v, dx> = <v, F'(x)ᵀ dy> = <F'(x) v, dy>,

so the gradients of <v, dx> by x and dy are what backward of the scan of the tangents makes of dy,
and that scan's own output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import registry
from .backends.preference import order
from .cells.tangent import tangent_cell
from .problem import Scan, ScanResult, cast, problem_of, wide
from .products.projection import project_input, projected_by, weight_of_input
from .rules import without_padding
from .schema import pack
from .scratch import linearized_loop
from .surroundings import wants_gradients

Op = Callable[..., tuple[Any, ...]]  # scan_forward: its arguments, its results


class Tangents(NamedTuple):
    """Of a scan's input, states and weights; None where there is none."""

    input: Tensor | None
    states: Sequence[Tensor | None]
    weights: Sequence[Tensor | None]


class Linearized(NamedTuple):
    """``tangent``: of a scan's results; ``value``: the results themselves, of which the states at
    each step are only there where asked for, and then the output, too."""

    tangent: ScanResult
    value: ScanResult


def linearize(
    scan: Scan, tangents: Tangents, backend: str, op: Op, values: bool = False
) -> Linearized:
    """The derivative of ``scan`` along ``tangents``, differentiable.

    ``backend``: who ran the scan, and runs this where it can; else another that can, else the loop.
    ``op``: what runs a scan. ``values``: the scan's own results are wanted, too.
    """
    own = tangent_scan(scan, tangents, values)
    name = kernels_for(own, backend)
    if name is None:
        return _by_loop(scan, tangents)
    y, final, trace, _ = op(*pack(own, name))
    series, count = [y, *trace], len(scan.states)
    all_states = scan.options.all_states
    tangent = _result(scan, series[:count], final[:count], all_states)
    value = _result(scan, series[count:], final[count:], all_states)
    return Linearized(tangent, value)


def _result(
    scan: Scan, series: Sequence[Tensor], final: Sequence[Tensor], all_states: bool
) -> ScanResult:
    """As the scan's own cell has them: of a projected output its P units."""
    storage, P = scan.dtype, scan.states[0].shape[-1]
    h, *others = [cast(s, storage) for s in final]
    y = cast(series[0], storage) if series else h
    trace = [cast(t, storage) for t in series[1:]] if all_states else []
    return ScanResult(_narrowed(y, P), [_narrowed(h, P), *others], trace)


def kernels_for(scan: Scan, backend: str) -> str | None:
    """The backend with kernels for a scan of tangents: the one named, or the next that takes it."""
    problem = problem_of(scan)
    for name in (backend, *order(problem).names):
        one = registry.BACKENDS[name]
        if not one.composite and registry.refusal(one, problem) is None:
            return name
    return None


def tangent_scan(scan: Scan, tangents: Tangents, values: bool) -> Scan:
    """The scan of the tangent cell. ``values``: it is to return all states at each step."""
    spec, options, dtype = scan.spec, scan.options, wide(scan.dtype)
    P, H = scan.states[0].shape[-1], scan.states[-1].shape[-1]
    scan = without_padding(scan).to(dtype)
    found = dict(zip(spec.weight_names(scan.kind, scan.has_bias), scan.weights, strict=True))
    along = {
        name: None if d is None else cast(d, dtype)
        for name, d in zip(found, tangents.weights, strict=True)
    }
    of_input = ("w_ih", "b_ih")
    weights = [w for name, w in found.items() if name not in of_input]
    weights_too = any(d is not None for name, d in along.items() if name not in of_input)
    name = tangent_cell(scan.cell, P, scan.has_bias, weights_too)
    if weights_too:
        recurrent = ((w, along[name]) for name, w in found.items() if name not in of_input)
        weights += [torch.zeros_like(w) if d is None else d for w, d in recurrent]
    states = [_widened(s, H) for s in scan.states]
    dstates = [
        torch.zeros_like(s) if d is None else _widened(cast(d, dtype), H)
        for d, s in zip(tangents.states, states, strict=True)
    ]
    gates = project_input(scan)
    dgates = _tangent_of_gates(scan, gates, tangents.input, along)
    given = [gates, *states, *dstates, *weights, dgates]
    options = options._replace(
        all_states=values or options.all_states,
        training=wants_gradients(given),
        grad_clip_time=0.0,  # of no effect on tangents; whoever differentiates them looks to it
    )
    return Scan(
        name,
        "gates",
        torch.cat([gates, dgates], -1),
        [*dstates, *states],
        weights,
        scan.lengths,
        scan.resets,
        options,
    )


def _tangent_of_gates(
    scan: Scan, gates: Tensor, dinput: Tensor | None, along: dict[str, Tensor | None]
) -> Tensor:
    """Of x W_ihᵀ + b_ih. Of a scan without padding."""
    total: Tensor | None = None
    if dinput is not None and scan.kind != "tokens":
        dinput = without_padding(scan._replace(input=cast(dinput, gates.dtype))).input
        dense = scan.kind == "dense"
        total = F.linear(dinput, weight_of_input(scan)) if dense else dinput
    dw_ih, db_ih = along.get("w_ih"), along.get("b_ih")
    if dw_ih is not None:
        moved = projected_by(scan, dw_ih, db_ih)
        total = moved if total is None else total + moved
    elif db_ih is not None:
        total = db_ih.expand_as(gates) if total is None else total + db_ih
    return torch.zeros_like(gates) if total is None else total


def _by_loop(scan: Scan, tangents: Tangents) -> Linearized:
    given = [tangents.input, *tangents.states, *tangents.weights]
    count = 1 + len(scan.states)
    return Linearized(
        *(
            ScanResult(flat[0], list(flat[1:count]), list(flat[count:]))
            for flat in linearized_loop(scan, given)
        )
    )


def _narrowed(values: Tensor, P: int) -> Tensor:
    return values if values.shape[-1] == P else values[..., :P].contiguous()


def _widened(values: Tensor, H: int) -> Tensor:
    """To H units, with zeros behind them (cells/masked.py)."""
    return values if values.shape[-1] == H else F.pad(values, (0, H - values.shape[-1]))
