"""The check that what was made of a step is the step: run by torch in float64, through the rows of
memory that kernels have, against the step as it was written and torch's gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..cells import CellSpec
from ..cells.step_error import StepError
from ..products.arithmetic import block_product
from .evaluate import evaluate, view
from .layout import Layout, Place, layout
from .stages import Program, Store
from .tangent import graph_of
from .trace import step_weights, weight_shapes

ROWS = 3  # sequences


class Sample(NamedTuple):
    """What a step is given, and the gradients of its new states."""

    rows: dict[str, Tensor]
    weights: dict[str, Tensor]
    given: list[Tensor]


def check(spec: CellSpec, hidden: int, bias: bool) -> None:
    """
    Raises:
        StepError: the graph, its derivative or where values are kept is not the step's, or no
            numbers could be found to compare it by.
    """
    try:
        made = [
            layout(graph_of(spec, hidden, bias, torch.float64, True, blocks), spec.gates)
            for blocks in (True, False)
        ]
        if not made[0].has_blocks():
            made.pop()  # they are one
        compared: set[str] = set()
        names: set[str] = set()
        for sample in _samples(spec, hidden, bias):
            expected = _expected(spec, sample)
            with torch.no_grad():
                each = [_found(spec, one, sample) for one in made]
            names |= expected.keys()
            for name, value in expected.items():
                for found in each:
                    _compare(spec, name, found[name], value)
                if value.isfinite().double().mean() > 0.5:
                    compared.add(name)
    except StepError:
        raise
    except Exception as error:
        raise StepError(f"no kernel can be made of the step of {spec.name!r}: {error}") from error
    if compared != names:
        raise StepError(
            f"no kernel can be made of the step of {spec.name!r}: {', '.join(names - compared)} "
            "could not be compared with torch's, being no numbers"
        )


def _samples(spec: CellSpec, hidden: int, bias: bool) -> list[Sample]:
    """Numbers of both signs; small positive ones; and ties: states and every second gate are 0."""
    make = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=make, device="cpu")

    def positive(*shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float64, generator=make, device="cpu") * 0.5 + 0.05

    def sample(numbers: Callable[..., Tensor]) -> Sample:
        rows = {f"state{k}": numbers(ROWS, hidden) for k in range(len(spec.states))}
        rows["gx"] = numbers(ROWS, spec.gates * hidden)
        weights = {n: numbers(*shape) for n, shape in weight_shapes(spec, hidden, bias).items()}
        return Sample(rows, weights, [normal(ROWS, hidden) for _ in spec.states])

    ties = sample(normal)
    for name, row in ties.rows.items():
        row[:, :: 2 if name == "gx" else 1] = 0
    return [sample(normal), sample(positive), ties]


def _expected(spec: CellSpec, sample: Sample) -> dict[str, Tensor]:
    """New states and gradients by torch."""
    with torch.enable_grad():
        rows = {name: t.clone().requires_grad_() for name, t in sample.rows.items()}
        weights = {name: t.clone().requires_grad_() for name, t in sample.weights.items()}
        olds = tuple(rows[f"state{k}"] for k in range(len(spec.states)))
        news = spec.step(rows["gx"], olds, step_weights(weights))
        sources = {**rows, **weights}
        live = [(n, d) for n, d in zip(news, sample.given, strict=True) if n.requires_grad]
        gradients: Sequence[Tensor | None] = [None] * len(sources)
        if live:
            gradients = torch.autograd.grad(
                [n for n, _ in live],
                list(sources.values()),
                [d for _, d in live],
                allow_unused=True,
            )
    found = {f"the new {n}": s.detach() for n, s in zip(spec.states, news, strict=True)}
    for (name, source), gradient in zip(sources.items(), gradients, strict=True):
        zero = torch.zeros_like(source)
        found[f"the gradient of {name}"] = zero if gradient is None else gradient
    return found


def _found(spec: CellSpec, made: Layout, sample: Sample) -> dict[str, Tensor]:
    """The same, by forward and backward as kernels have them; what is not kept is no number."""
    count, hidden = len(spec.states), made.traced.hidden

    def nothing(width: int) -> Tensor:
        return torch.full((ROWS, width), torch.nan, dtype=torch.float64, device="cpu")

    memory = {name: row.clone() for name, row in sample.rows.items()}
    memory.update({name: nothing(made.widths[name]) for name in ("saved", "scalars")})
    memory.update({f"new{k}": nothing(hidden) for k in range(count)})
    _run(made.forward, memory, sample)
    found = {f"the new {n}": memory[f"new{k}"].clone() for k, n in enumerate(spec.states)}
    for k in range(1, count):
        if k not in made.history:
            memory[f"new{k}"], memory[f"state{k}"] = nothing(hidden), nothing(hidden)
    memory.update({f"dstate{k}": d for k, d in enumerate(sample.given)})
    memory.update({name: nothing(made.widths[name]) for name in ("dgx", "dproduct")})
    memory.update({name: nothing(made.widths[name]).zero_() for name in ("acc", "acc1")})
    memory.update({f"dold{k}": nothing(hidden) for k in range(count)})
    _run(made.backward, memory, sample)
    found.update({f"the gradient of state{k}": memory[f"dold{k}"] for k in range(count)})
    found["the gradient of gx"] = memory["dgx"]
    weights = {name: torch.zeros_like(weight) for name, weight in sample.weights.items()}

    def values(place: Place) -> Tensor:
        return memory[place.buffer][:, place.offset : place.offset + max(place.width, 1)]

    for matrix, gradient, operand in made.matrices:
        total = block_product(values(gradient), values(operand), matrix.blocks)
        view(weights[matrix.weight], matrix).add_(total)
    for weight, offset, place in made.elements:
        total = values(place).sum(0)
        weights[weight].view(-1)[offset : offset + total.shape[0]].add_(total)
    return {**found, **{f"the gradient of {name}": d for name, d in weights.items()}}


def _run(program: Program, memory: dict[str, Tensor], sample: Sample) -> None:
    stores = [s for stage in program.stages for s in stage.stores if s.buffer != "tmp"]
    values = evaluate([store.node for store in stores], memory, sample.weights)
    for store in stores:
        _store(store, memory[store.buffer], values[store.node])


def _store(store: Store, row: Tensor, value: Tensor) -> None:
    part = row[:, store.offset : store.offset + max(store.node.width, 1)]
    value = value.expand(part.shape)
    part.add_(value) if store.add else part.copy_(value)


def _compare(spec: CellSpec, what: str, found: Tensor, expected: Tensor) -> None:
    # torch has constants in float32 in some of its float64 kernels (hardsigmoid's sixth)
    if not torch.allclose(found, expected.to(found.dtype), rtol=1e-6, atol=1e-7, equal_nan=True):
        away = (found - expected).abs().max().item()
        raise StepError(
            f"no kernel can be made of the step of {spec.name!r}: {what} is another than torch's, "
            f"by up to {away:.3g}. An autograd Function of one's own, no_grad or a hook inside of "
            "a step is not seen, and of several that are largest another may have the gradient; "
            'backend="reference" runs it all the same'
        )
