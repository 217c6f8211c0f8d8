"""Batching rules of the ops: the mapped axis is folded into the batch, or looped over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .schema import FORWARD, lib, named


def _mapped(dims: Any) -> bool:
    if isinstance(dims, (list, tuple)):
        return any(_mapped(d) for d in dims)
    return dims is not None


def _fold(tensor: Tensor, dim: int | None, batch_dim: int, size: int) -> Tensor:
    """[…, B, …] mapped over ``dim`` (or not) → […, size*B, …]."""
    if dim is None:
        mapped = tensor.unsqueeze(batch_dim)
        shape = list(mapped.shape)
        shape[batch_dim] = size
        mapped = mapped.expand(shape)
    else:
        mapped = tensor.movedim(dim, batch_dim)
    return mapped.flatten(batch_dim, batch_dim + 1)


def _forward_rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    op = torch.ops.rnnfast.scan_forward
    given, dims = named(FORWARD, args), named(FORWARD, in_dims)
    # backward loops, and what was saved for it has to be each element's own
    if _mapped(dims["weights"]) or given["checkpoint_every"]:
        return _loop(op, info, in_dims, args)
    size = info.batch_size
    folded = dict(given)
    folded["input"] = _fold(given["input"], dims["input"], 1, size)
    state_dims = dims["states"] or [None] * len(given["states"])
    folded["states"] = [
        _fold(s, d, 0, size) for s, d in zip(given["states"], state_dims, strict=False)
    ]
    for name, batch_dim in (("lengths", 0), ("resets", 1)):
        if given[name] is not None:
            folded[name] = _fold(given[name], dims[name], batch_dim, size)
    y, final, trace, saved = op(**folded)

    def split(tensor: Tensor, dim: int) -> Tensor:
        return tensor.unflatten(dim, (size, tensor.shape[dim] // size))

    outputs = (split(y, 1), [split(s, 0) for s in final], [split(t, 1) for t in trace], saved)
    # what was saved belongs to the folded problem as a whole
    return outputs, (1, [0] * len(final), [1] * len(trace), [None] * len(saved))


def _backward_rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    return _loop(torch.ops.rnnfast.scan_backward, info, in_dims, args)


def _loop(op: Any, info: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """The op once for each element of the mapped axis, the results stacked along a new first."""
    results = [op(*_at(args, in_dims, i)) for i in range(info.batch_size)]
    columns = list(zip(*results, strict=False))
    stacked = tuple(
        torch.stack(column)
        if isinstance(column[0], Tensor)
        else [torch.stack(tensors) for tensors in zip(*column, strict=False)]
        for column in columns
    )
    return stacked, tuple(0 if isinstance(s, Tensor) else [0] * len(s) for s in stacked)


def _at(value: Any, dims: Any, index: int) -> Any:
    """``value`` (a tensor, list or option) at ``index`` of its mapped axis, if it has one."""
    if isinstance(value, (list, tuple)):
        if not isinstance(dims, (list, tuple)):
            dims = [dims] * len(value)
        return [_at(v, d, index) for v, d in zip(value, dims, strict=False)]
    return value if dims is None else value.select(dims, index)


def of_older_vmap(tensor: Any) -> bool:
    """Whether ``tensor`` is mapped by the vmap inside torch.autograd (``is_grads_batched=True``,
    ``jacobian(vectorize=True)``), which is older than torch.func's and has dispatch rules of its
    own."""
    return isinstance(tensor, Tensor) and torch._C._functorch.is_legacy_batchedtensor(tensor)


def older_backward_rule(*args: Any) -> Any:
    """scan_backward under that vmap: once for each element."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()

    def unwrap(value: Any) -> tuple[Any, Any]:
        if isinstance(value, (list, tuple)) and any(map(of_older_vmap, value)):
            pairs = [unwrap(v) for v in value]
            return [v for v, _ in pairs], [dim for _, dim in pairs]
        if not of_older_vmap(value):
            return value, None
        return torch._remove_batch_dim(value, level, 0, 0), 0

    def first_size(value: Any, dims: Any) -> int | None:
        if isinstance(dims, list):
            sizes = (first_size(v, d) for v, d in zip(value, dims, strict=True))
            return next((size for size in sizes if size is not None), None)
        return None if dims is None else value.shape[dims]

    plain, in_dims = zip(*map(unwrap, args), strict=True)
    size = first_size(list(plain), list(in_dims))
    info = SimpleNamespace(batch_size=size)
    outputs, _ = _backward_rule(info, in_dims, *plain)

    def wrap(value: Any) -> Any:
        if isinstance(value, list):
            return [wrap(v) for v in value]
        return torch._add_batch_dim(value, 0, level)

    return tuple(wrap(output) for output in outputs)


torch.library.register_vmap("rnnfast::scan_forward", _forward_rule)
torch.library.register_vmap("rnnfast::scan_backward", _backward_rule)
lib.impl("scan_backward", older_backward_rule, "Batched")
