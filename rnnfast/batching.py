"""Batching rules of the ops: the mapped axis is folded into the batch, or split into calls."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .schema import BACKWARD, FORWARD, lib, named, needs_among
from .surroundings import of_older_vmap


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


def _listed(dims: Any, values: list[Tensor]) -> list[int | None]:
    return dims or [None] * len(values)


class _Folded:
    """The arguments of an op with the mapped axis, of ``size``, folded into the batch."""

    def __init__(self, given: dict[str, Any], dims: dict[str, Any], size: int) -> None:
        self.given, self.dims, self.size = dict(given), dims, size
        self.fold("input", 1)
        self.fold("lengths", 0)
        self.fold("resets", 1)
        self.fold_all("states", 0)

    def fold(self, name: str, batch_dim: int) -> None:
        value = self.given[name]
        if value is not None:
            self.given[name] = _fold(value, self.dims[name], batch_dim, self.size)

    def fold_all(self, name: str, batch_dim: int) -> None:
        values = self.given[name]
        pairs = zip(values, _listed(self.dims[name], values), strict=True)
        self.given[name] = [_fold(value, dim, batch_dim, self.size) for value, dim in pairs]

    def split(self, tensor: Tensor, batch_dim: int) -> Tensor:
        """A result with the mapped axis apart, where the batch was."""
        return tensor.unflatten(batch_dim, (self.size, tensor.shape[batch_dim] // self.size))


class Rule(NamedTuple):
    """What an op under vmap becomes. ``calls``: the arguments of calls below it; ``combined``:
    (results, their mapped axes) of what these return."""

    calls: list[Any]
    combined: Callable[[list[Any]], tuple[Any, Any]]


def forward_rule(info: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> Rule:
    """scan_forward under vmap. Whatever backends save has the batch as its second axis."""
    given, dims = named(FORWARD, args), named(FORWARD, in_dims)
    if _mapped(dims["weights"]):
        return _of_members(info, in_dims, args)
    folded = _Folded(given, dims, info.batch_size)

    def combined(made: list[Any]) -> tuple[Any, Any]:
        ((y, final, trace, saved),) = made
        split = folded.split
        states, series = [split(s, 0) for s in final], [split(t, 1) for t in trace]
        outputs = (split(y, 1), states, series, [split(t, 1) for t in saved])
        return outputs, (1, [0] * len(final), [1] * len(trace), [1] * len(saved))

    return Rule([tuple(folded.given.values())], combined)


def backward_rule(info: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> Rule:
    """The same of scan_backward. The gradients of the weights are each element's own (``groups``):
    a product for each over its part of the batch."""
    given, dims = named(BACKWARD, args), named(BACKWARD, in_dims)
    if _mapped(dims["weights"]):
        return _of_members(info, in_dims, args)
    size, groups, needs = info.batch_size, given["groups"], needs_among(given)
    folded = _Folded(given, dims, size)
    for name in ("dy", "y"):
        folded.fold(name, 1)
    folded.fold_all("dfinal", 0)
    for name in ("dtrace", "trace", "saved"):
        folded.fold_all(name, 1)
    folded.given["groups"] = size * max(groups, 1) if needs.weights else 0

    def combined(made: list[Any]) -> tuple[Any, Any]:
        ((dinput, dstates, dweights),) = made
        if needs.input:
            dinput = folded.split(dinput, 1)
        dstates = [folded.split(d, 0) for d in dstates]
        if groups:
            dweights = [folded.split(d, 0) for d in dweights]
        dims = (1 if needs.input else None, [0] * len(dstates), [0] * len(dweights))
        return (dinput, dstates, dweights), dims

    return Rule([tuple(folded.given.values())], combined)


def _of_members(info: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> Rule:
    """A call for each element of the mapped axis, the results stacked along a new first."""

    def combined(made: list[Any]) -> tuple[Any, Any]:
        stacked = tuple(
            torch.stack(column)
            if isinstance(column[0], Tensor)
            else [torch.stack(tensors) for tensors in zip(*column, strict=False)]
            for column in zip(*made, strict=False)
        )
        return stacked, tuple(0 if isinstance(s, Tensor) else [0] * len(s) for s in stacked)

    return Rule([_at(args, in_dims, i) for i in range(info.batch_size)], combined)


def _by(op: Any, rule: Rule) -> tuple[Any, Any]:
    return rule.combined([op(*args) for args in rule.calls])


def _at(value: Any, dims: Any, index: int) -> Any:
    """``value`` (a tensor, list or option) at ``index`` of its mapped axis, if it has one."""
    if isinstance(value, (list, tuple)):
        if not isinstance(dims, (list, tuple)):
            dims = [dims] * len(value)
        return [_at(v, d, index) for v, d in zip(value, dims, strict=False)]
    return value if dims is None else value.select(dims, index)


def _older_level() -> int:
    level: int = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


def by_newer_vmap(run: Callable[..., Any], *given: Any) -> Any:
    """``run(*given)`` where the older vmap maps tensors in ``given``: by torch.func's vmap, for
    which there are rules for all that we call."""
    level = _older_level()
    leaves, spec = tree_flatten(given)
    places = [k for k, leaf in enumerate(leaves) if of_older_vmap(leaf)]
    made: dict[str, Any] = {}

    def one(*tensors: Tensor) -> list[Tensor]:
        known = dict(zip(places, tensors, strict=True))
        own = [known.get(k, leaf) for k, leaf in enumerate(leaves)]
        results, made["spec"] = tree_flatten(run(*tree_unflatten(own, spec)))
        made["there"] = [k for k, t in enumerate(results) if t is not None]
        return [results[k] for k in made["there"]]

    mapped = [torch._remove_batch_dim(leaves[k], level, 0, 0) for k in places]
    # it wants the mapped axis first in memory, too
    found = [torch._add_batch_dim(t.contiguous(), 0, level) for t in torch.vmap(one)(*mapped)]
    results: list[Any] = [None] * made["spec"].num_leaves
    for k, t in zip(made["there"], found, strict=True):
        results[k] = t
    return tree_unflatten(results, made["spec"])


def _older_rule(rule: Callable[..., Rule], op: Any, args: tuple[Any, ...]) -> Any:
    """An op under that vmap, by its rule."""
    level = _older_level()

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
    found = _by(op, rule(info, in_dims, plain))

    def wrap(value: Any, dim: Any) -> Any:
        if isinstance(value, list):
            return [wrap(v, d) for v, d in zip(value, dim, strict=True)]
        if dim is None:
            return value
        # it wants the mapped axis first in memory, too
        return torch._add_batch_dim(value.movedim(dim, 0).contiguous(), 0, level)

    return tuple(wrap(*one) for one in zip(*found, strict=True))


@torch.library.register_vmap("rnnfast::scan_forward")
def _forward_rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    return _by(torch.ops.rnnfast.scan_forward, forward_rule(info, in_dims, args))


@torch.library.register_vmap("rnnfast::scan_backward")
def _backward_rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    return _by(torch.ops.rnnfast.scan_backward, backward_rule(info, in_dims, args))


def older_forward_rule(*args: Any) -> Any:
    return _older_rule(forward_rule, torch.ops.rnnfast.scan_forward, args)


def older_backward_rule(*args: Any) -> Any:
    return _older_rule(backward_rule, torch.ops.rnnfast.scan_backward, args)


lib.impl("scan_forward", older_forward_rule, "Batched")
lib.impl("scan_backward", older_backward_rule, "Batched")
