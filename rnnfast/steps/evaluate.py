"""The graph run by torch, node by node: what generated code is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .graph import Matrix, Node, ordered
from .operators import OPERATORS


def view(weight: Tensor, matrix: Matrix) -> Tensor:
    """The part of a weight that ``matrix`` means, [rows, cols] or of each block
    [blocks, rows, cols]; writes to it are writes to the weight."""
    sizes = [matrix.rows // matrix.blocks, matrix.cols // matrix.blocks]
    strides = [matrix.row_stride, matrix.col_stride]
    if matrix.blocks > 1:
        sizes, strides = [matrix.blocks, *sizes], [matrix.block_stride, *strides]
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


def _times(weight: Tensor, x: Tensor) -> Tensor:
    """x [B, cols] times all of a view's blocks: [B, rows]."""
    if weight.dim() == 2:
        return x @ weight.t()
    return torch.einsum("bki,koi->bko", x.unflatten(-1, (weight.shape[0], -1)), weight).flatten(1)


def _value(
    node: Node, args: list[Tensor], rows: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Tensor:
    if node.op == "const":
        return torch.tensor([node.attrs[0]], dtype=next(iter(rows.values())).dtype, device="cpu")
    if node.op == "load":
        name, offset = node.attrs
        return rows[name][:, offset : offset + max(node.width, 1)]
    if node.op == "param":
        name, offset, stride = node.attrs
        return weights[name].as_strided((max(node.width, 1),), (stride,), offset)
    if node.op == "product":
        pairs = zip(node.attrs, args, strict=True)
        return sum(
            (_times(view(weights[m.weight], m), x) for m, x in pairs),
            torch.zeros((), device="cpu"),
        )
    if node.op == "rsum":
        return args[0].sum(-1, keepdim=True)
    if node.op == "rmax":
        return args[0].amax(-1, keepdim=True)
    if node.op == "spread":
        return args[0].expand(*args[0].shape[:-1], node.width)
    if node.op == "where":
        args[1:] = torch.broadcast_tensors(*args[1:])
    return OPERATORS[node.op].evaluate(*args)
