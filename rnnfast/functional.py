"""One direction of one layer (``scan``), and layers stacked (``stack``)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .backends import registry
from .backends.base import Backend
from .backends.torch_native import call_kernel, one_hot
from .cells import CELLS
from .checks import check_checkpoint_every, check_metadata, check_tokens, check_values
from .config import requested_backend
from .direct import run_direct, run_directions, run_stacked
from .ops import pack
from .problem import Options, Problem, Scan, ScanResult, circumstances, problem_of
from .time_clip import GradClipTime, as_option


def scan(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    projected: bool = False,
    reverse: bool = False,
    all_states: bool = False,
    grad_clip_time: GradClipTime = 0.0,
    checkpoint_every: int = 0,
    backend: str | None = None,
) -> ScanResult:
    """Runs one direction of one layer over T steps.

    Args:
        cell: a name of ``rnnfast.cells.CELLS``, which also says where each formula is from.
        input: float [T, B, I]; int64 [T, B], tokens, the same numbers as their one-hot of width I;
            or with ``projected=True`` the gates ``x W_ihᵀ + b_ih`` [T, B, G*H] themselves.
        states: initial states: h [B, P] and, for an LSTM, c [B, H].
        weights: ``w_ih`` [G*H, I], ``w_hh`` [G*H, P], ``b_ih``, ``b_hh`` [G*H], ``w_hr`` [P, H], of
            these the ones that the cell has, the biases both or neither; with ``projected=True``
            without ``w_ih`` and ``b_ih``.
        lengths: int64 [B] on the input's device. From its end on, a sequence's outputs are 0 and
            its state is frozen; a reversed scan starts at each sequence's own last step.
        resets: bool [T, B]. Where true, the state is replaced by 0 before x[t] is consumed, and no
            gradient crosses.
        all_states: return the cell state of each step too.
        grad_clip_time: v clips the gradient of the states, wherever a step hands it to the one
            before, to [-v, v]; ("zero", v) zeroes what is beyond; 0 is off (docs/clipping.md).
        checkpoint_every: k > 0 makes training keep the states of every k-th step only, and compute
            the steps in between once more in backward: less memory, the same gradients.
        backend: a backend's name; default: what ``use_backend`` or ``RNNFAST_BACKEND`` say.

    Returns:
        ``ScanResult(y [T, B, P], final states, trace)``.

    Raises:
        ValueError, TypeError, RuntimeError, IndexError: see ``rnnfast.checks``.
        BackendError: no backend, or not the one asked for, can take the problem.
    """
    training = torch.is_grad_enabled() and any(t.requires_grad for t in (input, *states, *weights))
    clip = as_option(grad_clip_time) if training else 0.0
    every = check_checkpoint_every(checkpoint_every)
    options = Options(reverse, all_states, training, every, clip)
    if projected:
        kind = "gates"
    else:
        kind = "dense" if input.is_floating_point() else "tokens"
    asked = Scan(cell, kind, input, list(states), list(weights), lengths, resets, options)
    autocast = circumstances(input.device.type)[2]
    if autocast is None:
        check_metadata(asked)
    problem = problem_of(asked)
    chosen = registry.select(problem, backend or requested_backend())
    return run(asked, problem, chosen)


def run(scan: Scan, problem: Problem, backend: Backend) -> ScanResult:
    """Runs a scan on the backend that was chosen for it."""
    if problem.autocast is None:
        return _run(scan, problem, backend)
    with torch.autocast(problem.device, enabled=False):
        return _run(_cast(scan, problem.autocast), problem, backend)


def _cast(scan: Scan, dtype: torch.dtype) -> Scan:
    return scan._replace(
        input=scan.input if scan.kind == "tokens" else scan.input.to(dtype),
        states=[s.to(dtype) for s in scan.states],
        weights=[w.to(dtype) for w in scan.weights],
    )


def _run(scan: Scan, problem: Problem, backend: Backend) -> ScanResult:
    if not problem.tracing and (backend.composite or problem.transformed):
        check_values(scan)
        return backend.run(scan)
    if not problem.tracing and not _observed():
        check_values(scan)
        return run_direct(scan, backend)
    y, final, trace, _ = torch.ops.rnnfast.scan_forward(*pack(scan, backend.name))
    return ScanResult(y, final, trace)


def _run_layer(scans: list[Scan], choices: Sequence[Choice]) -> list[ScanResult]:
    """The directions of a layer: at once where the backend wants that, else one by one."""
    problem, backend = choices[0]
    alone = len(scans) == 1 or any(c.backend is not backend for c in choices)
    if alone or not backend.paired or problem.tracing or problem.transformed or _observed():
        return [
            run(scan, problem, backend)
            for scan, (problem, backend) in zip(scans, choices, strict=True)
        ]
    if problem.autocast is not None:
        with torch.autocast(problem.device, enabled=False):
            own = [_cast(scan, problem.autocast) for scan in scans]
            return _run_layer(own, [Choice(p._replace(autocast=None), b) for p, b in choices])
    check_values(scans[0])  # lengths and tokens are the same for both
    return run_directions(scans, backend)


Dropout = Callable[[Tensor, float], Tensor]


def _observed() -> bool:
    """Whether someone records or replaces torch's calls (torch.jit.trace, make_fx, fake tensors,
    selective checkpointing): they must see an op, as a tracer must."""
    return torch._C._get_tracing_state() is not None or torch._C._len_torch_dispatch_stack() > 0


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
    whole: bool = False


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
) -> Problem:
    """The problem of the first layer's forward direction; ``input`` [T, B, …] or batch first."""
    T, B = (1, 0) if stack.batch_first else (0, 1)
    first = stack.weights[0][0]
    return Problem(
        stack.cell,
        "dense" if input.is_floating_point() else "tokens",
        input.device.type,
        first.dtype,
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
        *circumstances(input.device.type),
    )


def problems(first: Problem, num_layers: int, directions: int) -> list[Problem]:
    """The problem of each layer and direction, in the order of ``Stack.weights``."""
    found = []
    for layer in range(num_layers):
        if layer > 0:
            first = first._replace(kind="dense", I=directions * first.P)
        for direction in range(directions):
            found.append(first._replace(options=first.options._replace(reverse=direction == 1)))
    return found


class Plan(NamedTuple):
    """Who computes each layer and direction; ``whole``: torch does it all in its one call (never
    behind a tracer, which is to see our ops)."""

    choices: list[Choice]
    whole: bool


def _choose(first: Problem, num_layers: int, directions: int, requested: str) -> Plan:
    asked = problems(first, num_layers, directions)
    choices = [Choice(problem, registry.select(problem, requested)) for problem in asked]
    torchs = registry.BACKENDS["torch"]  # as it is, not checkpointed
    return Plan(choices, all(c.backend is torchs for c in choices) and not first.tracing)


_choose_once = functools.lru_cache(maxsize=1024)(_choose)  # sizes repeat from call to call


def choose(stack: Stack, first: Problem) -> Plan:
    """The plan for a stack, by what is asked for here."""
    chooser = _choose if first.tracing else _choose_once
    return chooser(first, stack.num_layers, stack.directions, requested_backend())


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
    """Runs every layer and direction.

    Args:
        input: [T, B, I] or tokens [T, B]; [B, T, …] if ``stack.batch_first``.
        hx: a state each, [D*L, B, P] and for c [D*L, B, H]; None: zeros.
        lengths: int64 [B]. resets: bool [T, B] (always time first).
        dropout: what draws the masks between layers: (x [T, B, D*P], probability) -> x.
    """
    training = torch.is_grad_enabled() and _differentiable(stack, input, hx)
    first = first_problem(
        stack, input, lengths is not None, resets is not None, all_states, training
    )
    plan = choose(stack, first)
    if hx is None:
        hx = _zeros(stack, first, input)
    if plan.whole and lengths is None and not all_states:
        if first.kind == "tokens":
            check_tokens(input, lengths, first.I)
            input = one_hot(input, first.I, first.dtype)
        return torch_stack(stack, input, hx, training)
    if stack.batch_first:
        input = input.transpose(0, 1)
    result = _run_layers(stack, input, hx, lengths, resets, plan.choices, dropout)
    return result._replace(y=result.y.transpose(0, 1)) if stack.batch_first else result


def _differentiable(stack: Stack, input: Tensor, hx: Sequence[Tensor] | None) -> bool:
    for weights in stack.weights:
        for weight in weights:
            if weight.requires_grad:
                return True
    return any(t.requires_grad for t in (input, *(hx or ())))


def _zeros(stack: Stack, problem: Problem, input: Tensor) -> list[Tensor]:
    rows = stack.num_layers * stack.directions
    dtype = input.dtype if input.is_floating_point() else problem.dtype
    widths = (problem.P, problem.H)[: len(CELLS[stack.cell].states)]
    return [
        torch.zeros(rows, problem.B, width, dtype=dtype, device=input.device) for width in widths
    ]


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
    return StackResult(y, final, [], [], whole=True)


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
    return StackResult(
        x, [torch.stack(series) for series in zip(*finals, strict=False)], all_h, all_c
    )


def why_not_pipelined(stack: Stack, choices: Sequence[Choice]) -> str | None:
    """Why the layers run one after the other, or None."""
    problem, backend = choices[0]
    if stack.bidirectional:
        return "a reversed layer begins with the last step"
    if any(c.backend.name != backend.name for c in choices):
        return "not all layers have the same backend"
    steps = backend.pipeline_steps()
    if steps == 0:
        return "not asked for"
    dropout = stack.training and stack.dropout != 0
    dtype = problem.autocast or problem.dtype
    problems = [c.problem._replace(dtype=dtype, autocast=None) for c in choices]
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
    if problem.tracing or backend.pipeline_steps() == 0 or _observed():
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
    check_values(scans[0])
    with torch.autocast(problem.device, enabled=False):
        if problem.autocast is not None:
            scans = [_cast(scan, problem.autocast) for scan in scans]
        results = run_stacked(scans, backend, backend.pipeline_steps())
    finals = zip(*(result.final for result in results), strict=True)
    return StackResult(results[-1].y, [torch.stack(series) for series in finals], [], [])


def packed_in_torch(
    stack: Stack, packed: PackedSequence, hx: Sequence[Tensor] | None
) -> StackResult | None:
    """``packed`` through torch's kernels as it is, where they are chosen for every layer.

    ``hx`` in the packed order. None where another backend is chosen.
    """
    batch, steps = int(packed.batch_sizes[0]), len(packed.batch_sizes)
    like = packed.data.new_empty(0).expand(steps, batch, 0)  # only its metadata is read
    training = torch.is_grad_enabled() and _differentiable(stack, packed.data, hx)
    first = first_problem(stack, like, True, False, False, training)
    if not choose(stack, first).whole:
        return None
    states = _zeros(stack, first, like) if hx is None else hx
    return torch_stack(stack, packed.data, states, training, packed.batch_sizes)
