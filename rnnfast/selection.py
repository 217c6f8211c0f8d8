"""Who computes a stack of layers: the problem of each direction of each layer, and its backend."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .autocast import Cast, cast_of
from .backends import measured, qualified, registry
from .backends.base import Backend, Call
from .backends.registry import AUTO, requested_backend
from .cells import CELLS
from .masks import masked
from .problem import Options, Problem, Stack, changed, index_of, kind_of
from .surroundings import surroundings, wants_gradients
from .time_clip import clip_of


class Assigned(NamedTuple):
    """One direction of one layer and who computes it."""

    problem: Problem
    backend: Backend


class Asked(NamedTuple):
    """What is asked for: ``first``, the problem of the first layer's forward direction; what
    autocast asks of it, and whether it is on at all."""

    first: Problem
    cast: Cast | None
    autocast: bool


def asked_of(
    stack: Stack,
    input: Tensor,
    hx: Sequence[Tensor] | None,
    *,
    has_lengths: bool = False,
    has_resets: bool = False,
    all_states: bool = False,
    data: Tensor | None = None,
) -> Asked:
    """``input`` [T, B, …] or batch first; ``data``: its numbers, where it is their shape only."""
    around = surroundings(input.device.type)  # once: asking takes as long as a small product
    T, B = (1, 0) if stack.batch_first else (0, 1)
    weight = stack.weights[0][0]
    cast = None
    if around.autocast is not None:
        cast = _cast_for(stack, input, hx, around.autocast)
    training = around.differentiated or _differentiable(
        stack, input if data is None else data, hx, around.recorded
    )
    cell, kind = stack.cell, kind_of(input)
    dtype = weight.dtype if cast is None else cast.computed
    if (other := masked(stack, dtype)) is not None:
        (cell, dtype), kind = other, "gates"
    first = Problem(
        cell,
        kind,
        input.device.type,
        dtype,
        input.shape[T],
        input.shape[B],
        weight.shape[1],
        stack.hidden_size,
        stack.output_size,
        stack.has_bias,
        has_lengths,
        has_resets,
        Options(
            False,
            all_states,
            training,
            0 if around.recorded else stack.checkpoint_every,
            clip_of(stack.grad_clip_time, training, around.recorded),
        ),
        around.tracing,
        around.recorded,
        around.transformed,
        None if cast is None else around.autocast,
        index_of(input),
        around.dual,
    )
    return Asked(first, cast, around.autocast is not None)


def _cast_for(
    stack: Stack, input: Tensor, hx: Sequence[Tensor] | None, low: torch.dtype
) -> Cast | None:
    """What autocast to ``low`` asks of a stack."""
    weight, spec = stack.weights[0][0].dtype, CELLS[stack.cell]
    if hx is None:
        states = [zeros_dtype(stack, input)] * len(spec.states)
    else:
        states = [s.dtype for s in hx]
    return cast_of(spec, input.device.type, low, weight, states)


def problems_of(first: Problem, num_layers: int, directions: int) -> list[Problem]:
    """The problem of each layer and direction, in the order of ``Stack.weights``."""
    found = []
    for layer in range(num_layers):
        if layer > 0:
            kind = first.kind if first.kind == "gates" else "dense"  # with masks
            first = changed(first, kind=kind, I=directions * first.P)
        for direction in range(directions):
            options = changed(first.options, reverse=direction == 1)
            found.append(changed(first, options=options))
    return found


def zeros_dtype(stack: Stack, input: Tensor) -> torch.dtype:
    """Of the initial states, where none are given."""
    return stack.weights[0][0].dtype if kind_of(input) == "tokens" else input.dtype


def _differentiable(
    stack: Stack, data: Tensor, hx: Sequence[Tensor] | None, recorded: bool
) -> bool:
    """Whether the results of a stack will have gradients; a trace is for calls with and without."""
    if not (torch.is_grad_enabled() or recorded):
        return False
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        every = [w for weights in stack.weights for w in weights]
        return wants_gradients([*every, data, *(hx or ())])
    for weights in stack.weights:
        for weight in weights:
            if weight.requires_grad:
                return True
    return any(t.requires_grad for t in (data, *(hx or ())))


def choose(stack: Stack, first: Problem) -> list[Assigned]:
    """Who computes each layer and direction, by what is asked for here."""
    asked = (first, stack.num_layers, stack.directions, requested_backend())
    if first.tracing or first.recorded:
        return _choose(*asked, None)
    known = (measured.changes(), qualified.changes(first.device, first.dtype))
    return _choose_once(*asked, known)


def _choose(
    first: Problem, num_layers: int, directions: int, requested: str, _measured: object
) -> list[Assigned]:
    asked = problems_of(first, num_layers, directions)
    if requested == AUTO and not first.tracing:
        requested = tuned_backend(first, num_layers, directions) or requested
    return [Assigned(problem, registry.select(problem, requested)) for problem in asked]


_choose_once = functools.lru_cache(maxsize=1024)(_choose)  # sizes repeat from call to call


def why_not_whole(stack: Stack, assigned: Sequence[Assigned], packed: bool = False) -> str | None:
    """Why the layers are run one by one, None where their backend runs all of them at once."""
    backend = assigned[0].backend
    if not backend.takes_whole:
        return "this backend runs them one after the other"
    if any(one.backend.name != backend.name for one in assigned):
        return "not all layers have the same backend"
    return backend.why_not_whole([one.problem for one in assigned], call_of(stack, packed))


def call_of(stack: Stack, packed: bool = False) -> Call:
    """How the layers are called."""
    return Call(stack.directions, stack.training and stack.dropout != 0, packed)


def tuned_backend(first: Problem, num_layers: int, directions: int) -> str | None:
    """The backend that ``rnnfast.tune`` found fastest for just this call, if it still takes it."""
    name = measured.local().calls.get(call_key(first, num_layers, directions))
    if name not in registry.BACKENDS:
        return None
    asked = problems_of(first, num_layers, directions)
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
