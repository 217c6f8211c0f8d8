"""The graph run by torch, node by node: what generated code is held against, and the check that a
graph and its derivative are those of the step as it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..cells import CellSpec
from ..cells.step_error import StepError
from .derive import Derived
from .graph import Matrix, Node, ordered
from .operators import OPERATORS
from .trace import Traced, step_weights, weight_shapes

ROWS = 3  # sequences of the check


def view(weight: Tensor, matrix: Matrix) -> Tensor:
    """The part of a weight that ``matrix`` means; writes to it are writes to the weight."""
    sizes, strides = (matrix.rows, matrix.cols), (matrix.row_stride, matrix.col_stride)
    return weight.as_strided(sizes, strides, weight.storage_offset() + matrix.offset)


def whole(name: str, weight: Tensor) -> Matrix | None:
    """All of a weight of two axes."""
    if weight.dim() != 2:
        return None
    rows, cols = weight.shape
    return Matrix(name, 0, rows, cols, cols, 1)


def evaluate(
    nodes: Sequence[Node], rows: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[Node, Tensor]:
    """The values of ``nodes`` and all that they need: [B, width], scalars [B, 1] (or [1])."""
    found: dict[Node, Tensor] = {}
    for node in ordered(nodes):
        found[node] = _value(node, [found[arg] for arg in node.args], rows, weights)
    return found


def _value(
    node: Node, args: list[Tensor], rows: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Tensor:
    if node.op == "const":
        return torch.tensor([node.attrs[0]], dtype=next(iter(rows.values())).dtype)
    if node.op == "load":
        name, offset = node.attrs
        return rows[name][:, offset : offset + node.width]
    if node.op == "param":
        name, offset, stride = node.attrs
        return weights[name].as_strided((max(node.width, 1),), (stride,), offset)
    if node.op == "product":
        pairs = zip(node.attrs, args, strict=True)
        return sum((x @ view(weights[m.weight], m).t() for m, x in pairs), torch.zeros(()))
    if node.op == "rsum":
        return args[0].sum(-1, keepdim=True)
    if node.op == "rmax":
        return args[0].amax(-1, keepdim=True)
    if node.op == "spread":
        return args[0].expand(-1, node.width)
    if node.op == "where":
        args[1:] = torch.broadcast_tensors(*args[1:])
    return OPERATORS[node.op].evaluate(*args)


def check(spec: CellSpec, bias: bool, traced: Traced, derived: Derived) -> None:
    """Holds graph and derivative, traced in float64, against the step and torch's gradients.

    Raises:
        StepError: they differ, as with an autograd Function of one's own or ``no_grad`` inside.
    """
    H, make = traced.hidden, torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=make).requires_grad_()

    with torch.enable_grad():
        rows = {f"state{k}": random(ROWS, H) for k in range(len(spec.states))}
        rows["gx"] = random(ROWS, spec.gates * H)
        weights = {n: random(*shape) for n, shape in weight_shapes(spec, H, bias).items()}
        olds = tuple(rows[f"state{k}"] for k in range(len(spec.states)))
        news = spec.step(rows["gx"], olds, step_weights(weights))
        wanted = [*rows, *weights]
        given = [random(ROWS, H).detach() for _ in news]
        sources = [*rows.values(), *weights.values()]
        live = [(n, d) for n, d in zip(news, given, strict=True) if n.requires_grad]
        expected = torch.autograd.grad(
            [n for n, _ in live], sources, [d for _, d in live], allow_unused=True
        )
    with torch.no_grad():
        plain = {name: t.detach() for name, t in rows.items()}
        fixed_weights = {name: t.detach() for name, t in weights.items()}
        values = evaluate([p.node for row in traced.states for p in row], plain, fixed_weights)
        for name, new, row in zip(spec.states, news, traced.states, strict=True):
            made = torch.cat([values[n].expand(ROWS, w) for n, w in row], -1)
            _compare(spec, f"the new {name}", made, new.detach())
        plain.update({f"dstate{k}": d for k, d in enumerate(given)})
        found = gradients(derived, plain, fixed_weights)
    for name, gradient in zip(wanted, expected, strict=True):
        if gradient is None:
            gradient = torch.zeros_like({**rows, **weights}[name])
        _compare(spec, f"the gradient of {name}", found.get(name, gradient * 0), gradient)


def gradients(
    derived: Derived, rows: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Of each row and weight, over the batch."""
    values = evaluate(derived.outputs(), rows, weights)
    B = next(iter(rows.values())).shape[0]
    found = {name: torch.zeros_like(rows[name]) for name in derived.rows}
    found.update({name: torch.zeros_like(weight) for name, weight in weights.items()})
    for name, parts in derived.rows.items():
        for first, node in parts:
            found[name][:, first : first + node.width] = values[node]
    for matrix, d, operand in derived.outers:
        view(found[matrix.weight], matrix).add_(values[d].t() @ values[operand])
    for weight, offset, node in derived.weights:
        part = found[weight].view(-1)[offset : offset + max(node.width, 1)]
        part.add_(values[node].expand(B, max(node.width, 1)).sum(0))
    return found


def _compare(spec: CellSpec, what: str, found: Tensor, expected: Tensor) -> None:
    # torch has constants in float32 in some of its float64 kernels (hardsigmoid's sixth)
    if not torch.allclose(found, expected, rtol=1e-6, atol=1e-7, equal_nan=True):
        raise StepError(
            f"no kernel can be made of the step of {spec.name!r}: {what} is another than torch's. "
            "An autograd Function of one's own, no_grad or a hook inside of a step is not seen by "
            'the tracer; backend="reference" runs it all the same'
        )
