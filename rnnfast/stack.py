"""The run through layers stacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import handle_torch_function, has_torch_function

from .autocast import Cast, cast_all, without_autocast
from .cells import CELLS
from .checks import check_tokens, check_values
from .direct import run_directions, run_whole
from .functional import run_chosen
from .masks import masked, with_masks, without_zeros
from .onnx_export import exporting, layer_as_node
from .packing import batch_of
from .problem import Problem, Scan, ScanResult, Stack, StackResult, changed, kind_of, wide
from .problem import cast as as_dtype
from .selection import (
    Assigned,
    asked_of,
    choose,
    why_not_whole,
    zeros_dtype,
)
from .surroundings import in_dispatch_mode, observed

Dropout = Callable[[Tensor, float], Tensor]


def run_stack(
    stack: Stack,
    input: Tensor,
    hx: Sequence[Tensor] | None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    all_states: bool = False,
    dropout: Dropout = F.dropout,
) -> StackResult:
    """Runs every layer and direction. A tensor subclass is asked once, as torch asks it, and makes
    the results its own.

    Args:
        input: [T, B, I] or tokens [T, B]; [B, T, …] if ``stack.batch_first``.
        hx: a state each, the output's [D*L, B, P], every other [D*L, B, H]; None: zeros.
        lengths: int64 [B]. resets: bool [T, B] (always time first).
        dropout: what draws the masks between layers: (x [T, B, D*P], probability) -> x.
    """
    args = (stack, input, hx, lengths, resets, all_states, dropout)
    tensors = [t for t in (input, *(hx or ()), lengths, resets) if t is not None]
    tensors += [w for weights in stack.weights for w in weights]
    if has_torch_function(tensors):
        return StackResult(*handle_torch_function(_stack_as_tuple, tensors, *args))
    return _run_stack(*args)


def _stack_as_tuple(*args: Any) -> tuple[Any, ...]:
    return tuple(_run_stack(*args))[:4]  # without what only rnnfast knows of


def _run_stack(
    stack: Stack,
    input: Tensor,
    hx: Sequence[Tensor] | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    all_states: bool,
    dropout: Dropout,
) -> StackResult:
    first, cast, autocast = asked_of(
        stack,
        input,
        hx,
        has_lengths=lengths is not None,
        has_resets=resets is not None,
        all_states=all_states,
    )
    assigned = choose(stack, first)
    if hx is None:
        hx = _zeros(stack, first, input)
    if _in_one_call(stack, assigned):
        return _cast_back(_call_whole(stack, input, hx, assigned[0], None), cast)
    if stack.batch_first:
        input = input.transpose(0, 1)
    with without_autocast(first.device, autocast):
        if cast is not None:
            stack, input, hx = _cast_stack(stack, input, hx, cast.computed)
        result = _run_layers(stack, input, hx, lengths, resets, assigned, dropout)
    result = changed(_cast_back(result, cast), assigned=None if first.tracing else assigned)
    return changed(result, y=result.y.transpose(0, 1)) if stack.batch_first else result


def run_again(
    stack: Stack, input: Tensor, hx: Sequence[Tensor] | None, assigned: list[Assigned]
) -> StackResult:
    """A call like one that ``assigned`` computed, without lengths, resets, autocast or a tensor
    subclass: nothing is to be checked or chosen."""
    if hx is None:
        hx = _zeros(stack, assigned[0].problem, input)
    if stack.batch_first:
        input = input.transpose(0, 1)
    result = _run_layers(stack, input, hx, None, None, assigned, F.dropout)
    return changed(result, y=result.y.transpose(0, 1)) if stack.batch_first else result


def run_packed(
    stack: Stack, packed: PackedSequence, hx: Sequence[Tensor] | None
) -> StackResult | None:
    """``packed`` as it is, where the backend chosen takes it so for all layers; else None.

    ``hx`` in the packed order.
    """
    batch, steps = batch_of(packed), len(packed.batch_sizes)
    like = packed.data.new_empty(0).expand(steps, batch, 0)  # only its metadata is read
    first, cast, _ = asked_of(stack, like, hx, has_lengths=True, data=packed.data)
    assigned = choose(stack, first)
    if not _in_one_call(stack, assigned, packed=True):
        return None
    states = _zeros(stack, first, like) if hx is None else hx
    result = _call_whole(stack, packed.data, states, assigned[0], packed.batch_sizes)
    return _cast_back(result, cast)


def _in_one_call(stack: Stack, assigned: list[Assigned], packed: bool = False) -> bool:
    """Whether a composite backend runs all layers (never where a mode is to see our op)."""
    one_call = assigned[0].backend.composite and why_not_whole(stack, assigned, packed) is None
    return one_call and not in_dispatch_mode()  # in this order: no tracer knows of modes


def _call_whole(
    stack: Stack,
    input: Tensor,
    hx: Sequence[Tensor],
    assigned: Assigned,
    batch_sizes: Tensor | None,
) -> StackResult:
    if assigned.problem.kind == "tokens":
        check_tokens(input, None, assigned.problem.I)
    return assigned.backend.run_whole(stack, input, hx, assigned.problem, batch_sizes)


def _cast_back(result: StackResult, cast: Cast | None) -> StackResult:
    """The results in the dtypes that autocast has them returned in."""
    if cast is None:
        return result
    return StackResult(
        result.y.to(cast.states[0]),
        [s.to(dtype) for s, dtype in zip(result.final, cast.states, strict=True)],
        [
            [s.to(dtype) for s in layers]
            for layers, dtype in zip(result.every, cast.states, strict=False)
        ],
        result.whole,
    )


def _cast_stack(
    stack: Stack, input: Tensor, hx: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Stack, Tensor, list[Tensor]]:
    stack = changed(stack, weights=[cast_all(weights, dtype) for weights in stack.weights])
    if kind_of(input) != "tokens":
        (input,) = cast_all([input], dtype)
    return stack, input, cast_all(hx, dtype)


def _zeros(stack: Stack, problem: Problem, input: Tensor) -> list[Tensor]:
    rows = stack.num_layers * stack.directions
    dtype = zeros_dtype(stack, input)
    widths = CELLS[stack.cell].state_widths(problem.P, problem.H)
    # onnxruntime can't make any of bfloat16
    made = wide(dtype) if problem.tracing and exporting() else dtype
    return [
        as_dtype(torch.zeros(rows, problem.B, width, dtype=made, device=input.device), dtype)
        for width in widths
    ]


def _run_layers(
    stack: Stack,
    x: Tensor,
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    assigned: list[Assigned],
    dropout: Dropout,
) -> StackResult:
    if len(assigned) == 1 and (alone := _run_alone(stack, x, hx, lengths, resets, assigned)):
        return alone
    if len(assigned) == 1:
        per_row = [[s.squeeze(0) for s in hx]]
    else:
        per_row = [list(states) for states in zip(*(s.unbind(0) for s in hx), strict=False)]
    at_once = _run_at_once(stack, x, per_row, lengths, resets, assigned)
    if at_once is not None:
        return at_once
    finals: list[list[Tensor]] = []
    every: list[list[Tensor]] = []  # of each layer, a tensor a state
    for layer in range(stack.num_layers):
        if layer > 0 and stack.training and stack.dropout != 0:
            x = dropout(x, stack.dropout)
        rows = slice(layer * stack.directions, (layer + 1) * stack.directions)
        scans = [
            Scan(stack.cell, kind_of(x), x, states, weights, lengths, resets, one.options)
            for (one, _), states, weights in zip(
                assigned[rows], per_row[rows], stack.weights[rows], strict=True
            )
        ]
        results = _run_layer(stack, scans, assigned[rows])
        outputs = [result.y for result in results]
        finals += [result.final for result in results]
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if assigned[0].problem.options.all_states:
            traces = zip(*(result.trace for result in results), strict=True)
            every.append([x, *(torch.cat(both, -1) for both in traces)])
    final = [torch.stack(series) for series in zip(*finals, strict=False)]
    return StackResult(x, final, [list(layers) for layers in zip(*every, strict=True)], False)


def _run_alone(
    stack: Stack,
    x: Tensor,
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    assigned: list[Assigned],
) -> StackResult | None:
    """One layer of one direction by kernels in eager code, without a copy of its states; else
    None."""
    problem, backend = assigned[0]
    if problem.tracing or problem.recorded or problem.transformed or backend.composite:
        return None
    states = [s.squeeze(0) for s in hx]
    options = problem.options
    scan = Scan(stack.cell, kind_of(x), x, states, stack.weights[0], lengths, resets, options)
    ((y, final, trace),) = _run_layer(stack, [scan], assigned)
    every = [[y], *([one] for one in trace)] if options.all_states else []
    return StackResult(y, [_as_row(s) for s in final], every, False)


def _as_row(state: Tensor) -> Tensor:
    """[1, …]. No view of it, since users detach_() states; in place, without a copy, where nobody
    keeps what the kernel returned."""
    if type(state) is not Tensor or state._is_view() or in_dispatch_mode():
        return torch.stack([state])
    return state.unsqueeze_(0)


def _run_at_once(
    stack: Stack,
    x: Tensor,
    per_row: list[list[Tensor]],
    lengths: Tensor | None,
    resets: Tensor | None,
    assigned: list[Assigned],
) -> StackResult | None:
    """The layers by the kernels of a backend that takes all of them at once; else None."""
    backend = assigned[0].backend
    if backend.composite or why_not_whole(stack, assigned) is not None:
        return None
    below = [x, *(x.new_empty(0) for _ in assigned[1:])]
    scans = [
        Scan(stack.cell, one.kind, input, states, weights, lengths, resets, one.options)
        for (one, _), input, states, weights in zip(
            assigned, below, per_row, stack.weights, strict=True
        )
    ]
    if assigned[0].problem.transformed or any(observed(scan.tensors) for scan in scans):
        return None
    check_values(scans[0])
    results = run_whole(scans, backend)
    finals = zip(*(result.final for result in results), strict=True)
    final = [torch.stack(series) for series in finals]
    return StackResult(results[-1].y, final, [], False)


def _run_layer(stack: Stack, scans: list[Scan], assigned: Sequence[Assigned]) -> list[ScanResult]:
    """The directions of a layer, with their masks."""
    if assigned[0].problem.kind == "gates":
        other = masked(stack, scans[0].dtype)
        assert other is not None
        if not assigned[0].problem.tracing:
            check_values(scans[0])
        storage = scans[0].dtype
        scans = [with_masks(scan, stack, other) for scan in scans]
        # the states are as wide as a cell of one's own has them
        assigned = [Assigned(changed(p, P=p.H), backend) for p, backend in assigned]
        results = _run_directions(scans, assigned)
        return [without_zeros(result, stack).to(storage) for result in results]
    return _run_directions(scans, assigned)


def _run_directions(scans: list[Scan], assigned: Sequence[Assigned]) -> list[ScanResult]:
    """At once where the backend wants that, else one by one."""
    problem, backend = assigned[0]
    if problem.tracing and exporting():
        node = layer_as_node(scans)
        if node is not None:
            return node
    together = backend.paired and len(scans) > 1 and all(b is backend for _, b in assigned)
    seen = problem.tracing or problem.transformed
    if not together or seen or observed(scans[0].tensors):
        return [
            run_chosen(scan, problem, backend)
            for scan, (problem, backend) in zip(scans, assigned, strict=True)
        ]
    check_values(scans[0])  # lengths and tokens are the same for both
    return run_directions(scans, backend)
