"""Layers stacked: who computes each, and the run through all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import handle_torch_function, has_torch_function

from .autocast import Cast, cast_all, cast_of, without_autocast
from .backends import measured, registry
from .backends.base import Backend
from .backends.torch_native import call_kernel, one_hot
from .cells import CELLS
from .checks import check_tokens, check_values
from .config import AUTO, requested_backend
from .direct import run_directions, run_stacked
from .functional import in_dispatch_mode, may_train, observed, run_chosen
from .problem import Options, Problem, Scan, ScanResult, changed, circumstances, kind_of

Dropout = Callable[[Tensor, float], Tensor]


class Stack(NamedTuple):
    """Layers of one cell on top of one another, as a module or torch.nn has them.

    Attributes:
        weights: for each layer and direction (forward, then reverse) its list.
        dropout: the probability between layers, of effect while ``training`` only.
        grad_clip_time, checkpoint_every: as ``Options`` has them.
    """

    cell: str
    weights: list[list[Tensor]]
    hidden_size: int
    num_layers: int
    bidirectional: bool
    has_bias: bool
    dropout: float
    training: bool
    batch_first: bool = False
    grad_clip_time: float = 0.0
    checkpoint_every: int = 0

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        return self.weights[0][1].shape[1]


class StackResult(NamedTuple):
    """``y`` [T, B, D*P] (or batch first), ``final``: a state each, [D*L, B, P] and for c
    [D*L, B, H]; ``h``, ``c``: of each layer all states [T, B, D*P] and [T, B, D*H], where asked
    for; ``whole``: torch computed all of it in its one call."""

    y: Tensor
    final: list[Tensor]
    h: list[Tensor]
    c: list[Tensor]
    whole: bool


class Choice(NamedTuple):
    """One direction of one layer and who computes it."""

    problem: Problem
    backend: Backend


def first_problem(
    stack: Stack,
    input: Tensor,
    has_lengths: bool,
    has_resets: bool,
    all_states: bool,
    training: bool,
    cast: Cast | None,
) -> Problem:
    """The problem of the first layer's forward direction; ``input`` [T, B, …] or batch first."""
    T, B = (1, 0) if stack.batch_first else (0, 1)
    first = stack.weights[0][0]
    tracing, recorded, transformed, low = circumstances(input.device.type)
    return Problem(
        stack.cell,
        kind_of(input),
        input.device.type,
        first.dtype if cast is None else cast.computed,
        input.shape[T],
        input.shape[B],
        first.shape[1],
        stack.hidden_size,
        stack.output_size,
        stack.has_bias,
        has_lengths,
        has_resets,
        Options(
            False,
            all_states,
            training,
            stack.checkpoint_every,
            stack.grad_clip_time if training else 0.0,
        ),
        tracing,
        recorded,
        transformed,
        None if cast is None else low,
    )


def cast_for(stack: Stack, input: Tensor, hx: Sequence[Tensor] | None) -> Cast | None:
    """What autocast, where it is on, asks of a stack."""
    low = circumstances(input.device.type)[-1]
    weight, spec = stack.weights[0][0].dtype, CELLS[stack.cell]
    if hx is None:
        states = [_zeros_dtype(stack, input)] * len(spec.states)
    else:
        states = [s.dtype for s in hx]
    return cast_of(spec, input.device.type, low, weight, states)


def problems(first: Problem, num_layers: int, directions: int) -> list[Problem]:
    """The problem of each layer and direction, in the order of ``Stack.weights``."""
    found = []
    for layer in range(num_layers):
        if layer > 0:
            first = changed(first, kind="dense", I=directions * first.P)
        for direction in range(directions):
            options = changed(first.options, reverse=direction == 1)
            found.append(changed(first, options=options))
    return found


class Plan(NamedTuple):
    """Who computes each layer and direction; ``whole``: torch does it all in its one call (never
    behind a tracer, which is to see our ops)."""

    choices: list[Choice]
    whole: bool


def _choose(
    first: Problem, num_layers: int, directions: int, requested: str, _measured: object
) -> Plan:
    asked = problems(first, num_layers, directions)
    if requested == AUTO and not first.tracing:
        requested = tuned(first, num_layers, directions) or requested
    choices = [Choice(problem, registry.select(problem, requested)) for problem in asked]
    torchs = registry.BACKENDS["torch"]  # as it is, not checkpointed
    return Plan(choices, all(c.backend is torchs for c in choices) and not first.tracing)


_choose_once = functools.lru_cache(maxsize=1024)(_choose)  # sizes repeat from call to call


def choose(stack: Stack, first: Problem) -> Plan:
    """The plan for a stack, by what is asked for here."""
    asked = (first, stack.num_layers, stack.directions, requested_backend())
    if first.tracing or first.recorded:
        return _choose(*asked, None)
    return _choose_once(*asked, measured.changes())


def tuned(first: Problem, num_layers: int, directions: int) -> str | None:
    """The backend that ``rnnfast.tune`` found fastest for just this call, if it still takes it."""
    name = measured.local().calls.get(call_key(first, num_layers, directions))
    if name not in registry.BACKENDS:
        return None
    asked = problems(first, num_layers, directions)
    taken = all(registry.refusal(registry.BACKENDS[name], problem) is None for problem in asked)
    return name if taken else None


def call_key(first: Problem, num_layers: int, directions: int) -> str:
    """A line that tells calls apart which ``tune`` measures apart."""
    p, o = first, first.options
    parts = [p.cell, p.kind, str(p.dtype).removeprefix("torch."), p.device]
    parts += [f"T{p.T} B{p.B} I{p.I} H{p.H} P{p.P} x{num_layers} x{directions}"]
    flags = {
        "no bias": not p.bias,
        "lengths": p.has_lengths,
        "resets": p.has_resets,
        "all states": o.all_states,
        "training": o.training,
        f"checkpoint {o.checkpoint_every}": o.checkpoint_every,
        "clip": o.grad_clip_time,
        f"autocast {p.autocast}": p.autocast,
    }
    return ", ".join([*parts, *(name for name, on in flags.items() if on)])


def _run_layer(scans: list[Scan], choices: Sequence[Choice]) -> list[ScanResult]:
    """The directions of a layer: at once where the backend wants that, else one by one."""
    problem, backend = choices[0]
    alone = len(scans) == 1 or any(c.backend is not backend for c in choices)
    if alone or not backend.paired or problem.tracing or problem.transformed or observed(scans[0]):
        return [
            run_chosen(scan, problem, backend)
            for scan, (problem, backend) in zip(scans, choices, strict=True)
        ]
    check_values(scans[0])  # lengths and tokens are the same for both
    return run_directions(scans, backend)


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
        hx: a state each, [D*L, B, P] and for c [D*L, B, H]; None: zeros.
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
    return tuple(_run_stack(*args))


def _run_stack(
    stack: Stack,
    input: Tensor,
    hx: Sequence[Tensor] | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    all_states: bool,
    dropout: Dropout,
) -> StackResult:
    training = differentiable(stack, input, hx)
    cast = cast_for(stack, input, hx)
    first = first_problem(
        stack, input, lengths is not None, resets is not None, all_states, training, cast
    )
    plan = choose(stack, first)
    if hx is None:
        hx = _zeros(stack, first, input)
    if plan.whole and lengths is None and not all_states and not in_dispatch_mode():
        if first.kind == "tokens":
            check_tokens(input, lengths, first.I)
            input = one_hot(input, first.I, stack.weights[0][0].dtype)
        return _cast_back(torch_stack(stack, input, hx, training), cast)
    if stack.batch_first:
        input = input.transpose(0, 1)
    with without_autocast(first.device):
        if cast is not None:
            stack, input, hx = _cast_stack(stack, input, hx, cast.computed)
        result = _run_layers(stack, input, hx, lengths, resets, plan.choices, dropout)
    result = _cast_back(result, cast)
    return changed(result, y=result.y.transpose(0, 1)) if stack.batch_first else result


def _cast_back(result: StackResult, cast: Cast | None) -> StackResult:
    """The results in the dtypes that autocast has them returned in."""
    if cast is None:
        return result
    h, *rest = cast.states
    return StackResult(
        result.y.to(h),
        [s.to(dtype) for s, dtype in zip(result.final, cast.states, strict=True)],
        [s.to(h) for s in result.h],
        [s.to(rest[0]) for s in result.c],
        result.whole,
    )


def _cast_stack(
    stack: Stack, input: Tensor, hx: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Stack, Tensor, list[Tensor]]:
    stack = changed(stack, weights=[cast_all(weights, dtype) for weights in stack.weights])
    if kind_of(input) != "tokens":
        (input,) = cast_all([input], dtype)
    return stack, input, cast_all(hx, dtype)


def differentiable(stack: Stack, input: Tensor, hx: Sequence[Tensor] | None) -> bool:
    """Whether the results of a stack will have gradients."""
    if not may_train(input.device.type):
        return False
    for weights in stack.weights:
        for weight in weights:
            if weight.requires_grad:
                return True
    return any(t.requires_grad for t in (input, *(hx or ())))


def _zeros(stack: Stack, problem: Problem, input: Tensor) -> list[Tensor]:
    rows = stack.num_layers * stack.directions
    dtype = _zeros_dtype(stack, input)
    widths = (problem.P, problem.H)[: len(CELLS[stack.cell].states)]
    return [
        torch.zeros(rows, problem.B, width, dtype=dtype, device=input.device) for width in widths
    ]


def _zeros_dtype(stack: Stack, input: Tensor) -> torch.dtype:
    return stack.weights[0][0].dtype if kind_of(input) == "tokens" else input.dtype


def torch_stack(
    stack: Stack,
    input: Tensor,
    hx: Sequence[Tensor],
    differentiable: bool,
    batch_sizes: Tensor | None = None,
) -> StackResult:
    """All layers in the one call that torch.nn makes; also of packed data, with ``batch_sizes``.

    cuDNN has a backward in training mode only, so ``differentiable`` calls are in it, evaluation
    included, where no dropout is left to tell the difference.
    """
    y, *final = call_kernel(
        CELLS[stack.cell].torch_mode,
        input,
        hx,
        [w for weights in stack.weights for w in weights],
        stack.has_bias,
        num_layers=stack.num_layers,
        dropout=stack.dropout if stack.training else 0.0,
        training=stack.training or differentiable,
        bidirectional=stack.bidirectional,
        batch_first=stack.batch_first,
        batch_sizes=batch_sizes,
    )
    return StackResult(y, final, [], [], True)


def _run_layers(
    stack: Stack,
    x: Tensor,
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    choices: list[Choice],
    dropout: Dropout,
) -> StackResult:
    per_row = [list(states) for states in zip(*(s.unbind(0) for s in hx), strict=False)]
    piped = _run_pipelined(stack, x, per_row, lengths, resets, choices)
    if piped is not None:
        return piped
    finals: list[list[Tensor]] = []
    all_h: list[Tensor] = []
    all_c: list[Tensor] = []
    for layer in range(stack.num_layers):
        if layer > 0 and stack.training and stack.dropout != 0:
            x = dropout(x, stack.dropout)
        rows = slice(layer * stack.directions, (layer + 1) * stack.directions)
        scans = [
            Scan(stack.cell, problem.kind, x, states, weights, lengths, resets, problem.options)
            for (problem, _), states, weights in zip(
                choices[rows], per_row[rows], stack.weights[rows], strict=True
            )
        ]
        results = _run_layer(scans, choices[rows])
        outputs = [result.y for result in results]
        finals += [result.final for result in results]
        traces = [t for result in results for t in result.trace]
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if choices[0].problem.options.all_states:
            all_h.append(x)
            if traces:
                all_c.append(torch.cat(traces, -1))
    final = [torch.stack(series) for series in zip(*finals, strict=False)]
    return StackResult(x, final, all_h, all_c, False)


def why_not_pipelined(stack: Stack, choices: Sequence[Choice]) -> str | None:
    """Why the layers run one after the other, or None."""
    backend = choices[0].backend
    if stack.bidirectional:
        return "a reversed layer begins with the last step"
    if any(c.backend.name != backend.name for c in choices):
        return "not all layers have the same backend"
    steps = backend.pipeline_steps()
    if steps == 0:
        return "not asked for"
    dropout = stack.training and stack.dropout != 0
    problems = [changed(c.problem, autocast=None) for c in choices]
    return backend.why_not_pipelined(problems, steps, dropout)


def _run_pipelined(
    stack: Stack,
    x: Tensor,
    per_row: list[list[Tensor]],
    lengths: Tensor | None,
    resets: Tensor | None,
    choices: list[Choice],
) -> StackResult | None:
    """The layers pipelined, where that is asked for and can be."""
    problem, backend = choices[0]
    if problem.tracing or backend.pipeline_steps() == 0:
        return None
    if why_not_pipelined(stack, choices) is not None:
        return None
    scans = [
        Scan(stack.cell, c.problem.kind, input, states, weights, lengths, resets, problem.options)
        for c, input, states, weights in zip(
            choices,
            [x, *(x.new_empty(0) for _ in choices[1:])],
            per_row,
            stack.weights,
            strict=True,
        )
    ]
    if any(map(observed, scans)):
        return None
    check_values(scans[0])
    results = run_stacked(scans, backend, backend.pipeline_steps())
    finals = zip(*(result.final for result in results), strict=True)
    final = [torch.stack(series) for series in finals]
    return StackResult(results[-1].y, final, [], [], False)


def packed_in_torch(
    stack: Stack, packed: PackedSequence, hx: Sequence[Tensor] | None
) -> StackResult | None:
    """``packed`` through torch's kernels as it is, where they are chosen for every layer.

    ``hx`` in the packed order. None where another backend is chosen.
    """
    batch, steps = int(packed.batch_sizes[0]), len(packed.batch_sizes)
    like = packed.data.new_empty(0).expand(steps, batch, 0)  # only its metadata is read
    training = differentiable(stack, packed.data, hx)
    cast = cast_for(stack, like, hx)
    first = first_problem(stack, like, True, False, False, training, cast)
    if not choose(stack, first).whole or in_dispatch_mode():
        return None
    states = _zeros(stack, first, like) if hx is None else hx
    data = packed.data
    if first.kind == "tokens":
        check_tokens(data, None, first.I)
        data = one_hot(data, first.I, stack.weights[0][0].dtype)
    result = torch_stack(stack, data, states, training, packed.batch_sizes)
    return _cast_back(result, cast)
