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
from .products.projection import projected_by, weight_of_input
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
    gates = _both_gates(scan, tangents.input, along)
    given = [gates, *states, *dstates, *weights]
    options = options._replace(
        all_states=values or options.all_states,
        training=wants_gradients(given),
        grad_clip_time=0.0,  # of no effect on tangents; whoever differentiates them looks to it
    )
    return Scan(
        name,
        "gates",
        gates,
        [*dstates, *states],
        weights,
        scan.lengths,
        scan.resets,
        options,
    )


def _both_gates(scan: Scan, dinput: Tensor | None, along: dict[str, Tensor | None]) -> Tensor:
    """x W_ihᵀ + b_ih and behind it its tangent, [T, B, 2*G*H]: one product. Of a scan without
    padding."""
    if scan.kind == "gates":
        found = torch.zeros_like(scan.input) if dinput is None else cast(dinput, scan.dtype)
        return torch.cat([scan.input, found], -1)
    w_ih, b_ih = weight_of_input(scan), scan.weight("b_ih")
    dw_ih, db_ih = along.get("w_ih"), along.get("b_ih")
    if dinput is None or scan.kind == "tokens":
        if dw_ih is None and db_ih is None:
            gates = projected_by(scan, w_ih, b_ih)
            return torch.cat([gates, torch.zeros_like(gates)], -1)
        both = torch.cat([w_ih, torch.zeros_like(w_ih) if dw_ih is None else dw_ih])
        if b_ih is not None:
            b_ih = torch.cat([b_ih, torch.zeros_like(b_ih) if db_ih is None else db_ih])
        return projected_by(scan, both, b_ih)
    x = scan.input
    dx = without_padding(scan._replace(input=cast(dinput, scan.dtype))).input
    none, one = torch.zeros_like(x[..., :1]), torch.ones_like(x[..., :1])
    columns = [(x, dx, w_ih)]
    if b_ih is not None:
        columns.append((one, none, b_ih.unsqueeze(-1)))
    if dw_ih is not None:
        columns.append((torch.zeros_like(x), x, dw_ih))
    if db_ih is not None:
        columns.append((none, one, db_ih.unsqueeze(-1)))
    value, moved, weights = (torch.cat(parts, -1) for parts in zip(*columns, strict=True))
    both = F.linear(torch.stack([value, moved], 2), weights)
    return both.reshape(*x.shape[:2], -1)


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
