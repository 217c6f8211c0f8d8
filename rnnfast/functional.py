"""One direction of one layer (``scan``), and layers stacked (``stack``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .backends import registry
from .backends.base import Backend
from .backends.torch_native import call_kernel, one_hot
from .cells import CELLS
from .checks import check_metadata, check_tokens, check_values
from .config import requested_backend
from .ops import pack
from .problem import Options, Problem, Scan, ScanResult, circumstances, problem_of


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
        backend: a backend's name; default: what ``use_backend`` or ``RNNFAST_BACKEND`` say.

    Returns:
        ``ScanResult(y [T, B, P], final states, trace)``.

    Raises:
        ValueError, TypeError, RuntimeError, IndexError: see ``rnnfast.checks``.
        BackendError: no backend, or not the one asked for, can take the problem.
    """
    training = torch.is_grad_enabled() and any(t.requires_grad for t in (input, *states, *weights))
    options = Options(reverse=reverse, all_states=all_states, training=training)
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
    if backend.composite and not problem.tracing:
        check_values(scan)
        return backend.run(scan)
    y, final, trace, _ = torch.ops.rnnfast.scan_forward(*pack(scan, backend.name))
    return ScanResult(y, final, trace)


class Stack(NamedTuple):
    """Layers of one cell on top of one another, as a module or torch.nn has them.

    Attributes:
        weights: for each layer and direction (forward, then reverse) its list.
        dropout: the probability between layers, 0 when not training.
    """

    cell: str
    weights: list[list[Tensor]]
    hidden_size: int
    num_layers: int
    bidirectional: bool
    has_bias: bool
    dropout: float
    batch_first: bool = False

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        return self.weights[0][1].shape[1]


class StackResult(NamedTuple):
    """``y`` [T, B, D*P] (or batch first), ``final``: a state each, [D*L, B, P] and for c
    [D*L, B, H]; ``h``, ``c``: of each layer all states [T, B, D*P] and [T, B, D*H], where asked
    for."""

    y: Tensor
    final: list[Tensor]
    h: list[Tensor]
    c: list[Tensor]


def problems(
    stack: Stack,
    input: Tensor,
    has_lengths: bool,
    has_resets: bool,
    all_states: bool,
    training: bool,
) -> list[Problem]:
    """The problem of each layer and direction, in the order of ``stack.weights``."""
    T, B = (1, 0) if stack.batch_first else (0, 1)
    T, B = input.shape[T], input.shape[B]
    dtype = stack.weights[0][0].dtype
    found = []
    surroundings = circumstances(input.device.type)
    for index, weights in enumerate(stack.weights):
        layer, direction = divmod(index, stack.directions)
        dense = layer > 0 or input.is_floating_point()
        found.append(
            Problem(
                stack.cell,
                "dense" if dense else "tokens",
                input.device.type,
                dtype,
                T,
                B,
                weights[0].shape[1],
                stack.hidden_size,
                stack.output_size,
                stack.has_bias,
                has_lengths,
                has_resets,
                Options(direction == 1, all_states, training),
                *surroundings,
            )
        )
    return found


def run_stack(
    stack: Stack,
    input: Tensor,
    hx: Sequence[Tensor] | None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    all_states: bool = False,
) -> StackResult:
    """Runs every layer and direction.

    Args:
        input: [T, B, I] or tokens [T, B]; [B, T, …] if ``stack.batch_first``.
        hx: a state each, [D*L, B, P] and for c [D*L, B, H]; None: zeros.
        lengths: int64 [B]. resets: bool [T, B] (always time first).
    """
    training = torch.is_grad_enabled() and _differentiable(stack, input, hx)
    asked = problems(stack, input, lengths is not None, resets is not None, all_states, training)
    name = requested_backend()
    chosen = [registry.select(problem, name) for problem in asked]
    if hx is None:
        hx = _zeros(stack, asked[0], input)
    whole = all(b.name == "torch" for b in chosen) and not asked[0].tracing
    if whole and lengths is None and not all_states:
        if not input.is_floating_point():
            check_tokens(input, lengths, stack.weights[0][0].shape[1])
            input = one_hot(input, stack.weights[0][0].shape[1], asked[0].dtype)
        return torch_stack(stack, input, hx)
    if stack.batch_first:
        input = input.transpose(0, 1)
    result = _run_layers(stack, input, hx, lengths, resets, asked, chosen)
    return result._replace(y=result.y.transpose(0, 1)) if stack.batch_first else result


def _differentiable(stack: Stack, input: Tensor, hx: Sequence[Tensor] | None) -> bool:
    weights = (w for layer in stack.weights for w in layer)
    return any(t.requires_grad for t in (*weights, input, *(hx or ())))


def _zeros(stack: Stack, problem: Problem, input: Tensor) -> list[Tensor]:
    rows = stack.num_layers * stack.directions
    dtype = input.dtype if input.is_floating_point() else problem.dtype
    widths = (problem.P, problem.H)[: len(CELLS[stack.cell].states)]
    return [
        torch.zeros(rows, problem.B, width, dtype=dtype, device=input.device) for width in widths
    ]


def torch_stack(
    stack: Stack, input: Tensor, hx: Sequence[Tensor], batch_sizes: Tensor | None = None
) -> StackResult:
    """All layers in the one call that torch.nn makes; also of packed data, with ``batch_sizes``."""
    y, *final = call_kernel(
        CELLS[stack.cell].torch_mode,
        input,
        hx,
        [w for weights in stack.weights for w in weights],
        stack.has_bias,
        num_layers=stack.num_layers,
        dropout=stack.dropout,
        training=stack.dropout > 0,
        bidirectional=stack.bidirectional,
        batch_first=stack.batch_first,
        batch_sizes=batch_sizes,
    )
    return StackResult(y, final, [], [])


def _run_layers(
    stack: Stack,
    x: Tensor,
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    asked: list[Problem],
    chosen: list[Backend],
) -> StackResult:
    per_row = [list(states) for states in zip(*(s.unbind(0) for s in hx), strict=False)]
    finals: list[list[Tensor]] = []
    all_h: list[Tensor] = []
    all_c: list[Tensor] = []
    for layer in range(stack.num_layers):
        if layer > 0 and stack.dropout > 0:
            x = F.dropout(x, stack.dropout)
        outputs, traces = [], []
        for direction in range(stack.directions):
            row = layer * stack.directions + direction
            problem = asked[row]
            scan = Scan(
                stack.cell,
                problem.kind,
                x,
                per_row[row],
                stack.weights[row],
                lengths,
                resets,
                problem.options,
            )
            result = run(scan, problem, chosen[row])
            outputs.append(result.y)
            finals.append(result.final)
            traces += result.trace
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if problem.options.all_states:
            all_h.append(x)
            if traces:
                all_c.append(torch.cat(traces, -1))
    return StackResult(
        x, [torch.stack(series) for series in zip(*finals, strict=False)], all_h, all_c
    )


def packed_in_torch(
    stack: Stack, packed: PackedSequence, hx: Sequence[Tensor] | None
) -> StackResult | None:
    """``packed`` through torch's kernels as it is, where they are chosen for every layer.

    ``hx`` in the packed order. None where another backend is chosen.
    """
    batch, steps = int(packed.batch_sizes[0]), len(packed.batch_sizes)
    like = packed.data.new_empty(0).expand(steps, batch, 0)  # problems() reads its metadata only
    training = torch.is_grad_enabled() and _differentiable(stack, packed.data, hx)
    asked = problems(stack, like, True, False, False, training)
    name = requested_backend()
    if any(registry.select(problem, name).name != "torch" for problem in asked):
        return None
    if asked[0].tracing:
        return None
    states = _zeros(stack, asked[0], like) if hx is None else hx
    return torch_stack(stack, packed.data, states, packed.batch_sizes)
