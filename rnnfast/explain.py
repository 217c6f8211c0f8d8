"""``explain``: who would compute a layer, who was asked before, and what each answered."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .backends import own_stages, registry
from .backends.own_stages import StageView
from .backends.preference import order
from .backends.registry import AUTO, requested_backend
from .problem import Problem, Stack
from .recurrent import RecurrentLayer
from .selection import (
    asked_of,
    call_of,
    problems_of,
    tuned_backend,
)


@dataclass(frozen=True)
class Choice:
    """The choice for one direction of one layer.

    Attributes:
        answers: (backend, its reason for refusing or None) of everyone who was asked, in order.
        chosen: the backend's name, None where nobody can take the problem.
        strategy: how it computes it.
        reason: why they were asked in this order.
        stages: of a cell that is compiled from its step, what the step was cut into.
    """

    layer: int
    direction: str
    problem: Problem
    answers: tuple[tuple[str, str | None], ...]
    chosen: str | None
    strategy: str
    reason: str = ""
    stages: tuple[StageView, ...] = ()

    def __str__(self) -> str:
        p = self.problem
        lines = [
            f"layer {self.layer}, {self.direction}: {p.cell} {p.kind} "
            f"T={p.T} B={p.B} I={p.I} H={p.H}"
            + (f" P={p.P}" if p.P != p.H else "")
            + f" {str(p.dtype).removeprefix('torch.')} on {p.device}"
            + (", training" if p.options.training else "")
            + (f", grad_clip_time={clip}" if (clip := p.options.grad_clip_time) else "")
            + (f", checkpoint_every={every}" if (every := p.options.checkpoint_every) else "")
        ]
        if self.reason:
            lines.append(f"  in this order: {self.reason}")
        for name, reason in self.answers:
            lines.append(f"  {name}: " + (f"no: {reason}" if reason else "takes it"))
        lines.append(f"  -> {self.chosen}: {self.strategy}" if self.chosen else "  -> nobody")
        return "\n".join(lines)


@dataclass(frozen=True)
class Explanation:
    """What ``explain`` found: ``requested`` is the name asked for, ``choices`` one a direction,
    ``layers`` how they follow one another, empty where RNNFAST_PIPELINE does not ask for more."""

    requested: str
    choices: tuple[Choice, ...]
    layers: str = ""

    def __str__(self) -> str:
        lines = [f"asked for: {self.requested}", *map(str, self.choices)]
        return "\n".join([*lines, self.layers] if self.layers else lines)


def explain(
    layer: RecurrentLayer,
    input: Tensor | PackedSequence,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    return_all_states: bool = False,
) -> Explanation:
    """Tells which backend ``layer(input, …)`` would take, without running it.

    Arguments are the layer's. The answer holds for the present circumstances: gradients on or off,
    ``use_backend``, autocast; for initial states of the input's dtype.

    Returns:
        An :class:`Explanation`; print it.

    Raises:
        TypeError: ``layer`` is not a layer of rnnfast. What the layer raises for a bad input shape
            is not raised here.
    """
    stack, first = described(layer, input, lengths, resets, return_all_states)
    name = requested_backend()
    tuned = tuned_backend(first, stack.num_layers, stack.directions) if name == AUTO else None
    choices = [
        _choice(index, stack.directions, problem, name, tuned)
        for index, problem in enumerate(problems_of(first, stack.num_layers, stack.directions))
    ]
    return Explanation(name, tuple(choices), _layers(stack, choices))


def described(
    layer: RecurrentLayer,
    input: Tensor | PackedSequence,
    lengths: Tensor | None,
    resets: Tensor | None,
    return_all_states: bool,
) -> tuple[Stack, Problem]:
    """The layers and the problem of the first that such a call is. TypeError for another layer."""
    if not isinstance(layer, RecurrentLayer):
        raise TypeError(f"layer should be a layer of rnnfast, got: {type(layer).__name__}")
    has_lengths = lengths is not None or isinstance(input, PackedSequence)
    weights = layer._weights()
    packed = isinstance(input, PackedSequence)
    stack = layer._stack(weights, layer.batch_first and not packed)
    if isinstance(input, PackedSequence):
        batch = int(input.batch_sizes[0])
        input = input.data.new_empty(0).expand(len(input.batch_sizes), batch, 0)
    else:
        input, _ = layer._batch(input, resets)
    asked = asked_of(
        stack,
        input,
        None,
        has_lengths=has_lengths,
        has_resets=resets is not None,
        all_states=return_all_states,
    )
    return stack, asked.first


def _layers(stack: Stack, choices: list[Choice]) -> str:
    names = [choice.chosen for choice in choices if choice.chosen is not None]
    if len(names) < len(choices):
        return ""
    problems = [choice.problem for choice in choices]
    how = registry.named(names[0], problems[0]).whole_strategy(problems, call_of(stack))
    if how and len(set(names)) > 1:
        how = "not pipelined: not all layers have the same backend"
    return f"layers {how}" if how else ""


def _choice(
    index: int, directions: int, problem: Problem, requested: str, tuned: str | None
) -> Choice:
    layer, direction = divmod(index, directions)
    if requested != AUTO:
        registry.check_name(requested)
        candidates, why = [registry.BACKENDS[requested]], ""
    elif tuned is not None:
        candidates, why = [registry.BACKENDS[tuned]], "fastest for this call, by rnnfast.tune"
    else:
        candidates, why = registry.candidates(problem), order(problem).reason
    answers: list[tuple[str, str | None]] = []
    chosen = None
    for backend in candidates:
        answers.append((backend.name, registry.refusal(backend, problem)))
        if answers[-1][1] is None:
            chosen = backend
            break
    compiled = chosen is not None and chosen.name == "cpu" and problem.spec.own
    return Choice(
        layer,
        "reverse" if direction else "forward",
        problem,
        tuple(answers),
        chosen.name if chosen else None,
        registry.named(chosen.name, problem).strategy(problem) if chosen else "",
        why,
        own_stages.stages(problem) if compiled else (),
    )
