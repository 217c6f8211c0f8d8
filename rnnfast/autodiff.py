"""Helpers around torch.autograd and torch.func."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def _autograd_keys() -> int:
    """The dispatch keys that an op's kernel may run below, as bits: autograd's, the one that
    tracks views and in-place writes, without which gradients through them would be wrong, and those
    of torch.func, which backward of a scan with grad_clip_time uses."""
    before = torch._C._dispatch_tls_local_exclude_set().raw_repr()
    with torch._C._AutoDispatchBelowADInplaceOrView():
        within = torch._C._dispatch_tls_local_exclude_set().raw_repr()
    of_func = (
        "DynamicLayerFrontMode",
        "DynamicLayerBackMode",
        "GradWrapper",
        "Batched",
        "VmapMode",
    )
    keys = [getattr(torch._C.DispatchKey, f"FuncTorch{name}") for name in of_func]
    found = within & ~before
    for key in keys:
        found |= torch._C.DispatchKeySet(key).raw_repr()
    return found


_AUTOGRAD = _autograd_keys()


@contextmanager
def recording() -> Iterator[None]:
    """Lets autograd record within the kernel of an op, which runs below autograd's dispatch keys.

    torch.func.vjp would do it with public calls only, but torch's packing and oneDNN's LSTM do not
    run under it.
    """
    include = torch._C._dispatch_tls_local_include_set()
    exclude = torch._C._dispatch_tls_local_exclude_set().raw_repr() & ~_AUTOGRAD
    keys = torch._C.DispatchKeySet.from_raw_repr(exclude)
    with torch._C._ForceDispatchKeyGuard(include, keys), torch.enable_grad():
        yield


def differentiate(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    create_graph: bool = False,
) -> list[Tensor | None]:
    """torch.autograd.grad that gives None for every input that takes no part."""
    live = [(o, c) for o, c in zip(outputs, cotangents, strict=False) if o.requires_grad]
    wanted = [i for i, t in enumerate(inputs) if t.requires_grad]
    grads: list[Tensor | None] = [None] * len(inputs)
    if live and wanted:
        found = torch.autograd.grad(
            [o for o, _ in live],
            [inputs[i] for i in wanted],
            [c for _, c in live],
            create_graph=create_graph,
            allow_unused=True,
        )
        for i, grad in zip(wanted, found, strict=False):
            grads[i] = grad
    return grads


class Wanted:
    """Whether the backward at work has a use for the gradient of an input whose node is ``node``:
    torch.autograd.grad asks for some only. Asked when looked at: of a leaf that is asked for, torch
    answers by an exception, which takes some ten microseconds."""

    def __init__(self, node: Any) -> None:
        self._node = node

    def __bool__(self) -> bool:
        if not isinstance(self._node, bool):
            self._node = is_executed(self._node)
        return self._node


def wanted_inputs(ctx: Any, first: int) -> list[Any]:
    """``ctx.needs_input_grad`` from argument ``first`` on, all tensors, but false where nobody has
    a use for the gradient (``Wanted``)."""
    needs, nodes = list(ctx.needs_input_grad[first:]), ctx.next_functions
    if len(nodes) != len(needs):
        return needs
    pairs = zip(needs, nodes, strict=True)
    return [on if not on or node is None else Wanted(node) for on, (node, _) in pairs]


def is_executed(node: Any) -> bool:
    """Whether the backward at work comes to ``node``."""
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # raised of a leaf that torch.autograd.grad asks for
        return True


def vjp(
    function: Callable[..., tuple[Tensor, ...]], primals: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]]:
    """torch.func.vjp."""
    found: Any = torch.func.vjp(function, *primals)
    return found


def jvp_by_vjps(
    function: Callable[..., tuple[Tensor, ...]],
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """torch.func.jvp by two backwards, the second of what is linear in its argument, so that no
    level of forward mode is needed."""
    values, back = vjp(function, primals)
    _, forth = vjp(lambda *u: back(u), [torch.zeros_like(t) for t in values])
    return values, forth(tuple(tangents))
